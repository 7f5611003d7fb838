"""Who holds copies of which stage, when the cuts are known: as many of each as all can have, the largest first.

All pipelines of a model have the same cuts, so that any copy of a stage can follow any copy of the stage before it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .costs import NEVER, Costs, measure
from .pipeline import latency_of
from .quantities import Device, Job, Links, Run

Assigned = dict[int, Run]  # by the device's index


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that a plan is made from; devices in the order of their names."""

    job: Job
    devices: Sequence[Device]
    costs: Costs
    sums: tuple[int, ...]  # bytes in memory of the first so many layers

    def fits(self, device: int, stage: Run) -> bool:
        return bool(self.costs.run[device, stage[0], stage[1]] < NEVER)

    def took_ns(self, device: int, stage: Run) -> int:
        return int(self.costs.run[device, stage[0], stage[1]])

    def size_bytes(self, stage: Run) -> int:
        tied = self.job.tied_bytes if stage == (0, self.job.layers) else 0
        return self.sums[stage[1]] - self.sums[stage[0]] - tied

    @classmethod
    def of(cls, job: Job, devices: Sequence[Device], links: Links) -> "Scene":
        sizes = (job.resident_bytes(layer) for layer in range(job.layers))
        sums = tuple(itertools.accumulate(sizes, initial=0))
        return cls(job=job, devices=devices, costs=measure(job, devices, links), sums=sums)


def assign(scene: Scene, stages: Sequence[Run], fixed: Mapping[int, Run]) -> Assigned | None:
    """Give every stage as many devices as all can have, then those more that can, then use who is left.

    ``fixed`` are given already. Returns None when a stage gets nobody.
    """
    by_size = sorted(stages, key=lambda stage: (-scene.size_bytes(stage), stage))
    copies = scene.job.copies
    for least in range(copies, 0, -1):
        assigned = dict(fixed)
        # Largest stage first is exact: whoever can hold it can hold every smaller one, so it matters not who is taken.
        if all(_fill(scene, stage, assigned, stages, least) for stage in by_size):
            break
    else:
        return None
    for more in range(least + 1, copies + 1):
        for stage in by_size:
            _fill(scene, stage, assigned, stages, more)
    if scene.job.spare:
        _use_the_rest(scene, by_size, assigned)
    elif scene.job.objective == "throughput":
        _help_the_slowest(scene, stages, assigned)
    return assigned


def count(assigned: Mapping[int, Run], stage: Run) -> int:
    return sum(1 for run in assigned.values() if run == stage)


def _fill(scene: Scene, stage: Run, assigned: Assigned, stages: Sequence[Run], wanted: int) -> bool:
    """Give a stage devices until it has as many as wanted; false when there are not so many."""
    while count(assigned, stage) < wanted:
        free = [device for device in range(len(scene.devices)) if device not in assigned and scene.fits(device, stage)]
        if not free:
            return False
        assigned[_pick(scene, stage, free, stages)] = stage
    return True


def _pick(scene: Scene, stage: Run, free: Iterable[int], stages: Sequence[Run]) -> int:
    """Choose who takes a stage: who holds it, then who holds nothing of this plan, then anyone; the fastest first."""

    def preference(device: int) -> tuple[int, int, int]:
        holds = scene.devices[device].holds
        kept = 0 if holds == stage else 2 if holds in stages else 1
        return (kept, scene.took_ns(device, stage), device)

    return min(free, key=preference)


def _use_the_rest(scene: Scene, by_size: Sequence[Run], assigned: Assigned) -> None:
    """Whoever is left keeps what it holds, or helps the least copied stage."""
    for device in range(len(scene.devices)):
        fitting = [stage for stage in by_size if scene.fits(device, stage)]
        if fitting and device not in assigned:
            holds = scene.devices[device].holds
            least = min(fitting, key=lambda stage: (count(assigned, stage), stage))
            assigned[device] = holds if holds is not None and holds in fitting else least


def _help_the_slowest(scene: Scene, stages: Sequence[Run], assigned: Assigned) -> None:
    """Copy the stage that sets the pace, for as long as somebody who is left can hold it."""
    while True:
        slowest = max(stages, key=lambda stage: (pace_of(scene, stage, assigned), stage))
        free = [device for device in range(len(scene.devices)) if device not in assigned]
        fitting = [device for device in free if scene.fits(device, slowest)]
        if not fitting:
            return
        assigned[_pick(scene, slowest, fitting, stages)] = slowest


def pace_of(scene: Scene, stage: Run, assigned: Mapping[int, Run]) -> int:
    """Return the nanoseconds for which one step takes all copies of a stage together."""
    software = 0 if stage == (0, scene.job.layers) else scene.costs.software
    took = [scene.took_ns(device, stage) + software for device, run in assigned.items() if run == stage]
    return 10**18 // sum(10**18 // max(1, ns) for ns in sorted(took))


def route(scene: Scene, stages: Sequence[Run], assigned: Mapping[int, Run]) -> tuple[int, tuple[int, ...]]:
    """Return the nanoseconds of one position along the quickest copies of the stages, and those."""
    holders = [sorted(device for device, run in assigned.items() if run == stage) for stage in stages]
    costs = scene.costs
    if costs.equal_links:
        peers = tuple(_quickest(scene, here, stage) for here, stage in zip(holders, stages, strict=True))
        return latency_of(costs, list(zip(peers, stages, strict=True))), peers
    best: tuple[int, tuple[int, ...]] = (NEVER, ())
    for first in holders[0]:
        reached = [scene.took_ns(first, stages[0])]
        came: list[list[int]] = []
        for before, here, stage in zip(holders, holders[1:], stages[1:], strict=False):
            at = [first] if not came else before
            sums = np.array(reached)[:, None] + costs.hop[np.ix_(at, here)]
            came.append([int(index) for index in sums.argmin(axis=0)])
            reached = [int(least) + scene.took_ns(to, stage) for least, to in zip(sums.min(axis=0), here, strict=True)]
        lasts = holders[-1] if came else [first]
        ends = [ns + (int(costs.back[end, first]) if came else 0) for ns, end in zip(reached, lasts, strict=True)]
        total = min(ends)
        if total < best[0]:
            best = (total, _follow(holders, came, ends.index(total), first))
    return best


def _quickest(scene: Scene, holders: Iterable[int], stage: Run) -> int:
    return min(holders, key=lambda device: (scene.took_ns(device, stage), device))


def _follow(holders: Sequence[Sequence[int]], came: Sequence[Sequence[int]], at: int, first: int) -> tuple[int, ...]:
    peers = []
    for stage in range(len(came), 0, -1):
        peers.append(holders[stage][at])
        at = came[stage - 1][at]
    return (first, *reversed(peers))
