"""All rules: facts in, findings out. Pure, so a diagnosis of yesterday can be read again from its facts."""

from .facts import Facts
from .findings import Finding, worst_last
from .hearing_rules import RULES as HEARING
from .machine_rules import RULES as MACHINE
from .own_rules import RULES as OWN
from .peer_rules import RULES as PEERS


def diagnose(facts: Facts) -> list[Finding]:
    """Return what these facts say, the worst last; of equal ones this device's own come first, then the network's."""
    return worst_last(finding for rule in (*OWN, *MACHINE, *HEARING, *PEERS) for finding in rule(facts))
