"""Which exchange a scenario asks for."""

from ..exchange import Exchange
from ..scenario import Scenario
from .grouped import Grouped
from .rounding import rounding


def exchange_for(scenario: Scenario) -> Exchange:
    """Return how this scenario's nodes average.

    Raises:
        BadSetup: it asks for what does not go together.
    """
    averaging = scenario.averaging
    return Grouped(
        scenario.nodes, rounding(averaging.codec), size=averaging.group_size, weighted=averaging.weighted,
        mesh=b"fleet %d" % scenario.seed,
    )  # fmt: skip
