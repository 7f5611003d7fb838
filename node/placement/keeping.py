"""Cuts that keep what is loaded: through held runs from end to end, or through most of them with the gaps filled."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from .copies import Scene
from .costs import NEVER
from .pipeline import pipeline
from .quantities import Run

Cuts = tuple[tuple[Run, ...], Mapping[int, Run]]  # stages, and devices whose stage is settled


def held_cuts(scene: Scene) -> Iterator[Cuts]:
    """Return the quickest way through what is held, if it goes all the way, and one that keeps the most bytes."""
    holders: dict[Run, list[int]] = {}
    for device, offer in enumerate(scene.devices):
        if offer.holds is not None and offer.holds[1] <= scene.job.layers and scene.fits(device, offer.holds):
            holders.setdefault(offer.holds, []).append(device)
    if not holders:
        return
    whole = _through(scene, holders)
    if whole:
        yield whole, {}
    kept = _most(scene, holders)
    if kept and kept != whole and (filled := _fill_gaps(scene, kept, holders)):
        yield filled


def _through(scene: Scene, holders: Mapping[Run, Sequence[int]]) -> tuple[Run, ...]:
    """Return the quickest runs that follow one another from the first layer to the last, or none."""
    reached: dict[int, tuple[int, tuple[Run, ...]]] = {0: (0, ())}
    hop = int(scene.costs.hop.min())
    for run in sorted(holders):  # by the first layer, so that all ways to it are known
        if run[0] in reached:
            before, way = reached[run[0]]
            total = before + min(scene.took_ns(device, run) for device in holders[run]) + (hop if way else 0)
            if total < reached.get(run[1], (NEVER, ()))[0]:
                reached[run[1]] = (total, (*way, run))
    return reached.get(scene.job.layers, (0, ()))[1]


def _most(scene: Scene, holders: Mapping[Run, Sequence[int]]) -> tuple[Run, ...]:
    """Return the runs that do not overlap with the most bytes between them."""
    most: list[tuple[int, tuple[Run, ...]]] = [(0, ())]
    for end in range(1, scene.job.layers + 1):
        best = most[end - 1]
        for run in sorted(holders):
            if run[1] == end and most[run[0]][0] + scene.size_bytes(run) > best[0]:
                best = (most[run[0]][0] + scene.size_bytes(run), (*most[run[0]][1], run))
        most.append(best)
    return most[-1][1]


def _fill_gaps(scene: Scene, kept: Sequence[Run], holders: Mapping[Run, Sequence[int]]) -> Cuts | None:
    """Place the layers between the kept runs on devices that are not needed for them."""
    settled = {min(holders[run], key=lambda device: (scene.took_ns(device, run), device)): run for run in kept}
    stages = list(kept)
    for (_, first), (end, _) in itertools.pairwise([(0, 0), *sorted(kept), (scene.job.layers, scene.job.layers)]):
        if first < end:
            free = [device for device in range(len(scene.devices)) if device not in settled]
            found = pipeline(scene.costs.only(free, first, end), scene.job.objective) if free else []
            if not found:
                return None
            for device, (start, stop) in found:
                settled[free[device]] = (first + start, first + stop)
                stages.append((first + start, first + stop))
    return tuple(sorted(stages)), settled
