"""All instances that run here: which there are, what they print, what is kept of those that are gone."""

import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import trio

from ....mesh.errors import UsageError
from ..hosting import Outward, Wanted
from . import kin
from .logs import prune
from .outwards import Outwards
from .running import Running

SETUP_S: Final = 120.0  # to import torch and read a model from a slow card
_MARK_CHARACTERS: Final = 16
_ENDED_MAX: Final = 4  # instances of one service that are gone and whose last lines are kept: one crashes and is moved
_ENDED_SERVICES_MAX: Final = 32  # services of which they are: with lines of the longest kind 100 MB, usually 1
_ENDED_LINES: Final = 200  # a trace and what came before it


class _Said(NamedTuple):
    """A line as it is shown; these sort in the order in which they were printed."""

    at: float
    number: int
    text: str


def _said(instance: Running, lines: int) -> list[_Said]:
    who = f"{instance.wanted.id} {instance.wanted.spec.version}"
    return [_Said(line.at, at, f"{who}: {line.text}") for at, line in enumerate(instance.log.tail(lines))]


class Pool:
    """All instances that run here: implements ``hosting.Instances``. Made by ``open_pool``."""

    def __init__(self, nursery: trio.Nursery, folder: Path, outward: Outward | None, setup_s: float) -> None:
        self.folder: Final = folder  # of their logs
        self.outward: Final = Outwards(outward).handlers
        self.setup_s: Final = setup_s
        self.mark: Final = mark_of(folder)  # of all that runs here
        self.changed = trio.Event()
        self._nursery = nursery
        self._running: dict[str, Running] = {}
        self._ended: dict[str, deque[list[_Said]]] = {}  # by service: what is gone printed, for who asks why

    @property
    def running(self) -> Mapping[str, Running]:
        return self._running

    def start(self, wanted: Wanted) -> None:
        """Start an instance. Raises UsageError when one with its id runs."""
        if wanted.id in self._running:
            raise UsageError(f"An instance {wanted.id} runs already.")
        instance = self._running[wanted.id] = Running(wanted, self)
        self.tell()
        self._nursery.start_soon(self._keep, instance)

    def stop(self, instance: str, *, drain_s: float) -> None:
        """Let an instance end; nothing when it is gone."""
        if (known := self._running.get(instance)) is not None and known.state != "draining":
            known.stop(drain_s)

    def logs(self, service: str, *, lines: int) -> list[str]:
        """The last lines of all instances of a service that are or lately were here, oldest first."""
        running = [its for its in self._running.values() if its.wanted.spec.name == service]
        found = [said for its in running for said in _said(its, lines)]
        found += [said for kept in self._ended.get(service, ()) for said in kept]
        return [said.text for said in sorted(found)][-lines:] if lines > 0 else []

    def tell(self) -> None:
        """Something changed."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def _keep(self, instance: Running) -> None:
        try:
            await instance.live()
        finally:
            del self._running[instance.wanted.id]
            self._keep_log(instance)
            self.tell()
            prune(self.folder, self._running)

    def _keep_log(self, instance: Running) -> None:
        """Keep what it printed: of a version that was taken back it is the only word on why."""
        name = instance.wanted.spec.name
        kept = self._ended.pop(name, None) or deque[list[_Said]](maxlen=_ENDED_MAX)
        kept.append(_said(instance, _ENDED_LINES))
        self._ended[name] = kept  # behind those that ended before it
        if len(self._ended) > _ENDED_SERVICES_MAX:
            del self._ended[next(iter(self._ended))]


def mark_of(folder: Path) -> str:
    """Return what the processes of a node with this folder are known by."""
    return hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:_MARK_CHARACTERS]


@asynccontextmanager
async def open_pool(folder: Path, outward: Outward | None = None, *, setup_s: float = SETUP_S) -> AsyncIterator[Pool]:
    """A pool that keeps logs in a folder; leaving the block kills what still runs.

    What runs of an earlier one with this folder, whose node was killed, is ended first.
    """
    await trio.to_thread.run_sync(kin.end_marked, f"{mark_of(folder)}-")
    async with trio.open_nursery() as nursery:
        try:
            yield Pool(nursery, folder, outward, setup_s)
        finally:
            nursery.cancel_scope.cancel()
