"""Who loads which layers: a pure function of the picture, computed by every node for itself. No planner node.

Plans are sought among contiguous splits in which every stage fits the memory of the devices that hold it. The best has,
in this order: the most copies of its least copied stage (up to what was asked: a copy makes a death invisible), and the
least time for the tokens that are expected, the time to move what is not loaded yet included; so what runs is kept
unless the gain pays for the move. One copy of a measured model is the exact optimum where `pipeline` says so. A device
that would slow the answer is left out. Equal pictures give equal plans on every node, and a plan that was followed
stays the plan.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .copies import Assigned, Scene, assign, count, pace_of, route
from .keeping import Cuts, held_cuts
from .pipeline import pipeline
from .quantities import NS, TOKENS_EXPECTED, Device, Job, Links, Plan, Run

# Boundaries tried in a model that nobody has measured: more and the number of splits outgrows a second.
_BOUNDARIES_MAX = 12
_STAGES_MAX = 6  # each further hop adds latency and halves nothing

_Rank = tuple[object, ...]


def place(job: Job, devices: Iterable[Device], links: Links | None = None) -> Plan:
    """Plan who serves a model of these layers. A device serves at most one stage of a model."""
    known = sorted(devices, key=lambda device: device.peer)
    links = links or Links()
    scene = Scene.of(job, known, links)
    best: tuple[_Rank, Plan] | None = None
    for stages, settled in _cuts(scene):
        for fixed in (settled, {}) if settled else ({},):
            assigned = assign(scene, stages, fixed)
            if assigned is not None:
                found = _judge(scene, stages, assigned, links)
                best = found if best is None or found[0] < best[0] else best
    return best[1] if best is not None else Plan(missing_bytes=_missing(scene))


def _cuts(scene: Scene) -> Iterator[Cuts]:
    """Return splits to be judged, each with devices whose stage is settled."""
    if not scene.devices:
        return
    if not scene.job.units:
        for stages in _splits(scene.job.layers, min(_STAGES_MAX, len(scene.devices))):
            yield stages, {}
    if scene.job.units or scene.job.layers > _BOUNDARIES_MAX + 1:
        for copies in range(1, scene.job.copies + 1):
            yield from _optimum(scene, copies)
    yield from held_cuts(scene)


def _splits(layers: int, stages_max: int) -> Iterable[tuple[Run, ...]]:
    tried = min(_BOUNDARIES_MAX, layers - 1)
    inner = sorted({round(float(cut)) for cut in np.linspace(1, layers - 1, tried)}) if layers > 1 else []
    for number in range(1, min(stages_max, layers) + 1):
        for cuts in itertools.combinations(inner, number - 1):
            bounds = (0, *cuts, layers)
            yield tuple(itertools.pairwise(bounds))


def _optimum(scene: Scene, copies: int) -> Iterator[Cuts]:
    """Return the best pipeline through devices, or through groups of devices that hold the same.

    Groups of neighbours in the order of memory let the most copies fit: the i-th largest stage must fit i groups.
    """
    everyone = range(len(scene.devices))
    order = sorted(everyone, key=lambda d: (-scene.devices[d].memory_bytes, int(scene.costs.run[d].min()), d))
    groups = [order[at : at + copies] for at in range(0, len(order) - copies + 1, copies)]
    if not groups:
        return
    stages = pipeline(scene.costs.together(groups) if copies > 1 else scene.costs, scene.job.objective)
    if stages:
        settled = {device: run for at, run in stages for device in (groups[at] if copies > 1 else [at])}
        yield tuple(run for _, run in stages), settled


def _judge(scene: Scene, stages: Sequence[Run], assigned: Assigned, links: Links) -> tuple[_Rank, Plan]:
    """Return how good a plan is, less being better, and the plan."""
    job = scene.job
    latency_ns, peers = route(scene, stages, assigned)
    step_ns = latency_ns
    if job.objective == "throughput":
        wires = [int(scene.costs.wire[a, b]) for a, b in itertools.pairwise(peers)]
        step_ns = max([*wires, *(pace_of(scene, stage, assigned) for stage in stages)])
    moved = sum(_moved_bytes(job, scene.devices[device].holds, run) for device, run in assigned.items())
    score = step_ns * TOKENS_EXPECTED + moved * NS // links.usual.bandwidth_bytes_s
    copies = min(job.copies, *(count(assigned, stage) for stage in stages)) if stages else 0
    largest = max(scene.size_bytes(stage) for stage in stages)
    rank = (-copies, score, latency_ns, len(stages), largest, *(end for _, end in stages))
    named = {scene.devices[device].peer: run for device, run in assigned.items()}
    return rank, Plan(
        stages=tuple(stages),
        assigned=named,
        route=tuple(scene.devices[device].peer for device in peers),
        token_s=latency_ns / NS,
        tokens_per_s=job.batch * NS / step_ns if step_ns else 0.0,
        moved_bytes=moved,
    )


def _moved_bytes(job: Job, holds: Run | None, run: Run) -> int:
    first, end = holds or (0, 0)
    return sum(job.weights_bytes[layer] for layer in range(*run) if not first <= layer < end)


def _missing(scene: Scene) -> int:
    """Say how much is missing: of all together, or of the largest device for the largest layer or for all layers.

    Where there is enough together and only no cut fits, it is what would do if the largest device had it.
    """
    layers = [scene.job.resident_bytes(layer) for layer in range(scene.job.layers)]
    memories = sorted(device.memory_bytes for device in scene.devices)
    largest = memories[-1] if memories else 0
    spread = max(sum(layers) - sum(memories), max(layers) - largest)
    if spread <= 0:
        spread = _left_over(layers, memories[-2::-1]) - largest
    return int(max(min(spread, scene.job.run_bytes((0, scene.job.layers)) - largest), 1))


def _left_over(layers: Sequence[int], memories: Iterable[int]) -> int:
    """Return what is left when each of these memories in turn takes all the next layers that fit it."""
    first = 0
    for memory in memories:
        held = 0
        while first < len(layers) and held + layers[first] <= memory:
            held += layers[first]
            first += 1
    return sum(layers[first:])
