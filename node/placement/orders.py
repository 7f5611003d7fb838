"""A good pipeline for many devices with unequal links or layers: an order of the devices, then the best along it.

The problem is NP-hard then (it has the travelling salesman's in it). Orders begin with a device and go on to the
nearest that is left, so that clusters of short links stay together; along an order the best pipeline that may skip
devices is exact, O(N^2 L + N L^2); then pieces of the order are turned round while that helps (2-opt).
"""

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np

from .blocks import Stages
from .costs import NEVER, Costs, Ints

_STARTS_MAX: Final = 4  # orders tried, from the devices that would bear the model best
_TURNS_MAX: Final = 12  # orders tried after them: with 32 devices and 80 layers one takes 2 ms


def quickest(costs: Costs) -> tuple[int, Stages]:
    """Return the nanoseconds of one position through two or more stages, and the stages; NEVER without any."""
    return _search(costs, pace=False)


def least_pace(costs: Costs) -> tuple[int, Stages]:
    """Return the time of the slowest stage or link of two or more, and the stages; NEVER without any."""
    return _search(costs, pace=True)


def _search(costs: Costs, *, pace: bool) -> tuple[int, Stages]:
    if costs.devices < 2:
        return NEVER, []
    tried = [(*_along(costs, order, pace=pace), order) for order in _orders(costs)]
    total, stages, order = min(tried, key=lambda found: found[0])
    for _, (left, right) in zip(range(_TURNS_MAX), _turns(stages, order), strict=False):
        turned = [*order[:left], *reversed(order[left:right]), *order[right:]]
        found, others = _along(costs, turned, pace=pace)
        if found < total:
            total, stages, order = found, others, turned
    return (total, stages) if total < NEVER else (NEVER, [])


def _orders(costs: Costs) -> list[list[int]]:
    """From some good devices on, always the nearest that is left; with equal links the ablest."""
    able = (costs.run < NEVER).sum(axis=(1, 2))
    by_ability = sorted(range(costs.devices), key=lambda device: (-int(able[device]), int(costs.run[device].min())))
    orders = []
    for start in by_ability[:_STARTS_MAX]:
        order, left = [start], [device for device in by_ability if device != start]
        while left:
            nearest = min(left, key=lambda device: int(costs.hop[order[-1], device]))  # the first of equals
            order.append(nearest)
            left.remove(nearest)
        orders.append(order)
    return orders


def _turns(stages: Stages, order: Sequence[int]) -> list[tuple[int, int]]:
    """Pieces of the order to turn round: between devices that are used, then around neighbours."""
    used = sorted(order.index(device) for device, _ in stages)
    pieces = [(left, right + 1) for left, right in itertools.combinations(used, 2)]
    return pieces + [(at, at + 2) for at in range(len(order) - 1)]


def _along(costs: Costs, order: Sequence[int], *, pace: bool) -> tuple[int, Stages]:
    """Return the best pipeline whose devices come in this order, some of them skipped."""
    run = np.minimum(costs.run + costs.software, NEVER) if pace else costs.run
    hop = costs.wire if pace else costs.hop
    add = np.maximum if pace else np.add
    size = costs.layers + 1
    least = np.full((costs.devices, size), NEVER, dtype=np.int64)  # [i, l]: layers [0, l), the last stage on order[i]
    came = np.full((costs.devices, size, 2), -1, dtype=np.int64)  # from which place of the order, and which layer
    firsts = np.zeros((costs.devices, size), dtype=np.int64)
    for place, device in enumerate(order):
        least[place, :-1] = run[device, 0, :-1]
        firsts[place] = device
        if place == 0:
            continue
        sums = add(least[:place], hop[list(order[:place]), device][:, None])
        before = sums.argmin(axis=0)
        reached = add(sums[before, np.arange(size)][:, None], run[device])
        start = reached.argmin(axis=0)
        value = reached[start, np.arange(size)]
        better = value < least[place]
        least[place] = np.where(better, value, least[place])
        came[place] = np.where(better[:, None], np.stack([before[start], start], axis=1), -1)
        firsts[place] = np.where(better, firsts[before[start], start], device)
    ends = least[:, -1]
    if not pace:
        ends = ends + costs.back[list(order), firsts[:, -1]]
    place = int(ends.argmin())
    return (int(ends[place]), _read(came, order, place)) if ends[place] < NEVER else (NEVER, [])


def _read(came: Ints, order: Sequence[int], place: int) -> Stages:
    stages: Stages = []
    layer = came.shape[1] - 1
    while place >= 0:
        before, start = (int(value) for value in came[place, layer])
        stages.append((order[place], (max(start, 0), layer)))
        place, layer = before, start
    return stages[::-1]
