"""Who loads which layers: a pure function of the picture, computed by every node for itself. No planner node.

Among contiguous splits in which every stage fits the memory of the devices that hold it, the best is, in this order:
the most copies of the least copied stage (up to what was asked: a copy is what makes a death invisible), the fewest
stages (a hop costs more than it brings), the fewest bytes to move from what is loaded now, the smallest largest stage.
Copies and stages are exact; who takes which stage is chosen greedily, so now and then a few more bytes move than need.
Equal pictures give equal plans on every node, and a plan that was followed stays the plan.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

# Boundaries tried in a long model: more than this and the number of splits outgrows a second.
_BOUNDARIES_MAX = 12
_STAGES_MAX = 6  # each further hop adds latency and halves nothing

Run = tuple[int, int]  # layers [first, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one device offers: bytes of weights that it may hold, and what of this model it holds now."""

    peer: str
    memory_bytes: int
    holds: Run | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages in order, and who serves which. ``missing_bytes`` > 0: no plan, the largest device lacks that much."""

    stages: tuple[Run, ...] = ()
    assigned: Mapping[str, Run] = field(default_factory=dict)
    missing_bytes: int = 0

    def replicas(self, stage: Run) -> tuple[str, ...]:
        return tuple(sorted(peer for peer, run in self.assigned.items() if run == stage))


def place(layer_bytes: Sequence[int], devices: Iterable[Device], *, copies: int) -> Plan:
    """Plan who serves a model of these layers. A device serves at most one stage of a model."""
    known = sorted(devices, key=lambda device: device.peer)
    best: tuple[tuple[int, ...], Plan] | None = None
    for stages in _splits(len(layer_bytes), min(_STAGES_MAX, len(known))):
        sizes = {stage: sum(layer_bytes[stage[0] : stage[1]]) for stage in stages}
        assigned = _assign(sizes, known, copies)
        if assigned is None:
            continue
        held = {device.peer: device.holds for device in known}
        least = min(sum(1 for run in assigned.values() if run == stage) for stage in stages)
        moved = sum(sizes[run] for peer, run in assigned.items() if held[peer] != run)
        rank = (-min(least, copies), len(stages), moved, max(sizes.values()), *(end for _, end in stages))
        if best is None or rank < best[0]:
            best = (rank, Plan(stages=stages, assigned=assigned))
    return best[1] if best is not None else Plan(missing_bytes=_missing(layer_bytes, known))


def _splits(layers: int, stages_max: int) -> Iterable[tuple[Run, ...]]:
    tried = min(_BOUNDARIES_MAX, layers - 1)
    inner = sorted({round(float(cut)) for cut in np.linspace(1, layers - 1, tried)}) if layers > 1 else []
    for count in range(1, min(stages_max, layers) + 1):
        for cuts in itertools.combinations(inner, count - 1):
            bounds = (0, *cuts, layers)
            yield tuple(itertools.pairwise(bounds))


def _assign(sizes: Mapping[Run, int], devices: Sequence[Device], copies: int) -> dict[str, Run] | None:
    """Give every stage as many devices as all can have, then those more that can, then use who is left.

    Returns None when a stage gets nobody.
    """
    by_size = sorted(sizes, key=lambda stage: (-sizes[stage], stage))
    for least in range(copies, 0, -1):
        assigned: dict[str, Run] = {}
        # Largest stage first is exact: whoever can hold it can hold every smaller one, so it matters not who is taken.
        if all(_take(stage, assigned, sizes, devices) for stage in by_size for _ in range(least)):
            break
    else:
        return None
    for _ in range(least, copies):
        for stage in by_size:
            _take(stage, assigned, sizes, devices)
    for device in devices:  # whoever is left keeps what it holds, or helps the least copied stage
        fitting = [stage for stage in by_size if sizes[stage] <= device.memory_bytes]
        if fitting and device.peer not in assigned:
            counts = {stage: sum(1 for run in assigned.values() if run == stage) for stage in fitting}
            keep = device.holds if device.holds in counts else None
            assigned[device.peer] = keep or min(fitting, key=lambda stage: (counts[stage], stage))
    return assigned


def _take(stage: Run, assigned: dict[str, Run], sizes: Mapping[Run, int], devices: Sequence[Device]) -> bool:
    """Give a stage one more device, if one is free that has the room."""
    peer = _pick(stage, sizes, [device for device in devices if device.peer not in assigned])
    if peer is not None:
        assigned[peer] = stage
    return peer is not None


def _pick(stage: Run, sizes: Mapping[Run, int], free: Iterable[Device]) -> str | None:
    """Choose who takes a stage: who holds it, else who holds nothing of this plan, else anyone with the room."""

    def preference(device: Device) -> tuple[int, str]:
        if device.holds == stage:
            return (0, device.peer)
        return (2 if device.holds in sizes else 1, device.peer)

    fitting = [device for device in free if device.memory_bytes >= sizes[stage]]
    return min(fitting, key=preference).peer if fitting else None


def _missing(layer_bytes: Sequence[int], devices: Sequence[Device]) -> int:
    """Say how much is missing: of all memory together, or of the largest device for the largest layer."""
    together = math.fsum(device.memory_bytes for device in devices)
    largest = max((device.memory_bytes for device in devices), default=0)
    return int(max(sum(layer_bytes) - together, max(layer_bytes) - largest, 1))
