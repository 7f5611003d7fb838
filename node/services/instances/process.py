"""One process of an instance, from its start to its end: what it is given, what is watched, why it ended.

Whatever goes wrong inside costs this process and no more. It ends, with all that it started (`kin.py`), when it leaves
its socket or says on it what is not allowed, takes more memory or processes than it may, or works on a call for longer
than a grace after the call's deadline.
"""

import heapq
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

from ....mesh.errors import LeptonError, LinkError
from .. import surroundings
from ..hosting import Wanted
from ..spec import ServiceSpec
from . import kin, local
from .answerer import Answerer, Handler
from .asker import Asker
from .local import ASKED_MAX, CALLS_MAX, Nothing, Ready, Start
from .logs import Log

GRACE_S: Final = 5.0  # after a call's deadline for plain code to return, and at the end for close()
_LOOK_S: Final = 0.25  # at its memory: of 1 GB/s, the fastest that memory is filled, a quarter more than it may have
_STRAYS_S: Final = 5.0  # between two looks for what left it: that takes reading a file of each process there is
_LOG_READ_BYTES: Final = 65536
_LOG_BYTES_S: Final = 1024 * 1024  # who prints more waits: reading it must not cost the node its time
_END_S: Final = 5.0  # for a process that was killed to be gone
log = logging.getLogger(__name__)
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Process:
    """Runs once. ``asker`` is of use between ``ready`` and ``over``."""

    def __init__(
        self, wanted: Wanted, log: Log, outward: Mapping[str, Handler], *, setup_s: float, mark: str = ""
    ) -> None:
        """``mark`` begins what its processes are known by: that of all of one node."""
        self._wanted = wanted
        self._mark: Final = f"{mark}-{wanted.id}-{secrets.token_hex(8)}"
        self._log = log
        self._setup_s = setup_s
        self._why = ""
        self._minded: list[tuple[float, int]] = []  # (when to look, call): a heap
        self._sooner = trio.Event()
        self.over = trio.Event()
        self.reason = ""  # once it is over
        (ours, self._work), (ours_too, self._mesh) = socket.socketpair(), socket.socketpair()
        self.asker: Final = Asker(ours, wanted.spec.name, in_flight_max=CALLS_MAX)
        self._answerer = Answerer(ours_too, outward, in_flight_max=ASKED_MAX)
        self._popen: subprocess.Popen[bytes]

    async def run(self, ready: Callable[[], None]) -> None:
        """Start it, say when it is ready, and return when it is gone; ``reason`` is why."""
        life, lifeline = os.pipe()
        printed, prints = os.pipe()
        os.set_blocking(printed, False)
        try:
            try:
                self._start(life, prints)
            except OSError as error:
                self.reason = f"its process could not be started: {error.strerror or error}"
                return
            finally:
                self._work.close()
                self._mesh.close()
                os.close(life)
                os.close(prints)
            try:
                await self._watch(ready, printed)
            except Exception as error:
                log.exception("an instance of %s was ended by a mistake of its node", self._wanted.spec.name)
                self._why = self._why or f"its node made a mistake: {error!r}"
            finally:
                with trio.CancelScope(shield=True):
                    await self._reap()
                self._read_rest(printed)
        finally:
            os.close(lifeline)
            os.close(printed)
            self.asker.wire.close(LinkError("The instance ended."))
            self._answerer.wire.close(LinkError("The instance ended."))
            self.over.set()

    def kill(self, why: str) -> None:
        """End it and all that it started. The first reason counts."""
        self._why = self._why or why
        if self._popen.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Let it close, then end it."""
        with suppress(LeptonError):
            until = trio.current_time() + GRACE_S
            await self.asker.ask(local.CLOSE, Nothing(), answers=Nothing, deadline=until)
        self.kill("it was stopped")
        await self.over.wait()

    def mind(self, call: int, deadline: float) -> None:
        """Look whether a call has ended some time after it should have."""
        heapq.heappush(self._minded, (deadline + GRACE_S, call))
        if self._minded[0][1] == call:
            self._sooner.set()

    # -- start and end ------------------------------------------------------------------------------------------------

    def _start(self, life: int, prints: int) -> None:
        """Start it from this very thread: Linux ends a child with the thread that made it."""
        wanted = self._wanted
        ends = (self._work.fileno(), self._mesh.fileno(), life)
        command = [str(wanted.python or sys.executable), "-P", "-m", f"{__package__}.instance"]
        threads = dict.fromkeys(_THREADS, str(max(1, round(wanted.spec.needs.cores))))
        self._popen = subprocess.Popen(
            [*command, *map(str, ends), str(wanted.spec.needs.memory_bytes)],
            cwd=wanted.folder,
            env=surroundings.for_instances()
            | threads
            | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", kin.MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=prints,
            stderr=prints,
            pass_fds=ends,
            start_new_session=True,
        )

    async def _watch(self, ready: Callable[[], None], printed: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._talk)
            nursery.start_soon(self._answerer.run)
            nursery.start_soon(self._set_up, ready)
            nursery.start_soon(self._watch_memory)
            nursery.start_soon(self._watch_calls)
            nursery.start_soon(self._read_log, printed)
            await self._end()
            nursery.cancel_scope.cancel()

    async def _end(self) -> None:
        """Wait until the process has ended, without taking its number back from it: its group is still to be killed."""
        if sys.platform == "linux":
            handle = os.pidfd_open(self._popen.pid)
            try:
                await trio.lowlevel.wait_readable(handle)
            finally:
                os.close(handle)
        else:
            while self._popen.poll() is None:  # noqa: ASYNC110 - there is nothing that tells
                await trio.sleep(_LOOK_S)

    async def _reap(self) -> None:
        ended_itself = not self._why
        self.kill("its node ended it")
        with trio.move_on_after(_END_S):
            await self._end()
        with suppress(subprocess.TimeoutExpired):
            status = self._popen.wait(timeout=0)
            self.reason = _said_of(status) if ended_itself else self._why
        self.reason = self.reason or self._why
        if left := await trio.to_thread.run_sync(kin.end_marked, self._mark):
            log.info("ended %d processes that an instance of %s had left behind", left, self._wanted.spec.name)

    async def _set_up(self, ready: Callable[[], None]) -> None:
        wanted = self._wanted
        start = Start(entry=wanted.spec.entry, devices=dict(wanted.devices))
        until = trio.current_time() + self._setup_s
        try:
            said, _ = await self.asker.ask(local.START, start, answers=Ready, deadline=until)
        except LinkError:
            if self.asker.ended is None:
                self.kill(f"its setup took longer than {self._setup_s:g} s")
        except LeptonError as error:
            self.kill(f"its setup failed: {error}")
        else:
            if differs := difference(wanted.spec, said.spec):
                self.kill(differs)
            else:
                ready()

    async def _talk(self) -> None:
        await self.asker.run()
        await trio.sleep(_LOOK_S)  # most often it has ended: then how is the better reason
        self.kill(f"it left its socket: {self.asker.ended}")

    # -- what it may not ----------------------------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        most = self._wanted.spec.needs.memory_bytes
        strays, again = set[int](), 0.0
        while True:
            family = kin.family(self._popen.pid)
            if trio.current_time() >= again:
                strays = set(await trio.to_thread.run_sync(kin.marked, self._mark))
                again = trio.current_time() + _STRAYS_S
            used, count = kin.memory_bytes(family | strays), len(family | strays)
            if count > kin.PROCESSES_MAX:
                self.kill(f"it has more than the {kin.PROCESSES_MAX} processes that it may have")
            if used > most:
                self.kill(f"it took {used / 1e6:.0f} MB of memory, and may take {most / 1e6:.0f} MB")
            await trio.sleep(_LOOK_S)

    async def _watch_calls(self) -> None:
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._minded[0][0] if self._minded else float("inf")):
                await self._sooner.wait()
            while self._minded and self._minded[0][0] <= trio.current_time():
                _, call = heapq.heappop(self._minded)
                if self.asker.is_open(call):
                    self.kill(f"it worked on a call for {GRACE_S:g} s after the call's deadline")

    # -- what it prints -----------------------------------------------------------------------------------------------

    async def _read_log(self, printed: int) -> None:
        left, until = _LOG_BYTES_S, trio.current_time() + 1
        while True:
            await trio.lowlevel.wait_readable(printed)
            try:
                data = os.read(printed, _LOG_READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                return
            self._log.feed(data)
            left -= len(data)
            if left <= 0:
                await trio.sleep_until(until)
            if trio.current_time() >= until:
                left, until = _LOG_BYTES_S, trio.current_time() + 1

    def _read_rest(self, printed: int) -> None:
        with suppress(OSError):
            self._log.feed(os.read(printed, _LOG_READ_BYTES))


def difference(wanted: ServiceSpec, found: ServiceSpec) -> str:
    """What a class says of itself that was not announced; empty when it is the same service."""
    if (wanted.name, wanted.version) != (found.name, found.version):
        return f"its code is {found.name} {found.version}, and not {wanted.name} {wanted.version}"
    theirs = {method.name: method.kind for method in found.methods}
    ours = {method.name: method.kind for method in wanted.methods}
    if theirs != ours:
        return f"its code has the methods {', '.join(theirs)}, announced were {', '.join(ours)}"
    return ""


def _said_of(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended by itself with status {status}"
