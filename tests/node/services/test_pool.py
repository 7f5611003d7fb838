"""Instances in processes of their own: they answer, and whatever one does costs it alone."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from lepton.mesh.errors import LinkError, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.rpc.methods import Answer
from lepton.mesh.tensors import Array
from lepton.node.services.errors import InstanceLost, NotHere, ServiceError
from lepton.node.services.hosting import Wanted
from lepton.node.services.instances import kin, process
from lepton.node.services.instances.pool import Pool, mark_of, open_pool
from lepton.node.services.instances.running import Running
from lepton.node.services.messages import Asked, Given
from lepton.node.services.spec import MethodSpec, Needs, ServiceSpec
from lepton.node.services.writing import values

CODE = '''
"""A service that does as it is told."""
import os, socket, subprocess, sys, threading, time
from collections.abc import AsyncIterator, Iterator
import numpy as np, trio
from numpy.typing import NDArray
from lepton.node.services import method, service


@service("thing", version="1")
class Thing:
    def setup(self, mesh) -> None:
        self.mesh, self.kept, self.seen = mesh, [], []
        print("set up in", os.getpid())

    @method
    def pid(self) -> int: return os.getpid()

    @method
    def twice(self, x: NDArray[np.float32], times: int = 2) -> NDArray[np.float32]: return x * times

    @method
    def fail(self, text: str) -> None: raise KeyError(text)

    @method
    def leave(self) -> None: sys.exit(3)

    @method
    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @method(concurrency=4, timeout_s=60)
    async def wait(self, seconds: float) -> float:
        self.seen.append("began")
        try:
            await trio.sleep(seconds)
        finally:
            self.seen.append("ended")
        return seconds

    @method
    def saw(self) -> list[str]: return self.seen

    @method(max_batch_size=4, max_wait_ms=10_000, concurrency=2)
    def half(self, n: list[int]) -> list[tuple[int, int]]:
        if 13 in n: raise ValueError("unlucky")
        return [(each // 2, len(n)) for each in n]

    @method
    def count(self, to: int) -> Iterator[int]:
        for n in range(to):
            if n == 50: raise RuntimeError("fifty")
            yield n

    @method
    async def forever(self) -> AsyncIterator[int]:
        n = 0
        while True:
            yield (n := n + 1)

    @method
    async def add(self, first: int, rest: AsyncIterator[int]) -> int:
        return first + sum([n async for n in rest])

    @method
    async def ask(self, name: str) -> list[object]:
        return [await self.mesh.call(name, 1, x=np.ones(2)), dict(self.mesh.devices)]

    @method(timeout_s=60)
    def do(self, what: str) -> None: exec_(what, self)

    @method(timeout_s=60)
    async def do_async(self, what: str) -> None: exec_(what, self)


def exec_(what, self):
    match what:
        case "exit": os._exit(7)
        case "close": os.closerange(3, 256); time.sleep(60)
        case "garbage":
            for fd in range(3, 64):
                try: socket.socket(fileno=os.dup(fd)).send(b"\\xff" * 4096)
                except OSError: pass
            time.sleep(60)
        case "leak":
            while True: self.kept.append(np.ones(2_000_000)); time.sleep(0.02)
        case "grab": self.kept.append(np.ones(10**12))
        case "flood":
            for _ in range(20_000): print("x" * 100)
        case "loop":
            while True: pass
        case "fork":
            if os.fork() == 0:
                while True: time.sleep(1)
            print("forked", flush=True); os._exit(0)
        case "daemon" | "fat daemon":
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    kept = np.ones(60_000_000) if what == "fat daemon" else None
                    while True: time.sleep(1)
                os._exit(0)
            if what == "daemon": os._exit(5)
        case "bomb":
            while True:
                if os.fork() == 0:
                    while True: time.sleep(1)
                time.sleep(0.02)
        case "huge": raise ValueError("y" * 10_000_000)
        case _: raise ValueError(what)
'''
ME = PeerId("me")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thing.py").write_text(CODE, "utf-8")
    return tmp_path


KINDS = {"count": "server_stream", "forever": "server_stream", "add": "client_stream"}
UNARY = ("pid", "twice", "fail", "leave", "sleep", "saw", "ask", "do", "do_async")


def spec(memory_bytes: int = 300_000_000) -> ServiceSpec:
    methods = [MethodSpec(name=name, takes="{}", gives="{}", timeout_s=60) for name in UNARY]
    methods += [MethodSpec(name=name, kind=kind, takes="{}", gives="{}") for name, kind in KINDS.items()]  # type: ignore[arg-type]
    methods.append(MethodSpec(name="wait", takes="{}", gives="{}", concurrency=4, timeout_s=60))
    methods.append(MethodSpec(name="half", takes="{}", gives="{}", concurrency=2, batch_size_max=4))
    needs = Needs(memory_bytes=memory_bytes)
    return ServiceSpec(name="thing", version="1", entry="thing:Thing", methods=tuple(methods), needs=needs)


def wanted(folder: Path, **changes: Any) -> Wanted:
    return Wanted(**{"id": "thing-1", "spec": spec(), "bundle": "0" * 64, "folder": folder / "bundle", **changes})


class Here:
    """A pool with one instance, and calls to it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    @property
    def instance(self) -> Running:
        running = self.pool.running["thing-1"]
        assert isinstance(running, Running)
        return running

    async def until(self, so: Callable[[], bool]) -> None:
        with trio.fail_after(120):
            while not so():
                await self.pool.changed.wait()

    async def ready(self) -> None:
        await self.until(lambda: self.instance.state == "ready")

    async def call(self, method: str, within_s: float = 30, **parameters: object) -> Any:
        asked, arrays = ask(method, parameters)
        answer = await self.instance.call(ME, asked, arrays, deadline=trio.current_time() + within_s)
        return values.decode(answer.message.value, answer.arrays)


def ask(method: str, parameters: dict[str, object]) -> tuple[Asked, list[Array]]:
    value, arrays = values.encode(parameters)
    return Asked(method=method, value=value, request="ab" * 8), arrays


class Outward:
    """A mesh that says what it was asked."""

    async def call(self, name: str, positional: Any, named: Any, *, request: str, deadline: float) -> object:
        if name == "nowhere.x":
            raise LinkError("Nobody has it.")
        return [name, positional, named["x"], request, deadline > trio.current_time()]


@asynccontextmanager
async def here(folder: Path, **changes: Any) -> AsyncIterator[Here]:
    async with open_pool(folder / "logs", Outward()) as pool:  # type: ignore[arg-type]
        found = Here(pool)
        pool.start(wanted(folder, **changes))
        yield found


async def test_an_instance_answers(folder: Path) -> None:
    async with here(folder, devices={"camera": "/dev/video0"}) as it:
        with pytest.raises(NotHere, match="is starting"):
            await it.call("pid")
        await it.ready()
        assert await it.call("pid") not in {os.getpid(), 0}
        assert (await it.call("twice", x=np.arange(3.0), times=3)).tolist() == [0, 3, 6]
        large = np.ones(3_000_000, np.float32)
        assert np.array_equal(await it.call("twice", x=large), large * 2)
        with pytest.raises(ServiceError, match=r"thing\.fail failed: KeyError: 'why' \(request abababab"):
            await it.call("fail", text="why")
        with pytest.raises(ServiceError, match="SystemExit: 3"):
            await it.call("leave")
        with pytest.raises(ServiceError, match="yyy"):
            await it.call("do", what="huge")
        with pytest.raises(UsageError, match=r"Thing\.twice: its parameter 'x': Expected an array"):
            await it.call("twice", x="no")
        with pytest.raises(UsageError, match=r"needs its parameter 'x'"):
            await it.call("twice")
        with pytest.raises(UsageError, match=r"has no parameter 'y'; it takes x, times"):
            await it.call("twice", x=large[:1], y=1)
        with pytest.raises(UsageError, match="has no method 'nothing'"):
            await it.call("nothing")
        with pytest.raises(UsageError, match="was called as unary"):
            await it.call("count", to=1)
        await meshed(it)
        await batched(it)
        await streams(it)
        assert any("KeyError: 'why'" in line for line in it.pool.logs("thing", lines=1000))
        assert it.pool.logs("thing", lines=1000)[0].startswith("thing-1 1: set up in")
        trace = [line for line in it.pool.logs("thing", lines=1000) if "File " in line]
        assert Path(trace[0].split('"')[1]).name == "thing.py"  # nothing of ours stands above it
        assert "Traceback" in (folder / "logs" / "thing" / "thing-1.log").read_text("utf-8")
        assert it.instance.restarts == 0
        assert it.instance.load.running == 0


async def meshed(it: Here) -> None:
    told, devices = await it.call("ask", name="other.method")
    assert (told[:2], told[2].tolist(), told[3:]) == (["other.method", [1]], [1, 1], ["ab" * 8, True])
    assert devices == {"camera": "/dev/video0"}
    with pytest.raises(ServiceError, match=r"LinkError: Nobody has it"):
        await it.call("ask", name="nowhere.x")


async def batched(it: Here) -> None:
    said: dict[int, Any] = {}

    async def one(n: int) -> None:
        try:
            said[n] = await it.call("half", n=n)
        except ServiceError as error:
            said[n] = str(error)

    for batch in ((12, 13, 14, 15), (40, 42, 44, 46)):
        async with trio.open_nursery() as nursery:
            for n in batch:
                nursery.start_soon(one, n)
    assert [said[n] for n in (40, 42, 44, 46)] == [[n // 2, 4] for n in (40, 42, 44, 46)]
    assert [said[n] for n in (12, 14, 15)] == [[6, 1], [7, 1], [7, 1]]
    assert "unlucky" in said[13]


async def streams(it: Here) -> None:
    deadline, found = trio.current_time() + 30, list[int]()

    async def count() -> None:
        async with it.instance.stream(ME, *ask("count", {"to": 100}), deadline=deadline) as items:
            async for item in items:
                found.append(values.decode(item.message.value, item.arrays))

    with pytest.raises(ServiceError, match="RuntimeError: fifty"):
        await count()
    assert found == list(range(50))
    async with it.instance.stream(ME, *ask("forever", {}), deadline=deadline) as items:
        assert [values.decode((await anext(items)).message.value, ()) for _ in range(40)] == list(range(1, 41))

    async def numbers(last: object) -> AsyncIterator[Answer[Given]]:
        for n in (*range(40), last):
            value, arrays = values.encode(n)
            yield Answer(Given(value=value), arrays)

    summed = await it.instance.feed(ME, *ask("add", {"first": 1}), numbers(40), deadline=deadline)
    assert values.decode(summed.message.value, summed.arrays) == 1 + sum(range(41))
    with pytest.raises(ServiceError, match="an item of 'rest'"):
        await it.instance.feed(ME, *ask("add", {"first": 1}), numbers("x"), deadline=deadline)


async def test_calls_beyond_the_deadline_are_stopped_and_those_in_line_did_not_run(folder: Path) -> None:
    async with here(folder) as it:
        await it.ready()
        with pytest.raises(LinkError, match=r"thing\.wait was not done"):
            await it.call("wait", within_s=2.0, seconds=60)  # by then it began
        await seen(it, ["began", "ended"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_long, it)
            await seen(it, ["began", "ended", "began"])
            nursery.cancel_scope.cancel()
        await seen(it, ["began", "ended"] * 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, it, 3.0)
            await trio.testing.wait_all_tasks_blocked()
            assert it.instance.load.running == 1
            with pytest.raises(NotHere, match="did not have its turn"):
                await it.call("sleep", within_s=0.1, seconds=0)
        assert it.instance.restarts == 0


async def seen(it: Here, wanted: list[str]) -> None:
    """Wait until the instance has seen this: a cancelled call's code ends a little later than its caller hears."""
    with trio.fail_after(60):
        while await it.call("saw") != wanted:  # noqa: ASYNC110 - the instance is another process
            await trio.sleep(0.01)


async def wait_long(it: Here) -> None:
    await it.call("wait", seconds=60)


async def swallow(it: Here, seconds: float) -> None:
    await it.call("sleep", seconds=seconds)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("exit", "ended by itself with status 7"),
        ("close", ""),
        ("garbage", "left its socket: A frame announces"),
        ("leak", "MB of memory, and may take 300 MB"),
        ("fork", "ended by itself with status 0"),
    ],
)
async def test_what_it_does_costs_it_alone_and_it_is_started_again(what: str, reason: str, folder: Path) -> None:
    async with here(folder) as it:
        await it.ready()
        first = await it.call("pid")
        with pytest.raises(InstanceLost, match=r"while it worked on 'do' \(.*whether the work was done is not known"):
            await it.call("do", what=what)
        await it.until(lambda: it.instance.restarts == 1)
        assert reason in it.instance.reason
        await it.ready()
        assert await it.call("pid") != first
        await gone(first)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("daemon", "ended by itself with status 5"),
        ("fat daemon", "MB of memory, and may take 300 MB"),
        ("bomb", "more than the 12 processes"),
    ],
)
async def test_what_left_its_parent_and_its_group_is_counted_and_ends_with_it(
    what: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kin, "PROCESSES_MAX", 12)
    monkeypatch.setattr(process, "_STRAYS_S", 0.5)
    async with here(folder, **({"spec": spec(4_000_000_000)} if what == "bomb" else {})) as it:
        await it.ready()
        with suppress(LinkError):
            await it.call("do", what=what)
        await it.until(lambda: it.instance.restarts == 1)
        assert reason in it.instance.reason
        await it.ready()
        pid = await it.call("pid")
        await until(lambda: kin.marked(it.pool.mark) == [pid])


def test_what_an_earlier_node_left_behind_is_ended_before_anything_runs(folder: Path) -> None:
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    marks = (f"{mark_of(folder / 'logs')}-thing-0-0", "another-node")
    left, other = (subprocess.Popen(program, env={kin.MARK: mark}, stdout=subprocess.PIPE) for mark in marks)

    async def open_and_close() -> None:
        async with open_pool(folder / "logs"):
            assert left.wait(timeout=20) == -signal.SIGKILL
            assert other.poll() is None

    with left, other:
        try:
            for each in (left, other):  # until its environment is its own
                assert each.stdout is not None
                each.stdout.readline()
            trio.run(open_and_close)
        finally:
            left.kill()
            other.kill()


async def until(so: Callable[[], bool]) -> None:
    """Wait for what the kernel does: who was killed ends when a busy machine comes to it."""
    with trio.fail_after(60):
        while not so():  # noqa: ASYNC110 - the kernel sets no event
            await trio.sleep(0.01)


async def gone(leader: int) -> None:
    await until(lambda: group_of(leader) == [])


def group_of(leader: int) -> list[str]:
    """Processes that are still in a group."""
    listed = subprocess.run(["ps", "-eo", "pgid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(leader) and "Z" not in line.split()[2]]


@pytest.mark.parametrize("what", ["do", "do_async"])
async def test_a_loop_that_never_ends_is_ended_after_a_grace(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    async with here(folder) as it:
        await it.ready()
        with pytest.raises(LinkError, match="was not done") as caught:
            await it.call(what, within_s=2.0, what="loop")  # by then it began
        assert not isinstance(caught.value, InstanceLost)
        await it.until(lambda: it.instance.restarts == 1)
        assert "after the call's deadline" in it.instance.reason
        await it.ready()
        assert await it.call("twice", x=np.ones(1)) == [2]


async def test_what_cannot_be_had_is_refused_and_floods_are_slowed(folder: Path) -> None:
    async with here(folder) as it:
        await it.ready()
        with pytest.raises(ServiceError, match="MemoryError"):
            await it.call("do", what="grab")
        await it.call("do", what="flood")
        assert len(it.pool.logs("thing", lines=10_000)) == 1000
        files = list((folder / "logs" / "thing").iterdir())
        assert sum(path.stat().st_size for path in files) <= 2 * 1024 * 1024
        assert it.instance.restarts == 0


async def test_those_that_wait_did_not_run_when_it_dies(folder: Path) -> None:
    async with here(folder) as it:
        await it.ready()
        said: list[type[BaseException]] = []

        async def one() -> None:
            try:
                await it.call("sleep", seconds=60)
            except LinkError as error:
                said.append(type(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert (it.instance.load.running, it.instance.load.waiting) == (1, 4)
            os.kill(pid_of(it), signal.SIGKILL)
        assert sorted(each.__name__ for each in said) == ["InstanceLost", "NotHere", "NotHere", "NotHere", "NotHere"]


def pid_of(it: Here) -> int:
    assert it.instance._process is not None
    return it.instance._process._popen.pid


async def test_it_drains_and_closes_when_it_is_stopped(folder: Path) -> None:
    code = folder / "bundle" / "thing.py"
    code.write_text(
        code.read_text("utf-8").replace(
            "    @method\n    def pid", "    async def close(self): print('closed')\n\n    @method\n    def pid"
        ),
        "utf-8",
    )
    async with here(folder) as it:
        await it.ready()
        pid = await it.call("pid")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, it, 0.5)
            await trio.testing.wait_all_tasks_blocked()
            instance = it.instance
            it.pool.stop("thing-1", drain_s=30)
            assert instance.state == "draining"
            with pytest.raises(NotHere, match="is draining"):
                await it.call("pid")
        await it.until(lambda: not it.pool.running)
        assert "closed" in (folder / "logs" / "thing" / "thing-1.log").read_text("utf-8")
        assert "thing-1 1: closed" in it.pool.logs("thing", lines=100)  # who asks why it is gone still hears it
        await gone(pid)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("self.mesh, self.kept", "1 / 0; self.mesh, self.kept"), "its setup failed: ZeroDivisionError"),
        (("import os,", "import nothing_there, os,"), "ModuleNotFoundError: No module named 'nothing_there'"),
        (('version="1"', 'version="2"'), "its code is thing 2, and not thing 1"),
        (("def pid(self)", "def other(self)"), "its code has the methods other"),
        (("class Thing:", "class Other:"), "has no class Thing"),
    ],
)
async def test_what_does_not_start_is_given_up_with_its_reason(
    change: tuple[str, str], reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton.node.services.instances.restarts.STARTS_MAX", 1)
    code = folder / "bundle" / "thing.py"
    code.write_text(code.read_text("utf-8").replace(*change), "utf-8")
    async with here(folder) as it:
        await it.until(lambda: it.instance.state == "failed")
        assert reason in it.instance.reason
        it.pool.stop("thing-1", drain_s=0)
        await it.until(lambda: not it.pool.running)
        assert any(reason.removeprefix("its setup failed: ") in line for line in it.pool.logs("thing", lines=100))


async def test_what_is_gone_is_remembered_for_so_many_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton.node.services.instances.restarts.STARTS_MAX", 1)
    monkeypatch.setattr("lepton.node.services.instances.pool._ENDED_SERVICES_MAX", 2)
    async with open_pool(folder / "logs", None) as pool:

        async def ends(name: str, service: str) -> None:
            its = msgspec.structs.replace(wanted(folder).spec, name=service)
            pool.start(wanted(folder / "nowhere", id=name, spec=its))
            while pool.running[name].state != "failed":
                await pool.changed.wait()
            pool.stop(name, drain_s=0)
            while pool.running:
                await pool.changed.wait()

        with trio.fail_after(60):
            for number in range(6):
                await ends(f"thing-{number}", "thing")
            assert {line.split()[0] for line in pool.logs("thing", lines=100)} == {f"thing-{n}" for n in range(2, 6)}
            await ends("a", "other")
            await ends("b", "third")
        assert [len(pool.logs(name, lines=100)) > 0 for name in ("thing", "other", "third")] == [False, True, True]


def test_no_instance_outlives_a_node_that_is_killed(folder: Path) -> None:
    program = f"""
import sys, trio
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_pool as t
async def main():
    async with t.here(Path({str(folder)!r})) as it:
        await it.ready()
        print(await it.call("pid"), flush=True)
        await it.call("do_async", what="loop")
trio.run(main)
"""
    node = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    assert group_of(pid)
    node.kill()
    node.wait()
    node.stdout.close()
    trio.run(gone, pid)
