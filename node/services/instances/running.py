"""One instance over all its processes: started, restarted, handed calls, let end.

A call that an instance has not been handed when it dies gets NotHere: it did not run, and another replica takes it. One
that it was handed gets InstanceLost: nobody knows whether the work was done. So nothing waits for a restart here, and
nothing is lost without a word.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import trio

from ....mesh.errors import LeptonError, LinkError, PeerError, UsageError, leaves
from ....mesh.identity import PeerId
from ....mesh.rpc.methods import Answer
from ....mesh.tensors import Array
from ..errors import InstanceLost, NotHere, ServiceError
from ..hosting import Wanted
from ..messages import Asked, Given, Load
from ..records import State
from ..spec import Kind, MethodSpec
from . import local
from .answerer import Handler
from .asker import Asker, Pending
from .gate import Gate, Queueing
from .local import Outcome
from .logs import Log
from .process import Process
from .restarts import Restarts

_REASON_S: Final = 1.0  # for the reason of an end to be known when its socket ended
_REASON_CHARACTERS_MAX: Final = 1000
_WEIGHT: Final = 0.2  # of the newest call in how long calls take


class Keeper(Protocol):
    """What an instance is told by whoever keeps all of them, and tells it."""

    @property
    def folder(self) -> Path:
        """Where logs are."""

    @property
    def outward(self) -> Mapping[str, Handler]:
        """What answers its questions to the mesh."""

    @property
    def setup_s(self) -> float: ...
    @property
    def mark(self) -> str:
        """By which all processes of this node are known."""

    def tell(self) -> None:
        """Something about an instance has changed."""


class Running:
    """One instance, over all its processes: implements ``hosting.Instance``."""

    def __init__(self, wanted: Wanted, pool: Keeper) -> None:
        self.wanted: Final = wanted
        self.state: State = "starting"
        self.reason = ""
        self.log: Final = Log(pool.folder / wanted.spec.name / f"{wanted.id}.log")
        self._pool = pool
        self._restarts = Restarts()
        self._process: Process | None = None
        self._queueing = Queueing()
        self._service_ms = 0.0
        self._calls = 0
        self._gates: dict[str, Gate] = {}
        self._stop = trio.Event()
        self._drain_s = 0.0
        self._idle = trio.Event()

    @property
    def restarts(self) -> int:
        return self._restarts.restarts

    @property
    def calls(self) -> int:
        return self._calls

    @property
    def load(self) -> Load:
        gates = self._gates.values()
        return Load(
            instance=self.wanted.id,
            running=sum(gate.running for gate in gates),
            waiting=sum(gate.waiting for gate in gates),
            service_ms=round(self._service_ms, 3),
        )

    @property
    def queue_ms(self) -> float:
        now = trio.current_time()
        oldest = min((gate.oldest for gate in self._gates.values()), default=now)
        return max(self._queueing.ms(now), (now - oldest) * 1000 if oldest <= now else 0.0)

    # -- calls --------------------------------------------------------------------------------------------------------

    # A service does not hear who calls it; its gate does.
    async def call(
        self,
        caller: PeerId,
        asked: Asked,
        arrays: Sequence[Array],
        *,
        deadline: float,
    ) -> Answer[Given]:
        async with self._begun("unary", caller, asked, arrays, deadline) as (asker, pending):
            return self._given(asked, *await asker.answer(pending, Outcome))

    @asynccontextmanager
    async def stream(
        self,
        caller: PeerId,
        asked: Asked,
        arrays: Sequence[Array],
        *,
        deadline: float,
    ) -> AsyncIterator[AsyncIterator[Answer[Given]]]:
        async with (
            self._begun("server_stream", caller, asked, arrays, deadline) as (asker, pending),
            aclosing(self._items(asked, asker, pending)) as items,
        ):
            yield items

    async def feed(
        self,
        caller: PeerId,
        asked: Asked,
        arrays: Sequence[Array],
        items: AsyncIterator[Answer[Given]],
        *,
        deadline: float,
    ) -> Answer[Given]:
        async def pour() -> None:
            async with aclosing(_apart(items)) as parts:
                await asker.feed(pending, parts)

        async with self._begun("client_stream", caller, asked, arrays, deadline) as (asker, pending):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pour)
                    said = await asker.answer(pending, Outcome)
                    nursery.cancel_scope.cancel()
            except* LeptonError as group:
                raise next(leaves(group)) from None
            return self._given(asked, *said)

    async def _items(self, asked: Asked, asker: Asker, pending: Pending) -> AsyncGenerator[Answer[Given]]:
        while True:
            try:
                item = await asker.next_item(pending, Outcome)
                last = None if item is not None else await asker.answer(pending, Outcome)
            except LeptonError as error:
                if (explained := await self._explained(error, asked, asker)) is not error:
                    raise explained from error
                raise
            if item is None:
                assert last is not None
                self._given(asked, *last)
                return
            yield self._given(asked, *item)

    def _given(self, asked: Asked, said: Outcome, arrays: Sequence[Array]) -> Answer[Given]:
        if said.error:
            raise ServiceError(f"{self.wanted.spec.name}.{asked.method} failed: {said.error}")
        return Answer(Given(value=said.value, load=self.load), arrays)

    @asynccontextmanager
    async def _begun(
        self, kind: Kind, caller: PeerId, asked: Asked, arrays: Sequence[Array], deadline: float
    ) -> AsyncIterator[tuple[Asker, Pending]]:
        """A call that has its turn and has been handed over."""
        method = self._method(kind, asked)
        deadline = min(deadline, trio.current_time() + method.timeout_s)
        gate = self._gates.get(asked.method)
        if self.state != "ready" or gate is None or self._process is None:
            raise NotHere(f"The instance {self.wanted.id} is {self.state}; it takes no calls.")
        self._calls += 1
        await self._enter(gate, caller, method, deadline)
        process, began = self._process, trio.current_time()
        handed = False
        try:
            assert process is not None
            verb = {"unary": local.CALL, "server_stream": local.STREAM, "client_stream": local.FEED}[kind]
            pending = await process.asker.begin(verb, asked, arrays, deadline=deadline, kind=kind)
            handed = True
            process.mind(pending.id, deadline)
            try:
                yield process.asker, pending
            finally:
                process.asker.leave(pending)
        except LeptonError as error:
            if handed and kind != "server_stream":  # whose reader has been told already
                if (explained := await self._explained(error, asked, process.asker)) is not error:
                    raise explained from error
            elif not handed and isinstance(error, LinkError | PeerError):
                raise NotHere(f"The instance {self.wanted.id} takes no calls: {error}") from error
            raise
        finally:
            took_ms = (trio.current_time() - began) * 1000
            self._service_ms += (_WEIGHT if self._service_ms else 1.0) * (took_ms - self._service_ms)
            self._leave(gate)

    def _method(self, kind: Kind, asked: Asked) -> MethodSpec:
        spec = self.wanted.spec
        method = spec.method(asked.method)
        if method is None:
            known = ", ".join(each.name for each in spec.methods)
            raise UsageError(f"{spec.name} {spec.version} has no method {asked.method!r}; it has {known}.")
        if method.kind != kind:
            raise UsageError(f"{spec.name}.{method.name} is a {method.kind} method and was called as {kind}.")
        return method

    async def _enter(self, gate: Gate, caller: PeerId, method: MethodSpec, deadline: float) -> None:
        with trio.CancelScope(deadline=deadline) as scope:
            await gate.enter(caller)
        if scope.cancelled_caught:
            what = f"{self.wanted.spec.name}.{method.name}"
            raise NotHere(f"{what} did not have its turn at {self.wanted.id} before the deadline; it did not run.")

    def _leave(self, gate: Gate) -> None:
        gate.leave()
        if not any(each.running or each.waiting for each in self._gates.values()):
            self._idle.set()

    async def _explained(self, error: LeptonError, asked: Asked, asker: Asker) -> LeptonError:
        """An error of a call that was handed over: when the instance is what ended, that, and why it did."""
        if isinstance(error, ServiceError | InstanceLost | UsageError):
            return error
        if asker.ended is None:
            return LinkError(f"{self.wanted.spec.name}.{asked.method} was not done in its time; it may have run.")
        process = self._process
        if process is not None and process.asker is asker:
            with trio.move_on_after(_REASON_S):
                await process.over.wait()
        why = process.reason if process is not None and process.asker is asker else self.reason
        return InstanceLost(
            f"The instance {self.wanted.id} of {self.wanted.spec.name} ended while it worked on {asked.method!r}"
            f"{f' ({why})' if why else ''}; whether the work was done is not known."
        )

    # -- its life -----------------------------------------------------------------------------------------------------

    def stop(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self.state = "draining"
        self._pool.tell()
        self._stop.set()

    async def live(self) -> None:
        """Run processes, one after another, until it is stopped or given up."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run)
                await self._stop.wait()
                await self._drain()
                nursery.cancel_scope.cancel()
        finally:
            self.log.close()

    async def _run(self) -> None:
        while not self._stop.is_set():
            process = self._process = Process(
                self.wanted, self.log, self._pool.outward, setup_s=self._pool.setup_s, mark=self._pool.mark
            )
            try:
                await process.run(self._ready)
            finally:
                self._ended(process)
            again = self._restarts.died(trio.current_time())
            if self._stop.is_set():
                return
            self.state = "starting" if again is not None else "failed"
            self._pool.tell()
            if again is None:
                return
            await trio.sleep_until(again)

    def _ready(self) -> None:
        self._gates = {
            method.name: Gate(method.concurrency * method.batch_size_max, self._queueing)
            for method in self.wanted.spec.methods
        }
        self._restarts.ready(trio.current_time())
        self.log.note("ready")
        if not self._stop.is_set():
            self.state = "ready"
        self._pool.tell()

    def _ended(self, process: Process) -> None:
        said = [] if self._gates else [line.text.strip() for line in self.log.tail(3) if line.text[:2] != "--"]
        last = f"; it last said: {' / '.join(said)}" if said else ""
        self.reason = f"{process.reason}{last}"[:_REASON_CHARACTERS_MAX]
        self.log.note(process.reason)
        for gate in self._gates.values():
            gate.shut(f"The instance {self.wanted.id} ended before this call's turn came; it did not run.")
        self._gates = {}
        self._idle.set()

    async def _drain(self) -> None:
        """Let calls under way be answered, for so long, and then the service close."""
        with trio.move_on_after(self._drain_s):
            while any(gate.running or gate.waiting for gate in self._gates.values()):
                self._idle = trio.Event()
                await self._idle.wait()
        if self._gates and self._process is not None:
            await self._process.close()


async def _apart(items: AsyncIterator[Answer[Given]]) -> AsyncGenerator[tuple[Given, Sequence[Array]]]:
    async for item in items:
        yield item.message, item.arrays
