"""The best pipeline equals that of brute force over all contiguous splits, devices and orders."""

import itertools
import random
from collections.abc import Iterator

import pytest
from lepton.node.placement import Device, Job, Link, Links, orders
from lepton.node.placement.blocks import Stages
from lepton.node.placement.costs import NEVER, Costs, measure
from lepton.node.placement.pipeline import front, latency_of, pace_of, pipeline, quickest

CASES = 300


def mesh(seed: int) -> Costs:
    """Draw 1 to 4 devices and 1 to 6 layers; blocks and links are equal about every other time."""
    rng = random.Random(seed)
    layers, count = rng.randint(1, 6), rng.randint(1, 4)
    weights, units = [rng.randint(1, 9)] * layers, [rng.randint(1, 9) * 1000] * layers
    if rng.random() < 0.5:  # a program
        weights, units = [rng.randint(1, 9) for _ in weights], [rng.randint(1, 9) * 1000 for _ in units]
    elif layers > 2:  # a language model: embedding, blocks, head
        weights[0], weights[-1] = rng.randint(0, 9), rng.randint(1, 20)
        units[0], units[-1] = rng.randint(0, 5), rng.randint(0, 30_000)
    devices = [
        Device(
            peer=f"p{index}",
            memory_bytes=rng.randint(sum(weights) // 4, sum(weights) + 5),
            table=(
                (rng.randint(1, 20_000), rng.randint(1000, 3_000_000)),
                (30_000, rng.randint(3_000_000, 30_000_000)),
            ),
            layer_ns=rng.choice([0, 10_000]),
        )
        for index in range(count)
    ]
    others = {
        (a.peer, b.peer): Link(
            latency_ns=rng.randint(1, 20) * 500_000, bandwidth_bytes_s=rng.choice([1_000_000, 100_000_000])
        )
        for a, b in itertools.permutations(devices, 2)
    }
    job = Job(
        weights_bytes=tuple(weights), units=tuple(units), width_bytes=rng.choice([0, 1000, 100_000]), batch=2
    )  # fmt: skip
    return measure(job, devices, Links(others=others if rng.random() < 0.5 else {}))


def every(costs: Costs) -> Iterator[Stages]:
    for count in range(1, min(costs.devices, costs.layers) + 1):
        for devices in itertools.permutations(range(costs.devices), count):
            for cuts in itertools.combinations(range(1, costs.layers), count - 1):
                runs = list(itertools.pairwise((0, *cuts, costs.layers)))
                if all(
                    costs.run[device, first, end] < NEVER for device, (first, end) in zip(devices, runs, strict=True)
                ):
                    yield list(zip(devices, runs, strict=True))


@pytest.mark.parametrize("seed", range(CASES))
def test_no_pipeline_is_quicker_and_none_has_a_better_pace(seed: int) -> None:
    costs = mesh(seed)
    known = [(latency_of(costs, stages), pace_of(costs, stages)) for stages in every(costs)]
    quick, steady = pipeline(costs, "latency"), pipeline(costs, "throughput")
    if not known:
        assert quick == steady == []
        return
    assert latency_of(costs, quick) == min(latency for latency, _ in known)
    assert (pace_of(costs, steady), latency_of(costs, steady)) == min((pace, latency) for latency, pace in known)


@pytest.mark.parametrize("seed", range(60))
def test_the_front_holds_every_trade_between_latency_and_pace(seed: int) -> None:
    costs = mesh(seed)
    known = {(latency_of(costs, stages), pace_of(costs, stages)) for stages in every(costs)}
    best = {(a, b) for a, b in known if not any((c, d) != (a, b) and c <= a and d <= b for c, d in known)}
    assert {(latency, pace) for latency, pace, _ in front(costs)} == best


def test_a_search_along_orders_is_never_better_and_seldom_worse_than_the_exact_one() -> None:
    worse = 0
    for seed in range(CASES):
        costs = mesh(seed)
        several, stages = orders.quickest(costs)
        if stages:
            assert several == latency_of(costs, stages)
            assert several >= quickest(costs)[0]
            alone = int(costs.run[:, 0, -1].min())
            worse += min(several, alone) > quickest(costs)[0]
    assert worse < CASES // 20
