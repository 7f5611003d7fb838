"""Services under load: thousands of calls while they are updated, scaled and killed, each counted where it is made.

``python -m tests.bench.services`` (JSON=FILE writes the figures; ARGS: "load", "cost", or both). Hosts are processes of
their own on loopback, instances processes of theirs; the caller is a node in this one. Every call has a number, which
its instance writes down before it answers: so a call that ran twice, or was answered without, is seen. A call ends with
its answer or with a reason; ``calls_lost`` are those that did neither. The cost is that of one call after another, in
rounds by turns with a bare call of the same function, medians over all rounds.
"""

import http.client
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import trio
from lepton.mesh.admission import Credentials
from lepton.mesh.errors import LeptonError
from lepton.mesh.grants import ROLES, issue
from lepton.mesh.identity import Identity
from lepton.node import Node
from lepton.node.home import Home

HOSTS = 3
CALLERS = 8
PATIENCE_S = 120.0
TIMEOUT_S = 30.0  # of a call: far more than any of them should take
ROUNDS = int(os.environ.get("ROUNDS", "15"))
CALLS = int(os.environ.get("CALLS", "100"))  # of each kind in each round
WHERE: dict[str, Any] = {"interfaces": ["127.0.0.1"], "listen": ["127.0.0.1:0"]}

CODE = """
import os
import time
from lepton.node.services import method, service

LOG = os.open(FOLDER + "/" + str(os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@service("counter", version=VERSION, memory="64MB", cores=0.1)
class Counter:
    @method(timeout_s=30)
    def plus(self, number: int) -> int:
        return number + 1

    @method(timeout_s=30)
    def add(self, number: int) -> int:
        os.write(LOG, b"%d\\n" % number)
        time.sleep(0.002)  # so that some are under way when it is killed
        return number + 1

    @method(timeout_s=30, idempotent=True)
    def look(self, number: int) -> int:
        return self.add(number)
"""


def plus(number: int) -> int:
    """The same without a service."""
    return number + 1


# -- a mesh of processes ----------------------------------------------------------------------------------------------


async def be_host(home: str) -> None:
    """Run a node that hosts services, until stdin ends."""
    config = {"memory": "1GB", "cores": 8.0}
    async with Node(home, **WHERE, web={"listen": "off"}, services=config) as node:
        print(node.mesh.me, flush=True)  # noqa: T201  the parent reads it
        await trio.to_thread.run_sync(sys.stdin.read)


@dataclass
class Fleet:
    """A caller, and hosts in processes of their own."""

    folder: Path
    caller: Node
    hosts: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def executions(self) -> Path:
        return self.folder / "executions"

    def write(self, version: str) -> Path:
        """Make the folder of a version."""
        code = self.folder / version
        code.mkdir()
        (code / "service.toml").write_text('entry = "counter:Counter"\n')
        said = f"FOLDER, VERSION = {str(self.executions)!r}, {version!r}\n"
        (code / "counter.py").write_text(said + CODE)
        return code

    def ready(self, version: str = "") -> int:
        """How many instances the caller knows to be ready."""
        known = self.caller.services.calling.directory.all().get("counter")
        if known is None:
            return 0
        return sum(len(one.instances) for one in known.balancer.replicas if version in {"", one.version})

    def pids(self) -> list[int]:
        """The processes of instances that live."""
        return [int(path.name) for path in self.executions.iterdir() if Path(f"/proc/{path.name}").exists()]

    def ran(self) -> Counter[int]:
        """How often each call was executed."""
        return Counter(int(line) for path in self.executions.iterdir() for line in path.read_text().split())


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - files and processes have no event
            await trio.sleep(0.02)


def furnish(folder: Path, root: Identity) -> Path:
    """Make a member's folder, as joining would."""
    home = Home(folder)
    grant = issue(
        root, home.identity().peer_id, ROLES["admin"], expires=time.time() + 3600, serial=secrets.token_bytes(16)
    )
    home.save_credentials(Credentials(mesh_name="bench", root=root.peer_id, chain=(grant,)))
    return home.path


@asynccontextmanager
async def fleet(folder: Path, hosts: int = HOSTS, *, web: str = "off") -> AsyncIterator[Fleet]:
    """Run a caller and hosts until the block ends; all processes end with it."""
    root = Identity.generate()
    (folder / "executions").mkdir()
    homes = [furnish(folder / f"host{number}", root) for number in range(hosts)]
    home = furnish(folder / "caller", root)
    async with Node(home, **WHERE, web={"listen": web}, services={"host": False}) as caller:
        made = Fleet(folder, caller)
        try:
            for where in homes:
                with (where / "bench.log").open("wb") as log:
                    made.hosts.append(
                        subprocess.Popen(  # noqa: ASYNC220 - a moment
                            [sys.executable, "-m", "tests.bench.services", "host", str(where)],
                            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
                            env={**os.environ, "OMP_NUM_THREADS": "1"},
                        )
                    )  # fmt: skip
            await until(lambda: len(caller.mesh.present) == hosts)
            yield made
        finally:
            for process in made.hosts:
                process.kill()
            for process in made.hosts:
                process.wait()
                assert process.stdin is not None
                process.stdin.close()


# -- load -------------------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """What became of calls, in each phase."""

    made: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failed: dict[str, Counter[str]] = field(default_factory=dict)  # by phase: reasons
    lost: int = 0
    plain: list[int] = field(default_factory=list)  # numbers of answered calls that may run but once
    once: list[int] = field(default_factory=list)  # of all calls that may run but once
    phase: str = "before"
    under_way: Counter[str] = field(default_factory=Counter)  # by the phase in which they began

    @property
    def calls(self) -> int:
        return self.made.total()

    async def begin(self, phase: str) -> None:
        """Count calls to another phase from now on, and wait for those of the one before: they ran in it."""
        before, self.phase = self.phase, phase
        await until(lambda: not self.under_way[before])

    def failures(self, *phases: str) -> int:
        return sum(self.failed.get(phase, Counter()).total() for phase in phases)


async def call(node: Node, count: Count, number: int) -> None:
    """Make one call and note what came of it: in the phase in which it began."""
    method, phase = ("add", "look")[number % 2], count.phase
    count.made[phase] += 1
    count.under_way[phase] += 1
    if method == "add":
        count.once.append(number)
    with trio.move_on_after(2 * TIMEOUT_S) as scope:
        try:
            right = await node.call(f"counter.{method}", number) == number + 1
        except LeptonError as error:
            count.failed.setdefault(phase, Counter())[type(error).__name__] += 1
        else:
            count.answered[phase] += 1
            count.lost += not right
            if method == "add":
                count.plain.append(number)
    count.under_way[phase] -= 1
    count.lost += scope.cancelled_caught


async def load(fleet: Fleet, *, each: int, pause_s: float = 0.0) -> Count:
    """Call all the time while everything happens to the service that can; ``each`` so many calls between two events."""
    count, numbers, over = Count(), iter(range(10**9)), trio.Event()

    async def caller() -> None:
        while not over.is_set():
            await call(fleet.caller, count, next(numbers))
            await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(caller)
        await happen(fleet, count, each)
        over.set()
    return count


async def happen(fleet: Fleet, count: Count, each: int) -> None:
    """Update, scale up and down, kill an instance and a host; each phase lasts until the mesh is well again."""
    services, usual = fleet.caller.services, len(fleet.hosts)

    async def some() -> None:
        begun = count.calls
        await until(lambda: count.calls >= begun + each)

    await some()
    await count.begin("update")
    await services.update(fleet.write("2.0"))
    await until(lambda: fleet.ready("2.0") == usual == fleet.ready())
    await some()
    await count.begin("scaling")
    for wanted in (usual + 2, usual - 1, usual):
        services.scale("counter", wanted)
        await until(lambda: fleet.ready() == wanted)  # noqa: B023 - awaited at once
        await some()
    await count.begin("instance killed")
    os.kill(fleet.pids()[0], signal.SIGKILL)
    await some()
    await until(lambda: fleet.ready() == usual)
    await some()
    await count.begin("host killed")
    fleet.hosts[0].send_signal(signal.SIGKILL)
    await some()
    await until(lambda: fleet.ready() == usual and len(fleet.caller.mesh.present) == usual - 1)
    await some()


def summed(fleet: Fleet, count: Count) -> dict[str, float]:
    """Return the figures of a load."""
    ran = fleet.ran()
    ended = count.answered.total() + sum(reasons.total() for reasons in count.failed.values())
    return {
        "calls": count.calls,
        "calls_answered": count.answered.total(),
        "calls_failed_during_update": count.failures("before", "update", "scaling"),
        "calls_failed_by_kills": count.failures("instance killed", "host killed"),
        "calls_lost": count.lost + (count.calls - ended) + sum(not ran[number] for number in count.plain),
        "calls_duplicated": sum(ran[number] > 1 for number in count.once),
    }


# -- cost -------------------------------------------------------------------------------------------------------------


async def cost(fleet: Fleet) -> dict[str, float]:
    """Time calls one after another: by the node, over HTTP, and of the bare function, by turns."""
    assert fleet.caller.web is not None
    where = urlsplit(fleet.caller.web.url)
    took: dict[str, list[float]] = {"call": [], "http": [], "function": []}

    def by_http() -> list[float]:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        found = []
        for number in range(CALLS):
            began = time.perf_counter()
            body, headers = json.dumps({"number": number}), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/services/counter/plus", body, headers)
            answer = connection.getresponse()
            assert answer.read() == b"%d" % (number + 1)
            found.append(time.perf_counter() - began)
        connection.close()
        return found

    for _ in range(ROUNDS):
        for number in range(CALLS):
            began = time.perf_counter()
            await fleet.caller.call("counter.plus", number)
            took["call"].append(time.perf_counter() - began)
        for number in range(CALLS):
            began = time.perf_counter()
            plus(number)
            took["function"].append(time.perf_counter() - began)
        took["http"] += await trio.to_thread.run_sync(by_http)
    return {
        f"{name}_ms_{label}": round(1000 * value, 6)
        for name, values in took.items()
        for label, value in (("p50", statistics.median(values)), ("p99", sorted(values)[int(0.99 * len(values))]))
    }


async def main(parts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    if "load" in parts:
        with TemporaryDirectory() as folder:
            async with fleet(Path(folder)) as made:
                await deploy(made)
                count = await load(made, each=600)
                found |= summed(made, count)
                print("calls by phase:", dict(count.made), "failed:", count.failed)  # noqa: T201
    if "cost" in parts:
        with TemporaryDirectory() as folder:
            async with fleet(Path(folder), hosts=1, web="127.0.0.1:0") as made:
                await deploy(made)
                found |= await cost(made)
    return found


async def deploy(fleet: Fleet) -> None:
    """Deploy one instance for each host."""
    await fleet.caller.services.deploy(fleet.write("1.0"), replicas=len(fleet.hosts))
    await until(lambda: fleet.ready() == len(fleet.hosts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["host"]:
        trio.run(be_host, sys.argv[2])
    else:
        figures = trio.run(main, sys.argv[1:] or ["load", "cost"])
        for key, value in figures.items():
            print(f"{key:28} {value:g}")  # noqa: T201
        if path := os.environ.get("JSON"):
            Path(path).write_text(json.dumps(figures, indent=2) + "\n")
