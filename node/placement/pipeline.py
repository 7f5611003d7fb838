"""The best pipeline of one copy: alone on one device, or through several; the search that fits decides which is best.

Two objectives. Latency: a position through all stages and back. Throughput: the slowest stage or link, which sets the
pace when many sessions keep all stages busy; of the pipelines with the best pace, the quickest.
"""

import itertools
from collections.abc import Callable

from . import blocks, orders, subsets
from .blocks import Stages
from .costs import NEVER, Costs
from .quantities import Objective

_Search = Callable[[Costs], tuple[int, Stages]]


def pipeline(costs: Costs, objective: Objective) -> Stages:
    """Return who runs which layers, in order; nothing when it does not fit. Of equals, that on fewest devices."""
    if not costs.devices:
        return []
    if objective == "throughput":
        pace, stages = least_pace(costs)
        if pace >= NEVER:
            return []
        return quickest(costs.within(pace))[1] or stages  # a search that is not exact may miss what it found before
    return quickest(costs)[1]


def quickest(costs: Costs) -> tuple[int, Stages]:
    """Return what a position takes, in nanoseconds, and the stages."""
    whole = costs.run[:, 0, -1]
    alone = int(whole.argmin())
    several = _searches(costs)[0](costs)
    if int(whole[alone]) <= several[0]:
        return (int(whole[alone]), [(alone, (0, costs.layers))] if whole[alone] < NEVER else [])
    return several


def least_pace(costs: Costs) -> tuple[int, Stages]:
    """Return the least nanoseconds of the slowest stage or link, and stages where the search has them."""
    whole = costs.run[:, 0, -1]
    alone = int(whole.argmin())
    several = _searches(costs)[1](costs)
    if int(whole[alone]) <= several[0]:
        return (int(whole[alone]), [(alone, (0, costs.layers))] if whole[alone] < NEVER else [])
    return several


def front(costs: Costs) -> list[tuple[int, int, Stages]]:
    """Return every trade between the two: (latency, pace, stages), from the quickest to the best pace."""
    found = []
    latency, stages = quickest(costs)
    while stages:
        pace = pace_of(costs, stages)
        found.append((latency, pace, stages))
        latency, stages = quickest(costs.within(pace - 1))
    return found


def latency_of(costs: Costs, stages: Stages) -> int:
    """What a position takes through these stages and back."""
    ran = sum(int(costs.run[device, first, end]) for device, (first, end) in stages)
    route = [device for device, _ in stages]
    hops = sum(int(costs.hop[a, b]) for a, b in itertools.pairwise(route))
    return ran + hops + (int(costs.back[route[-1], route[0]]) if len(route) > 1 else 0)


def pace_of(costs: Costs, stages: Stages) -> int:
    """For how long the slowest of these stages or of the links between them is taken by one step."""
    software = costs.software if len(stages) > 1 else 0
    longest = max(int(costs.run[device, first, end]) + software for device, (first, end) in stages)
    route = [device for device, _ in stages]
    return max([longest, *(int(costs.wire[a, b]) for a, b in itertools.pairwise(route))])


def _searches(costs: Costs) -> tuple[_Search, _Search]:
    """Return the searches for the least latency and the least pace of several stages."""
    if costs.equal_links and costs.equal_blocks and costs.layers > 1:
        return blocks.quickest, blocks.least_pace
    if subsets.is_small(costs):
        return subsets.quickest, subsets.least_pace
    return orders.quickest, orders.least_pace
