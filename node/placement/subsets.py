"""The exact optimum for few devices, whatever links and layers: a table over the subsets of devices that are used.

Held and Karp's programme for the travelling salesman (1962), with the layers done as one more dimension. It remembers
the first device, which the token goes back to, and the last; with equal links neither matters.
"""

from typing import Final

import numpy as np

from .blocks import Stages
from .costs import NEVER, Costs, Ints

# Sums in one search: some 0.2 s in numpy on one slow core, and plans are kept until the picture changes.
_WORK_MAX: Final = 40_000_000


def is_small(costs: Costs) -> bool:
    """Whether the exact search is affordable: 8 to 12 devices, by the number of layers and the kind of links."""
    firsts = 1 if costs.equal_links else costs.devices
    steps: int = 2**costs.devices * costs.devices // 2 * firsts
    return steps * (costs.layers + 1) ** 2 <= _WORK_MAX


class _Table:
    """The least that a position takes (or, for the pace, the longest stage) for layers [0, l) on every subset."""

    def __init__(self, costs: Costs, *, pace: bool) -> None:
        self._costs, self._pace = costs, pace
        self._ends = 1 if costs.equal_links else costs.devices
        if pace:
            self._run = np.minimum(costs.run + costs.software, NEVER)
            self._hop, self._back = costs.wire, np.zeros_like(costs.back)
        else:
            self._run, self._hop, self._back = costs.run, costs.hop, costs.back
        self.least = np.full((2**costs.devices, self._ends, self._ends, costs.layers + 1), NEVER, dtype=np.int64)
        self._fill()

    def _end(self, device: int) -> int:
        return device if self._ends > 1 else 0

    def _add(self, a: Ints, b: Ints) -> Ints:
        found: Ints = np.maximum(a, b) if self._pace else a + b
        return found

    def _hops_to(self, device: int) -> Ints:
        """From each device that may have been the last; with equal links from any."""
        other = (device + 1) % len(self._hop)
        found: Ints = self._hop[:, device] if self._ends > 1 else self._hop[other : other + 1, device]
        return found

    def _fill(self) -> None:
        devices, least = self._costs.devices, self.least
        for device in range(devices):
            end = self._end(device)
            least[1 << device, end, end, :-1] = self._run[device, 0, :-1]  # alone it is no pipeline
        subsets = np.arange(2**devices)
        sizes = sum((subsets >> device) & 1 for device in range(devices))
        for size in range(1, devices):
            for device in range(devices):
                from_ = subsets[(sizes == size) & ((subsets >> device) & 1 == 0)]
                self._extend(from_, device)
        np.minimum(least, NEVER, out=least)

    def _extend(self, subsets: Ints, device: int) -> None:
        """Put one more device behind each of these subsets."""
        came = self._add(self.least[subsets], self._hops_to(device)[None, None, :, None]).min(axis=2)
        end, into = self._end(device), subsets | 1 << device
        for to in range(1, self._costs.layers + 1):
            reached = self._add(came[..., :to], self._run[device, :to, to]).min(axis=-1)
            self.least[into, :, end, to] = np.minimum(self.least[into, :, end, to], reached)

    def best(self) -> tuple[int, tuple[int, int, int]]:
        """Return the least of all, and where it stands: subset, first, last."""
        back = self._back[0, 1 % len(self._back)].reshape(1, 1) if self._ends == 1 else self._back.T
        total = self._add(self.least[..., -1], back[None])
        at = int(total.argmin())
        where = np.unravel_index(at, total.shape)
        return int(total.ravel()[at]), (int(where[0]), int(where[1]), int(where[2]))

    def read(self, subset: int, first: int, end: int) -> Stages:
        """Follow the table back from the whole model."""
        layer, stages = self._costs.layers, []
        while subset & (subset - 1):
            device, before, start = self._came_from(subset, first, end, layer)
            stages.append((device, (start, layer)))
            subset, end, layer = subset & ~(1 << device), before, start
        return [(subset.bit_length() - 1, (0, layer)), *reversed(stages)]

    def _came_from(self, subset: int, first: int, end: int, layer: int) -> tuple[int, int, int]:
        value = int(self.least[subset, first, end, layer])
        for device in range(self._costs.devices):
            if not subset >> device & 1 or (self._ends > 1 and device != end):
                continue
            came = self._add(self.least[subset & ~(1 << device), first], self._hops_to(device)[:, None])
            reached = self._add(came[:, :layer], self._run[device, :layer, layer][None, :])
            if int(reached.min()) == value:
                before, start = np.unravel_index(int(reached.argmin()), reached.shape)
                return device, int(before), int(start)
        raise AssertionError("every value of the table came from another")


def quickest(costs: Costs) -> tuple[int, Stages]:
    """Return the least nanoseconds of one position through two or more stages, and the stages; NEVER without any."""
    if costs.devices < 2:
        return NEVER, []
    table = _Table(costs, pace=False)
    total, where = table.best()
    return (total, table.read(*where)) if total < NEVER else (NEVER, [])


def least_pace(costs: Costs) -> tuple[int, Stages]:
    """Return the least time of the slowest stage or link of two or more, and the stages; NEVER without any."""
    if costs.devices < 2:
        return NEVER, []
    table = _Table(costs, pace=True)
    pace, where = table.best()
    return (pace, table.read(*where)) if pace < NEVER else (NEVER, [])
