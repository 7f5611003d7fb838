"""Real `lepton-node` processes on the devices of a Lan: how they come into one mesh and what each of them sees."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio
from lepton.mesh.errors import LeptonError
from lepton.node.control import Control

from ..node.processes.fakes import COMMAND, PATIENCE_S, Process
from .lan import Device, Lan


class Member:
    """One device with its folder, and its node while it runs."""

    def __init__(self, device: Device, home: Path) -> None:
        self.device = device
        self.name = device.name
        self.home = home
        self.node: Process | None = None

    def said(self, *words: str) -> str:
        """What a command on this device printed; it must succeed."""
        process = self.begin(*words)
        try:
            assert process.ended() == 0, process.err
            return process.out.strip()
        finally:
            process.end()

    def begin(self, *words: str) -> Process:
        """A command that goes on while the test does."""
        return Process(self.home / words[0], *self.device.command(*COMMAND, *words, "--home", str(self.home)))

    def start(self, *words: str) -> None:
        """Start its node."""
        self.node = self.begin("up", "--name", self.name, *words)

    def ready(self) -> None:
        """Wait until its node says that it listens."""
        assert self.node is not None
        self.node.until_said("Ctrl-C stops it.")

    def up(self, *words: str) -> None:
        self.start(*words)
        self.ready()

    def down(self) -> None:
        """See that its node is gone."""
        if self.node is not None:
            self.node.end()
            self.node = None

    def status(self) -> dict[str, Any]:
        """What its node knows."""

        async def ask() -> dict[str, Any]:
            with trio.fail_after(PATIENCE_S):
                return dict((await Control(self.home).ask("status"))[0])

        return trio.run(ask)

    def said_so_far(self) -> str:
        """Its node's log."""
        assert self.node is not None
        return self.node.err

    def sees(self) -> set[str]:
        """The names of the other devices that its node is connected to and has heard the profile of."""
        return {peer["device"] for peer in self.status()["peers"]} - {self.name}


def until(condition: Callable[[], object], *members: Member) -> None:
    """Wait until something is so; fails with what the nodes saw and said."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it never came to that:\n" + "\n".join(map(_account, members)))
        time.sleep(0.05)


def _account(member: Member) -> str:
    try:
        seen = json.dumps(member.status(), indent=1)
    except (LeptonError, trio.TooSlowError) as error:
        seen = str(error)
    return f"-- {member.name}: {seen}\n{member.node.err if member.node else 'it is down'}"


def together(members: Sequence[Member]) -> bool:
    """Whether each of these sees all the others."""
    return all(member.sees() >= {other.name for other in members} - {member.name} for member in members)


def _all_down(members: Sequence[Member]) -> None:
    """See that no node is left; each takes a second or two to say goodbye."""
    with ThreadPoolExecutor(len(members)) as pool:
        for ending in [pool.submit(member.down) for member in members]:
            ending.result()


@contextmanager
def mesh_of(
    lan: Lan,
    folder: Path,
    names: Sequence[str],
    *,
    words: Sequence[str] = (),
    own: Mapping[str, Sequence[str]] = MappingProxyType({}),
    **addresses: bool,
) -> Iterator[list[Member]]:
    """Devices in one mesh, their nodes up: they found it over the network.

    ``words`` are on the command line of every node, ``own`` on that of one.
    """
    members = [Member(lan.add(name, **addresses), folder / name) for name in names]
    first, *others = members
    with ExitStack() as stack:
        stack.callback(_all_down, members)
        first.said("mesh", "create", "home")
        first.up(*words, *own.get(first.name, ()))
        code = first.said("invite", "--uses", str(max(1, len(others))))
        joining = [other.begin("join", code, "--timeout", str(PATIENCE_S / 2)) for other in others]
        for process in joining:
            stack.callback(process.end)
        for process in joining:
            assert process.ended() == 0, process.err
        for other in others:
            other.start(*words, *own.get(other.name, ()))
        for member in members:
            member.ready()
        yield members
