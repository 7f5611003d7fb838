"""Which exchange a scenario asks for."""

from ....gossip.errors import BadSetup
from ....gossip.private.averager import GROUP_SIZES
from ....gossip.robust import MODELS_MIN
from ..exchange import Exchange
from ..scenario import Averaging, Scenario
from . import links
from .grouped import Grouped
from .hidden import Hidden
from .linked import Linked
from .pulled import Pulled
from .ranks import Ranks, names_of
from .rounding import rounding
from .traffic import TASK
from .whole import Alone, Complete


def exchange_for(scenario: Scenario) -> Exchange:
    """Return how this scenario's nodes average.

    Raises:
        BadSetup: it asks for what does not go together; the message says what does.
    """
    said, nodes, mesh = scenario.averaging, scenario.nodes, b"fleet %d" % scenario.seed
    _check(said)
    codec = rounding(said.codec)
    if said.policy == "private":
        return Hidden(Ranks(mesh, TASK, names_of(nodes)), said.group_size, said.noise, said.clip)
    match said.topology:
        case "groups":
            return Grouped(nodes, codec, size=said.group_size, weighted=said.weighted, mesh=mesh)
        case "pull":
            return Pulled(codec, said.degree, said.policy == "robust")
        case "complete":
            return Complete(codec, said.weighted)
        case "alone":
            return Alone()
        case graph:
            return Linked(_links(graph, nodes, said.degree, scenario.seed), codec, in_pairs=graph == "hypercube")


def _links(graph: str, nodes: int, degree: int, seed: int) -> links.Draw:
    match graph:
        case "ring":
            return links.ring(nodes)
        case "regular":
            return links.regular(nodes, degree, seed)
        case "epidemic":
            return links.epidemic(nodes, degree)
        case "exponential":
            return links.exponential(nodes)
        case _:
            return links.hypercube(nodes)


def _check(said: Averaging) -> None:
    if said.policy == "private" and (said.topology, said.codec) != ("groups", "float32"):
        raise BadSetup(
            f"the policy 'private' sums whole words in groups: take the topology 'groups' and the codec 'float32',"
            f" not {said.topology!r} and {said.codec!r}"
        )
    if said.policy == "private" and said.group_size not in GROUP_SIZES:
        raise BadSetup(f"private groups have {' or '.join(map(str, GROUP_SIZES))} members, not {said.group_size}")
    if said.policy != "private" and (said.noise or said.clip):
        raise BadSetup(f"noise and clip are of the policy 'private', not of {said.policy!r}: leave them out")
    if said.policy == "robust" and said.topology != "pull":
        raise BadSetup(f"the policy 'robust' looks at single models: take the topology 'pull', not {said.topology!r}")
    if said.policy == "robust" and said.degree < MODELS_MIN:
        raise BadSetup(f"the policy 'robust' pulls {MODELS_MIN} models at least: degree is {said.degree}")
