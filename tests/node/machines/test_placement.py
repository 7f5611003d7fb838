"""Who loads what: the stated ranking holds against brute force, all nodes agree, and following the plan ends."""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.node.placement import Device, Job, Plan, Run
from lepton.node.placement import place as place_job

PEERS = "abcdef"
Sizes = list[int]
Held = Mapping[str, Run | None]


def place(sizes: Sequence[int], devices: Iterable[Device], *, copies: int) -> Plan:
    """Place a model that nobody has measured: every device holds something of it if it can."""
    return place_job(Job(weights_bytes=tuple(sizes), copies=copies, spare=True), devices)


@st.composite
def meshes(draw: st.DrawFn, layers_max: int = 4, devices_max: int = 4) -> tuple[Sizes, list[Device], int]:
    """Layer sizes, devices that hold something of the model or nothing, and how many copies are wanted."""
    sizes = draw(st.lists(st.integers(1, 10), min_size=1, max_size=layers_max))
    runs = [(first, end) for first in range(len(sizes)) for end in range(first + 1, len(sizes) + 1)]
    devices = [
        Device(
            peer=peer,
            memory_bytes=draw(st.integers(0, sum(sizes) + 3)),
            holds=draw(st.none() | st.sampled_from(runs)),
        )
        for peer in PEERS[: draw(st.integers(1, devices_max))]
    ]
    return sizes, devices, draw(st.integers(1, 3))


def size(run: Run, sizes: Sizes) -> int:
    return sum(sizes[run[0] : run[1]])


def splits(layers: int) -> Iterator[tuple[Run, ...]]:
    for count in range(layers):
        for cuts in itertools.combinations(range(1, layers), count):
            yield tuple(itertools.pairwise((0, *cuts, layers)))


def least_copies(assigned: Mapping[str, Run], stages: Sequence[Run]) -> int:
    return min(sum(1 for run in assigned.values() if run == stage) for stage in stages)


def best_of_all(sizes: Sizes, devices: Sequence[Device], copies: int) -> tuple[int, int] | None:
    """The most copies of the least copied stage, negative, and the fewest stages with as many."""
    ranks = []
    for stages in splits(len(sizes)):
        for choice in itertools.product((None, *stages), repeat=len(devices)):
            assigned = {device.peer: run for device, run in zip(devices, choice, strict=True) if run is not None}
            room = all(size(choice[i], sizes) <= d.memory_bytes for i, d in enumerate(devices) if choice[i])  # type: ignore[arg-type]
            if room and (least := least_copies(assigned, stages)) > 0:
                ranks.append((-min(least, copies), len(stages)))
    return min(ranks, default=None)


@settings(max_examples=150)
@given(meshes())
def test_no_plan_has_more_copies_or_fewer_stages(mesh: tuple[Sizes, list[Device], int]) -> None:
    sizes, devices, copies = mesh
    plan, best = place(sizes, devices, copies=copies), best_of_all(sizes, devices, copies)
    if best is None:
        assert plan.stages == ()
        assert plan.assigned == {}
        assert plan.missing_bytes > 0
    else:
        assert (-min(least_copies(plan.assigned, plan.stages), copies), len(plan.stages)) == best
        assert plan.missing_bytes == 0


@given(meshes(layers_max=8, devices_max=6), st.randoms(use_true_random=False))
def test_a_plan_is_whole_fits_and_is_the_same_for_all(
    mesh: tuple[Sizes, list[Device], int], rng: random.Random
) -> None:
    sizes, devices, copies = mesh
    plan = place(sizes, devices, copies=copies)
    shuffled = rng.sample(devices, len(devices))
    assert place(sizes, iter(shuffled), copies=copies) == plan
    memory = {device.peer: device.memory_bytes for device in devices}
    assert all(size(run, sizes) <= memory[peer] for peer, run in plan.assigned.items())
    if plan.stages:
        assert [layer for first, end in plan.stages for layer in range(first, end)] == list(range(len(sizes)))
        assert set(plan.assigned.values()) == set(plan.stages)
        idle = [device for device in devices if device.peer not in plan.assigned]
        assert all(size(stage, sizes) > device.memory_bytes for device in idle for stage in plan.stages)
        assert sorted(peer for stage in plan.stages for peer in plan.replicas(stage)) == sorted(plan.assigned)


def following(devices: Sequence[Device], held: Held) -> list[Device]:
    return [Device(peer=d.peer, memory_bytes=d.memory_bytes, holds=held.get(d.peer)) for d in devices]


@given(meshes(layers_max=6, devices_max=6))
def test_a_plan_that_was_followed_stays_the_plan(mesh: tuple[Sizes, list[Device], int]) -> None:
    sizes, devices, copies = mesh
    plan = place(sizes, devices, copies=copies)
    assert place(sizes, following(devices, plan.assigned), copies=copies) == replace(plan, moved_bytes=0)


@given(meshes(layers_max=5, devices_max=6))
def test_a_death_that_leaves_a_copy_of_all_moves_nothing(mesh: tuple[Sizes, list[Device], int]) -> None:
    sizes, devices, copies = mesh
    plan = place(sizes, devices, copies=copies)
    for dead in plan.assigned:
        left = [device for device in following(devices, plan.assigned) if device.peer != dead]
        kept = {peer: run for peer, run in plan.assigned.items() if peer != dead}
        after = place(sizes, left, copies=1)
        if set(kept.values()) == set(plan.stages) and len(after.stages) == len(plan.stages):
            assert after.assigned == kept


@settings(max_examples=50)
@given(meshes(layers_max=5, devices_max=5), st.randoms(use_true_random=False))
def test_nodes_that_load_in_any_order_with_old_news_come_to_rest(
    mesh: tuple[Sizes, list[Device], int], rng: random.Random
) -> None:
    sizes, devices, copies = mesh
    held: dict[str, Run | None] = {device.peer: device.holds for device in devices}
    views = {device.peer: dict(held) for device in devices}

    def load(peer: str) -> bool:
        """Let one node look at what it knows and do its part; whether that changed anything."""
        views[peer][peer] = held[peer]
        wanted = place(sizes, following(devices, views[peer]), copies=copies).assigned.get(peer)
        before, held[peer] = held[peer], wanted
        return wanted != before

    for _ in range(20):  # while news travel slowly and get lost
        for peer in rng.sample(sorted(held), rng.randint(1, len(held))):
            views[peer].update({other: held[other] for other in held if rng.random() < 0.4})
            load(peer)
    for _ in range(len(devices) + 1):  # then everyone hears everything
        moved = False
        for peer in held:
            views[peer] = dict(held)
            moved |= load(peer)
    assert not moved, "with full news the plan must settle within a turn of each node"
    plan = place(sizes, following(devices, held), copies=copies)
    assert {peer: run for peer, run in held.items() if run is not None} == plan.assigned


@pytest.mark.parametrize(
    ("sizes", "memories", "missing"),
    [
        ([10, 10], [], 20),  # nobody is here
        ([10, 10], [12], 8),  # of all memory together
        ([10, 2], [4, 4, 4], 6),  # of the largest device for the largest layer
        ([4, 4, 4], [6, 6], 2),  # enough together, but no cut fits: 8 and 6 would do
        ([1, 3, 3, 3, 3, 3, 1], [10, 10], 0),
        ([1, 3, 3, 3, 3, 3, 1], [9, 9], 1),  # 7 and 10
        ([3, 3], [3, 3], 0),
    ],
)
def test_what_is_missing_is_said(sizes: Sizes, memories: list[int], missing: int) -> None:
    devices = [Device(peer=PEERS[i], memory_bytes=memory) for i, memory in enumerate(memories)]
    assert place(sizes, devices, copies=2).missing_bytes == missing


def test_what_is_loaded_is_kept_where_it_is() -> None:
    held: dict[str, Run] = {"a": (1, 2), "b": (0, 1), "c": (1, 2), "d": (0, 1)}
    devices = [Device(peer=peer, memory_bytes=10, holds=run) for peer, run in held.items()]
    assert place([9, 8], devices, copies=2).assigned == held


def test_more_layers_than_boundaries_that_are_tried() -> None:
    devices = [Device(peer=peer, memory_bytes=30) for peer in PEERS[:4]]
    plan = place([1] * 100, devices, copies=1)
    assert len(plan.stages) == 4
    assert plan.stages[-1][1] == 100


def test_a_model_that_fits_one_device_is_not_cut() -> None:
    devices = [Device(peer=peer, memory_bytes=20) for peer in PEERS[:4]]
    plan = place([5, 5, 5], devices, copies=2)
    assert plan.stages == ((0, 3),)
    assert plan.assigned == dict.fromkeys(PEERS[:4], (0, 3))
