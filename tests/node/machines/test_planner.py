"""Plans are computed beside the loop, one at a time: whatever a record says, the loop computes none of it."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import trio
from lepton.node import planning
from lepton.node.deployments import DeploymentRecord
from lepton.node.inference import planner as planner_file
from lepton.node.inference.planner import Planner
from lepton.node.inference.view import Asked, View
from lepton.node.picture import Profile
from lepton.node.placement import Plan, place
from lepton.node.planning import PRECISIONS

from .test_lying_records import Said, deployment

MIB = 1 << 20
UNEVEN = tuple(MIB + 1024 * (layer * 37 % 101) for layer in range(256))
PEERS = ("ann", "ben", "eve")


class Changing(Said):
    """A mesh of records that change, with the events that tell of it."""

    def __init__(self, **deployed: DeploymentRecord) -> None:
        self.changed = trio.Event()
        self.say(**deployed)

    def say(self, **deployed: DeploymentRecord) -> None:
        profiles = [(peer, "self", Profile(device=peer, memory_bytes=100 * MIB)) for peer in PEERS]
        records = [("eve", name, record) for name, record in deployed.items()]
        may = {f"{what}:{name}" for what in ("train", "infer") for name in ("lie", "toy")}
        super().__init__(*profiles, *records, may=dict.fromkeys(PEERS, may))
        self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def lie(version: int = 1) -> DeploymentRecord:
    return deployment(version, weights_bytes=UNEVEN, cache_bytes=(), replicas=2)


async def until(mesh: Changing, holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():
            await mesh.changed.wait()


async def test_the_loop_places_no_layer_of_a_lying_record(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[int]()

    def watch(*asked: Any) -> Plan:
        threads.append(threading.get_ident())
        return place(*asked)

    monkeypatch.setattr(planning, "place", watch)
    mesh = Changing(lie=lie())
    planner = Planner(cast("Any", mesh))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planner.run)
        await until(mesh, lambda: "lie" in planner.plans())
        planned = len(threads)
        for _ in range(100):
            planner.plans()
        mesh.say(lie=lie(2))
        assert planner.plans() == {}, "it has changed since"
        await planner.forecast("toy", deployment())
        assert await planner.precision("toy", deployment()) in PRECISIONS
        await until(mesh, lambda: "lie" in planner.plans())
        found = planner.plans()
        nursery.cancel_scope.cancel()
    assert 1 <= planned < len(threads)
    assert threading.get_ident() not in threads
    assert found == View(cast("Any", mesh)).plans(), "the same as who computes at once, as the simulator does"


class Slow:
    """Plans that are ready when the test says so."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []  # of each computation the versions that it saw
        self.together = 0
        self._running = 0
        self.go = threading.Event()

    def __call__(self, _smalls: Any, deployments: Mapping[str, DeploymentRecord], *_: Any) -> dict[str, Plan]:
        self.begun.append([record.version for record in deployments.values()])
        self._running += 1
        self.together = max(self.together, self._running)
        assert self.go.wait(60)
        self._running -= 1
        return {name: Plan(moved_bytes=record.version) for name, record in deployments.items()}


async def test_of_changes_during_a_computation_only_the_last_is_computed_and_what_stayed_has_its_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    monkeypatch.setattr(planner_file, "plans", slow)
    toy, mesh = deployment(1), Changing(toy=deployment(1), lie=lie(2))
    planner = Planner(cast("Any", mesh))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planner.run)
        while not slow.begun:
            await trio.lowlevel.checkpoint()  # the loop goes on
        assert planner.plans() == {}
        for version in range(3, 50):
            mesh.say(toy=toy, lie=lie(version))
            await trio.lowlevel.checkpoint()
        assert slow.begun == [[1, 2]]
        slow.go.set()
        await until(mesh, lambda: "toy" in planner.plans())
        await until(mesh, lambda: "lie" in planner.plans())
        assert planner.plans()["lie"].moved_bytes == 49
        nursery.cancel_scope.cancel()
    assert slow.begun == [[1, 2], [1, 49]]
    assert slow.together == 1


async def test_a_node_that_stops_does_not_wait_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(planner_file, "plans", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Planner(cast("Any", Changing(lie=lie()))).run)
        while not slow.begun:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not slow.go.is_set()
    slow.go.set()


async def test_other_news_computes_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    slow.go.set()
    monkeypatch.setattr(planner_file, "plans", slow)
    mesh, looks = Changing(toy=deployment(1)), list[int]()

    class Looking(Planner):
        def asked(self, more: Mapping[str, DeploymentRecord] | None = None) -> Asked:
            looks.append(1)
            return super().asked(more)

    planner = Looking(cast("Any", mesh))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planner.run)
        await until(mesh, lambda: "toy" in planner.plans())
        for _ in range(20):
            seen = len(looks)
            mesh.notify()
            while len(looks) == seen:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(slow.begun) == 1
