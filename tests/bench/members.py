"""Real nodes for a bench: a process each, which writes down the moment of everything that it sees of the others.

``python -m tests.bench.members HOME [INTERFACE]`` is what `lepton-node up` runs, with a diary on stdout: a JSON object
a line, ``at`` in seconds of the clock that all processes of a machine share. It ends when its stdin does.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio
from lepton.node.setup import create_mesh, join_mesh, open_invite

LOOPBACK = "127.0.0.1"
PATIENCE_S = 90.0


# -- one process ------------------------------------------------------------------------------------------------------


def say(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, "at": time.monotonic(), **fields}), flush=True)  # noqa: T201  the parent reads it


async def be_member(home: str, interfaces: Sequence[str]) -> None:
    from lepton.node import Node
    from lepton.node.control import serve_control

    where: dict[str, Any] = {"interfaces": list(interfaces), "listen": [f"{LOOPBACK}:0"]} if interfaces else {}
    say("begins")
    async with Node(home, **where) as node, trio.open_nursery() as nursery:
        say("up", me=node.mesh.me)
        nursery.start_soon(keep_diary, node)
        nursery.start_soon(serve_control, node, trio.Event())
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def keep_diary(node: Any) -> None:
    seen: frozenset[str] = frozenset()
    while True:
        changed, now = node.mesh.changed, node.mesh.present
        if now != seen:
            say("sees", peers=sorted(now))
            seen = now
        await changed.wait()


# -- the parent -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Member:
    """A process and what it said so far."""

    home: Path
    prefix: Callable[..., list[str]] = lambda *words: list(words)  # runs it somewhere else
    interfaces: tuple[str, ...] = (LOOPBACK,)
    module: str = "tests.bench.members"  # that the process runs
    heard: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last word of every other kind
    id: str = ""
    seen: frozenset[str] = frozenset()
    started_at: float = 0.0
    begun_at: float = 0.0
    up_at: float = 0.0
    diary: list[tuple[float, frozenset[str], frozenset[str]]] = field(default_factory=list)  # when: who came, who went
    process: "subprocess.Popen[str] | None" = None
    listener: threading.Thread | None = None

    def write(self, event: dict[str, Any]) -> None:
        """Take one line of its diary."""
        match event["kind"]:
            case "begins":
                self.begun_at = event["at"]
            case "up":
                self.up_at, self.id = event["at"], event["me"]
            case "sees":
                now = frozenset(event["peers"])
                self.diary.append((event["at"], now - self.seen, self.seen - now))
                self.seen = now
            case kind:
                self.heard[kind] = event

    def came_at(self, peer: str) -> float:
        """When it last began to see a peer."""
        return next(at for at, came, _ in reversed(self.diary) if peer in came)

    def went_at(self, peer: str, after: float) -> float | None:
        """When it first lost a peer after some moment."""
        return next((at for at, _, went in self.diary if peer in went and at >= after), None)

    def memory_bytes(self) -> int:
        """Its own share of memory, what is mapped by several processes divided among them."""
        assert self.process is not None
        rows = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))


class Fleet:
    """Members of one mesh on this machine. All processes end with the block, frozen ones too."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._heard: queue.SimpleQueue[tuple[Member, dict[str, Any] | None]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        for member in self.members:
            self.stop(member)
        for member in self.members:
            self._wait(member)

    def start(self, member: Member) -> None:
        """Start its process; what it saw in an earlier life is forgotten."""
        member.seen, member.diary, member.up_at, member.begun_at = frozenset(), [], 0.0, 0.0
        member.started_at = time.monotonic()
        words = (sys.executable, "-m", member.module, str(member.home), *member.interfaces)
        with (member.home / "bench.log").open("a") as log:
            member.process = subprocess.Popen(
                member.prefix(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        member.listener = threading.Thread(target=self._listen, args=(member, member.process), daemon=True)
        member.listener.start()

    def _listen(self, member: Member, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._heard.put((member, json.loads(line)))

    def stop(self, member: Member) -> None:
        """Ask its process to end."""
        if member.process is not None and member.process.stdin is not None:
            with suppress(ProcessLookupError, BrokenPipeError):
                member.process.send_signal(signal.SIGCONT)
                member.process.stdin.close()

    def _wait(self, member: Member) -> None:
        if member.process is not None:
            try:
                member.process.wait(15)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            if member.listener is not None and member.process.stdout is not None:
                member.listener.join()
                member.process.stdout.close()
            member.process = None

    def tell(self, member: Member, word: str) -> None:
        """Write a line to its stdin."""
        assert member.process is not None
        assert member.process.stdin is not None
        member.process.stdin.write(word + "\n")
        member.process.stdin.flush()

    def restart(self, member: Member) -> None:
        """End its process and start another."""
        self.stop(member)
        self._wait(member)
        self.start(member)

    def signal(self, member: Member, number: signal.Signals) -> float:
        """Send a signal; returns when."""
        assert member.process is not None
        member.process.send_signal(number)
        return time.monotonic()

    def until(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        """Read diaries until something is so; false when it did not come to that."""
        end = time.monotonic() + patience_s
        while not condition():
            try:
                member, event = self._heard.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return False
            if event is not None:
                member.write(event)
        return True

    def read_for(self, seconds: float) -> None:
        """Read diaries for so long."""
        self.until(lambda: False, seconds)

    def together(self, *without: Member) -> bool:
        """Whether all (but these) see each other."""
        here = [member for member in self.members if member not in without]
        return all(one.up_at and one.seen >= {other.id for other in here} - {one.id} for one in here)


def enrol(folder: Path, count: int) -> list[Path]:
    """Make a mesh of so many folders. The first's process is up for it and ends again; none is up afterwards."""
    homes = [folder / str(number) for number in range(count)]
    for home in homes:
        home.mkdir(parents=True)
    create_mesh(homes[0], "bench")
    code = open_invite(homes[0], role="member", uses=count, lifetime_s=600.0)

    async def join_all() -> None:
        async with trio.open_nursery() as nursery:
            for home in homes[1:]:
                nursery.start_soon(_join, home, code)

    with Fleet([Member(homes[0])]) as fleet:
        fleet.start(fleet.members[0])
        if not fleet.until(lambda: fleet.members[0].up_at):
            message = f"the first node did not start: {(homes[0] / 'bench.log').read_text()}"
            raise RuntimeError(message)
        trio.run(join_all)
    return homes


async def _join(home: Path, code: str) -> None:
    await join_mesh(home, code, interfaces=(LOOPBACK,), timeout_s=PATIENCE_S)


if __name__ == "__main__":
    trio.run(be_member, sys.argv[1], sys.argv[2:])
