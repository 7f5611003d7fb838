"""Placement: equal to brute force on small meshes, how long it takes, and how far other people's splits are behind.

Run ``make bench-place`` or ``python -m tests.bench.place`` from the root of the project (JSON=FILE writes the figures
as flat JSON, CLUSTERS changes the effort). The clusters are drawn: 8 devices from desktops with a graphics card to
single-board computers, equal links, a model of 32 blocks of 200 MiB with an embedding and a head of 500 MiB. A
device's floating-point speed follows its memory's bandwidth only roughly, as in life (log-normal, sigma 0.5). Ratios
are to the exact optimum of one pipeline; 1 is the best there is. Those that find no split at all are counted apart.
"""

import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lepton.node.placement import Device, Job, Link, Links, place
from lepton.node.placement.blocks import Stages
from lepton.node.placement.costs import NEVER, Costs, measure
from lepton.node.placement.pipeline import latency_of, pace_of, pipeline

from . import splits
from .splits import Cluster

CLUSTERS = int(os.environ.get("CLUSTERS", "300"))
SMALL = 400  # meshes for brute force
TIMED = 15
MIB = 2**20
# Memory in MiB and nanoseconds for a MiB of weights: graphics card, desktop, laptop, mini PC, single-board computer.
KINDS = (
    ((6000, 16_000), 4_000),
    ((4000, 16_000), 25_000),
    ((2000, 8000), 40_000),
    ((2000, 6000), 70_000),
    ((1000, 4000), 250_000),
)

Figures = dict[str, float]


def model(blocks: int) -> Job:
    """A language model: an embedding of which a step reads one row, blocks, a head."""
    return Job(
        weights_bytes=(500 * MIB, *([200 * MIB] * blocks), 500 * MIB),
        units=(0, *([200 * 1024] * blocks), 500 * 1024),
        width_bytes=8192,
    )


def devices(count: int, rng: random.Random) -> list[Device]:
    found = []
    for index in range(count):
        (low, high), mib_ns = rng.choice(KINDS)
        table = ((1024, int(mib_ns * rng.uniform(0.6, 1.6))),)
        found.append(
            Device(peer=f"{index:02}", memory_bytes=rng.randint(low, high) * MIB, table=table, layer_ns=50_000)
        )
    return found


# -- against brute force ----------------------------------------------------------------------------------------------


def brute(costs: Costs) -> Iterator[Stages]:
    for count in range(1, min(costs.devices, costs.layers) + 1):
        for chosen in itertools.permutations(range(costs.devices), count):
            for cuts in itertools.combinations(range(1, costs.layers), count - 1):
                runs = itertools.pairwise((0, *cuts, costs.layers))
                stages = list(zip(chosen, runs, strict=True))
                if all(costs.run[device, first, end] < NEVER for device, (first, end) in stages):
                    yield stages


def small(rng: random.Random) -> Costs:
    blocks, known = rng.randint(1, 4), devices(rng.randint(1, 4), rng)
    job = model(blocks)
    if rng.random() < 0.5:  # a program, whose layers are all different
        sizes = tuple(rng.randint(100, 3000) for _ in range(blocks + 2))
        job = Job(weights_bytes=tuple(size * MIB for size in sizes), units=tuple(size * 1024 for size in sizes))
    pairs = itertools.permutations([device.peer for device in known], 2)
    far = {pair: Link(latency_ns=rng.randint(1, 40) * 250_000) for pair in pairs}
    return measure(job, known, Links(others=far if rng.random() < 0.5 else {}))


def against_brute_force() -> Figures:
    """Count on how many small meshes both objectives are exactly those of brute force."""
    equal = 0
    for seed in range(SMALL):
        costs = small(random.Random(seed))
        known = [(latency_of(costs, stages), pace_of(costs, stages)) for stages in brute(costs)]
        quick, steady = pipeline(costs, "latency"), pipeline(costs, "throughput")
        if not known:
            equal += quick == steady == []
        elif quick and steady:
            is_quickest = latency_of(costs, quick) == min(latency for latency, _ in known)
            equal += is_quickest and pace_of(costs, steady) == min(pace for _, pace in known)
    print(f"equal to brute force in latency and throughput: {equal} of {SMALL} small meshes")  # noqa: T201
    return {"placement_vs_brute_force_cases": equal / SMALL, "placement_brute_force_tried": SMALL}


# -- how long it takes ------------------------------------------------------------------------------------------------


def timed() -> Figures:
    """Time whole plans for 32 devices and 80 layers."""
    figures = {}
    for name, objective, far in (
        ("placement_ms_32x80", "latency", False),
        ("placement_ms_32x80_throughput", "throughput", False),
        ("placement_ms_32x80_unequal", "latency", True),
    ):
        took = []
        for seed in range(TIMED):
            rng = random.Random(seed)
            known, base = devices(32, rng), model(78)
            pairs = itertools.permutations([device.peer for device in known], 2)
            others = {pair: Link(latency_ns=rng.randint(1, 40) * 250_000) for pair in pairs} if far else {}
            job = Job(
                weights_bytes=base.weights_bytes, units=base.units, width_bytes=base.width_bytes,
                objective="throughput" if objective == "throughput" else "latency",
            )  # fmt: skip
            links = Links(others=others)
            began = time.perf_counter()
            plan = place(job, known, links)
            took.append((time.perf_counter() - began) * 1000)
            assert plan.stages, "32 such devices hold 17 GB"
        figures[name] = statistics.median(took)
        print(f"32 devices x 80 layers, {name.rpartition('80')[2] or '_latency'}: {figures[name]:.1f} ms")  # noqa: T201
    return figures


# -- against others ---------------------------------------------------------------------------------------------------


def against_others() -> Figures:
    """Draw clusters that can hold the model; print how far each split is from the optimum, and the worst tenth."""
    latencies: dict[str, list[float]] = {}
    paces: dict[str, list[float]] = {}
    none: dict[str, int] = {}
    seed = drawn = 0
    while drawn < CLUSTERS:
        seed += 1
        rng = random.Random(seed)
        known = devices(8, rng)
        costs = measure(model(32), known, Links())
        best, steady = pipeline(costs, "latency"), pipeline(costs, "throughput")
        if not best:
            continue
        drawn += 1
        flops = [rng.lognormvariate(0, 0.5) / device.table[0][1] for device in known]
        cluster = Cluster(costs, [device.memory_bytes for device in known], flops)
        quickest, pace = latency_of(costs, best), pace_of(costs, steady)
        for name, (latency, took) in _others(cluster, rng).items():
            if latency >= NEVER:
                none[name] = none.get(name, 0) + 1
                continue
            latencies.setdefault(name, []).append(latency / quickest)
            paces.setdefault(name, []).append(took / pace)
    return _table(latencies, paces, none)


def _others(cluster: Cluster, rng: random.Random) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for name, split in (("exo", splits.exo), ("parallax", splits.parallax), ("cake", splits.cake)):
        stages = split(cluster, rng)
        found[name] = (NEVER, NEVER)
        if stages:
            found[name] = (latency_of(cluster.costs, stages), pace_of(cluster.costs, stages))
    held = splits.petals(cluster, rng)
    found["petals"] = (splits.petals_latency(cluster, held), splits.petals_pace(cluster, held))
    return found


def _table(latencies: dict[str, list[float]], paces: dict[str, list[float]], none: dict[str, int]) -> Figures:
    figures: Figures = {}
    print(f"{CLUSTERS} mixed clusters of 8 devices, times the optimum (median, 90th percentile):")  # noqa: T201
    for name, times in latencies.items():
        (middle, high), (slow, slower) = _spread(times), _spread(paces[name])
        print(  # noqa: T201
            f"  {name:9} latency {middle:5.2f} {high:6.2f}   time per token of many sessions {slow:5.2f} {slower:6.2f}"
            f"   no split found {none.get(name, 0)}"
        )
        figures |= {f"{name}_latency": middle, f"{name}_latency_p90": high}
        figures |= {f"{name}_throughput": slow, f"{name}_throughput_p90": slower}
        figures[f"{name}_no_split"] = none.get(name, 0)
    return figures


def _spread(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.9 * (len(ordered) - 1))]


def main() -> None:
    figures = against_brute_force() | timed() | against_others()
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
