"""Where replicas lie: within what devices give, spread, the same for everybody, and left where they are."""

import random
from collections.abc import Mapping

import pytest
from lepton.node.services.deciding.placing import Device, Job, Key, Placement, place


def device(name: str, memory: int = 100, cores_m: int = 8000) -> Device:
    return Device(peer=name, memory_bytes=memory, cores_m=cores_m)


def job(count: int, *may: str, name: str = "eyes", memory: int = 10, cores_m: int = 1000) -> Job:
    return Job(key=(name, "v1"), count=count, memory_bytes=memory, cores_m=cores_m, may=frozenset(may))


def scene(seed: int) -> tuple[list[Job], list[Device]]:
    rng = random.Random(seed)
    devices = [device(f"d{n}", rng.randrange(0, 120), rng.randrange(0, 9000)) for n in range(rng.randrange(1, 9))]
    names = [its.peer for its in devices]
    jobs = [
        job(
            rng.randrange(0, 9),
            *rng.sample(names, rng.randint(1, len(names))),
            name=f"s{n}",
            memory=rng.randrange(1, 60),
            cores_m=rng.choice([250, 1000, 2500]),
        )
        for n in range(rng.randrange(1, 6))
    ]
    return jobs, devices


def taken(jobs: list[Job], found: Placement, peer: str) -> tuple[int, int]:
    counts = [(its, found.count(its.key, peer)) for its in jobs]
    return sum(its.memory_bytes * n for its, n in counts), sum(its.cores_m * n for its, n in counts)


def moves(before: Mapping[Key, Mapping[str, int]], after: Placement) -> int:
    return sum(max(number - after.count(key, peer), 0) for key, at in before.items() for peer, number in at.items())


@pytest.mark.parametrize("seed", range(100))
def test_no_device_gives_more_than_it_has_and_all_compute_the_same(seed: int) -> None:
    jobs, devices = scene(seed)
    found = place(jobs, devices, {})
    rng = random.Random(seed)
    assert found == place(rng.sample(jobs, len(jobs)), rng.sample(devices, len(devices)), {})
    for its in devices:
        memory, cores = taken(jobs, found, its.peer)
        assert memory <= its.memory_bytes
        assert cores <= its.cores_m
    for asked in jobs:
        placed = found.counts[asked.key]
        assert sum(placed.values()) + found.missing.get(asked.key, 0) == asked.count
        assert set(placed) <= asked.may


@pytest.mark.parametrize("seed", range(100))
def test_what_was_followed_stays(seed: int) -> None:
    jobs, devices = scene(seed)
    running: Mapping[Key, Mapping[str, int]] = {}
    for _ in range(5):
        found = place(jobs, devices, running)
        running = {key: {peer: n for peer, n in at.items() if n} for key, at in found.counts.items()}
    again = place(jobs, devices, running)
    assert {key: {p: n for p, n in at.items() if n} for key, at in again.counts.items()} == running


@pytest.mark.parametrize("seed", range(100))
def test_a_device_that_leaves_moves_only_what_it_had(seed: int) -> None:
    names = [f"d{n}" for n in range(3 + seed % 6)]
    devices = [device(name, 1000) for name in names]
    jobs = [job(1 + (seed + n) % 7, *names, name=f"s{n}") for n in range(4)]
    before = place(jobs, devices, {})
    gone = names[seed % len(names)]
    running = {key: {peer: n for peer, n in at.items() if peer != gone} for key, at in before.counts.items()}
    assert moves(running, place(jobs, [its for its in devices if its.peer != gone], running)) == 0


def test_replicas_spread_and_different_services_lie_on_different_devices() -> None:
    names = [f"d{n}" for n in range(8)]
    found = place([job(8, *names)], [device(name) for name in names], {})
    assert set(found.counts["eyes", "v1"].values()) == {1}
    single = [job(1, *names, name=f"s{n}") for n in range(40)]
    found = place(single, [device(name, 1000, 99_000) for name in names], {})
    assert len({peer for at in found.counts.values() for peer in at}) == 8


def test_a_device_that_comes_takes_over_only_what_is_uneven() -> None:
    running = {("eyes", "v1"): {"a": 3, "b": 1}}
    found = place([job(4, "a", "b", "c")], [device(name) for name in "abc"], running)
    assert found.counts["eyes", "v1"] == {"a": 2, "b": 1, "c": 1}
    even = {("eyes", "v1"): {"a": 2, "b": 1}}
    assert place([job(3, "a", "b")], [device(name) for name in "ab"], even).counts["eyes", "v1"] == {"a": 2, "b": 1}


def test_a_service_does_not_drive_out_another() -> None:
    running = {("zebra", "v1"): {"a": 5}}
    jobs = [job(8, "a", name="ant", memory=20), job(5, "a", name="zebra", memory=10)]
    found = place(jobs, [device("a")], running)
    assert found.counts == {("ant", "v1"): {"a": 2}, ("zebra", "v1"): {"a": 5}}
    assert found.missing == {("ant", "v1"): 6}


def test_what_comes_has_to_fit_beside_what_goes() -> None:
    found = place([job(3, "a", "b", memory=30)], [device("a"), device("b")], {}, {"a": 95, "b": 60})
    assert found.counts == {("eyes", "v1"): {"b": 1}}
    assert found.missing == {("eyes", "v1"): 2}
