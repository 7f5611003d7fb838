"""Services in processes of their own on several nodes, called from any of them: by name, by class, from a shell."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from lepton.mesh.errors import LinkError, Refused, UsageError
from lepton.node import Node
from lepton.node.control import Control, serve_control
from lepton.node.services.errors import InstanceLost, NotHere, ServiceError
from lepton.node.services.writing.in_json import packed

from .fakes import World, running, until

CODE = '''
import os, signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from lepton.node.services import method, service


@dataclass
class Found:
    what: str
    where: tuple[int, int]
    mask: npt.NDArray[np.uint8] | None = None


@service("eyes", version="{version}", memory="128MB", cores=0.25)
class Eyes:
    """Looks."""

    def setup(self, mesh) -> None:
        self.mesh = mesh

    @method(idempotent=True)
    def see(self, frame: npt.NDArray[np.uint8], what: str = "cat") -> Found:
        if what == "nothing":
            raise ValueError("there is nothing")
        return Found(what, (int(frame.shape[0]), int(frame.sum())), frame)

    @method
    def version(self) -> str:
        return "{version}"

    @method
    async def twice(self, frame: npt.NDArray[np.uint8]) -> list[Found]:
        return [await self.mesh.call("eyes.see", frame, what=what) for what in ("cat", "dog")]

    @method
    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @method
    def slowly(self, path: str) -> str:
        import time
        with open(path, "a") as file:
            file.write("ran")
        time.sleep(1.0)
        return "{version}"

    @method(max_batch_size=16, max_wait_ms=10_000)
    def together(self, x: list[int]) -> list[int]:
        return [len(x)] * len(x)

    @method(concurrency=64)
    async def large(self, megabytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(megabytes << 20, np.uint8)

    @method
    def watch(self, count: int) -> Iterator[int]:
        yield from range(count)

    @method
    async def total(self, frames: AsyncIterator[npt.NDArray[np.uint8]], more: int = 0) -> int:
        return more + sum([int(frame.sum()) async for frame in frames])
'''
FRAME = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text('entry = "eyes:Eyes"\n')
    (folder / "eyes.py").write_text(CODE.replace("{version}", version))
    return folder


@asynccontextmanager
async def deployed(folder: Path, *names: str, replicas: int = 2, **options: Any) -> AsyncIterator[World]:
    async with running(folder, *names, services={"memory": "1GB", "cores": 4.0}, **options) as world:
        first = next(iter(world.nodes.values()))
        await first.services.deploy(write(folder / "v1", "1.0"), replicas=replicas)
        await until(lambda: all(ready(node) == replicas for node in world.nodes.values()))
        yield world


def ready(node: Node) -> int:
    known = node.services.calling.directory.all().get("eyes")
    return sum(len(replica.instances) for replica in known.balancer.replicas) if known else 0


async def frames() -> AsyncIterator[np.ndarray[Any, Any]]:
    for _ in range(3):
        yield FRAME


async def test_services_are_called_from_everywhere_in_every_way(tmp_path: Path) -> None:
    async with deployed(tmp_path, "a", "b", "c") as world:
        for node in world.nodes.values():  # two of them host it, one does not
            found = await node.call("eyes.see", FRAME, what="dog")
            assert (found["what"], found["where"]) == ("dog", [3, 66])
            np.testing.assert_array_equal(found["mask"], FRAME)
            assert [item async for item in node.stream("eyes.watch", 40)] == list(range(40))
            assert await node.call("eyes.total", frames(), more=1) == 3 * 66 + 1
            assert [each["what"] for each in await node.call("eyes.twice", FRAME)] == ["cat", "dog"]
            own = bool(node.services.instances and node.services.instances.running)
            for where in ("here", "anywhere"):
                with (
                    nullcontext() if own or where == "anywhere" else pytest.raises(NotHere, match="runs on this device")
                ):
                    assert await node.client("eyes", where=where).version() == "1.0"
        large = np.random.default_rng(0).integers(0, 255, (1000, 3000), dtype=np.uint8)
        np.testing.assert_array_equal((await node.call("eyes.see", large))["mask"], large)

        with pytest.raises(ServiceError, match="ValueError: there is nothing"):
            await node.call("eyes.see", FRAME, what="nothing")
        with pytest.raises(UsageError, match="frame"):
            await node.call("eyes.see", "no frame")
        with pytest.raises(InstanceLost):
            await node.call("eyes.die")
        assert await node.call("eyes.version") == "1.0"  # at the other meanwhile
        await by_class(node, tmp_path / "v1")
        await a_stream_that_is_not_read(world, node)
        await by_shell(node)


async def by_class(node: Node, folder: Path) -> None:
    sys.path.insert(0, str(folder))
    try:
        import eyes  # type: ignore[import-not-found]

        found = await node.client(eyes.Eyes).see(FRAME)
        assert isinstance(found, eyes.Found)
        assert found.where == (3, 66)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("eyes", None)


async def a_stream_that_is_not_read(world: World, node: Node) -> None:
    """It holds up nobody else, and ends where it is made when it is left."""
    async with node.stream("eyes.watch", 10**9) as items:
        assert await anext(items) == 0
        for _ in range(20):
            assert await node.call("eyes.version") == "1.0"
        assert running_now(world) == 1
    await until(lambda: running_now(world) == 0)


def running_now(world: World) -> int:
    every = [node.services.instances for node in world.nodes.values()]
    return sum(one.load.running for pool in every if pool for one in pool.running.values())


async def by_shell(node: Node) -> None:
    items: list[Any] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, trio.Event())
        control = Control(node.home.path)
        arguments = {"target": "eyes.see", "given": '{"what": "dog"}', "named": ["frame"], "as_lists": False}
        said, _ = await control.ask("call", arguments, [FRAME])
        assert said["result"] == {"what": "dog", "where": [3, 66], "mask": packed(FRAME)}
        arguments = {"target": "eyes.watch", "given": '{"count": 3}', "where": "anywhere"}
        await control.ask("call", arguments, on_progress=items.append)
        assert items == [{"item": 0}, {"item": 1}, {"item": 2}]
        with pytest.raises(UsageError, match=r"has no method 'se'. Did you mean 'see'"):
            await control.ask("call", {"target": "eyes.se", "given": "{}"})
        nursery.cancel_scope.cancel()


async def test_who_has_just_started_waits_until_it_has_heard_of_a_service(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", services={"memory": "1GB", "cores": 4.0}) as world:
        a, b = world.nodes.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.services.wait_deployed, "eyes")
            await trio.testing.wait_all_tasks_blocked()
            await a.services.deploy(write(tmp_path / "v1", "1.0"))
        assert await b.call("eyes.version") == "1.0"
        with pytest.raises(LinkError, match=r"'ears' does not run as it ought to after 0\.01 s"):
            await b.services.wait_deployed("ears", timeout_s=0.01)


async def test_one_node_alone_fills_batches_of_an_instance_elsewhere(tmp_path: Path) -> None:
    async with deployed(tmp_path, "a", "b", replicas=1) as world:
        hosts = [node for node in world.nodes.values() if node.services.instances and node.services.instances.running]
        (asking,) = [node for node in world.nodes.values() if node not in hosts]
        sizes, given = list[int](), list[int]()

        async def together(number: int) -> None:
            sizes.append(await asking.call("eyes.together", number))

        async def large() -> None:
            given.append((await asking.call("eyes.large", 1)).nbytes)

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(together, number)
        assert sorted(sizes) == [16] * 64
        async with trio.open_nursery() as nursery:
            for _ in range(40):  # all at once before it is known how large the answers are
                nursery.start_soon(large)
        assert given == [1 << 20] * 40


async def test_without_the_grant_nobody_is_answered(tmp_path: Path) -> None:
    async with deployed(tmp_path, "a", "b", replicas=1, roles={"b": "trainer"}) as world:
        a, b = world.nodes.values()
        assert await a.call("eyes.version") == "1.0"
        with pytest.raises(Refused, match="lacks the capability 'service:eyes'"):
            await b.call("eyes.version")


async def test_a_connection_that_breaks_under_a_call_does_not_lose_it_or_run_it_twice(tmp_path: Path) -> None:
    async with deployed(tmp_path, "a", "b", replicas=2) as world:
        (a, b), said, ran = world.nodes.values(), list[str](), tmp_path / "ran"

        async def ask() -> None:
            said.append(await a.call("eyes.slowly", str(ran)))

        b.services.scale("eyes", 1)
        await until(lambda: ready(a) == 1)
        caller, host = (a, b) if a.services.instances and not a.services.instances.running else (b, a)
        a = caller
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(ran.exists)
            await caller.mesh._transport.connections[host.mesh.me].aclose()
        assert said == ["1.0"]
        assert ran.read_text() == "ran"
