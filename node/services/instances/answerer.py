"""The answering side of a local socket: the shell of ``Callee`` between a node and an instance, in either direction.

A call that is stopped counts as in flight until its handler has really ended: so whoever asked knows whether a method
goes on after its deadline.
"""

import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

import trio
from trio.lowlevel import ParkingLot

from ....mesh.errors import LeptonError, LinkError, UsageError, single
from ....mesh.messages import Message
from ....mesh.rpc.callee import Asked, Callee, Ended, Event, ItemCame, Stop, Widened
from ....mesh.rpc.headers import AnswerHeader, InternalError, ItemHeader
from ....mesh.tensors import Array
from .asker import Said, put_together, take_apart
from .wire import BODY_BYTES_MAX, Wire

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
Reply = tuple[Message, Sequence[Array]]
Handler = Callable[["Job"], Awaitable[Reply]]


class Answerer:
    """Answers what comes over one socket while ``run`` runs."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler], *, in_flight_max: int) -> None:
        self.machine: Final = Callee(in_flight_max=in_flight_max, body_bytes_max=BODY_BYTES_MAX)
        self._handlers = handlers
        self._jobs: dict[int, Job] = {}
        self._nursery: trio.Nursery
        self._rings_at = float("inf")
        self._sooner = trio.Event()
        self.ended: LeptonError | None = None
        self.wire = Wire(
            sock,
            receive=lambda data: self.machine.receive(data, trio.current_time()),
            take=self.machine.take,
            handle=self._handle,
            finish=self.machine.finish,
            end=self._end,
        )

    async def run(self) -> None:
        """Answer until the other side ends; then what it asked for is cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._ring)
            await self.wire.run()
            self._nursery.cancel_scope.cancel()

    def _handle(self, event: Event) -> None:
        if isinstance(event, Asked):
            job = self._jobs[event.call] = Job(self, event)
            self._nursery.start_soon(self._run, job)
            if self.machine.deadline < self._rings_at:
                self._sooner.set()
            return
        job = self._jobs[event.call]
        match event:
            case ItemCame():
                job.waiting.append(event)
            case Ended():
                job.ended = True
            case Stop():
                job.scope.cancel()
            case Widened():
                pass
        job.moved.unpark_all()

    async def _run(self, job: "Job") -> None:
        error: LeptonError = LinkError("The work on it was stopped.")
        try:
            with job.scope:
                message, arrays = await self._handler(job)(job)
                payload, content, buffers = take_apart(message, arrays)
                del self._jobs[job.id]
                self.machine.answer(AnswerHeader(call=job.id, **content), payload, buffers)
        except Exception as raised:  # noqa: BLE001 - a handler may raise anything, and costs its call only
            error = _told(raised)
        finally:
            if self._jobs.pop(job.id, None) is not None:
                self.machine.fail(job.id, error)
            self.wire.flush()

    def _handler(self, job: "Job") -> Handler:
        handler = self._handlers.get(job.method)
        if handler is None:
            raise UsageError(f"Nobody here answers {job.method!r}.")
        return handler

    def _end(self, error: LeptonError) -> None:
        self.ended = error

    async def _ring(self) -> None:
        while True:
            self._sooner = trio.Event()
            self._rings_at = self.machine.deadline
            with trio.move_on_at(self._rings_at):
                await self._sooner.wait()
            for event in self.machine.tick(trio.current_time()):
                self._handle(event)


def _told(raised: Exception) -> LeptonError:
    error = single(raised) if isinstance(raised, ExceptionGroup) else raised
    if isinstance(error, LeptonError):
        return error
    log.error("a call failed", exc_info=raised)
    return InternalError(f"{type(error).__name__}: {error}")


class Job:
    """One call that is being answered."""

    def __init__(self, answerer: Answerer, asked: Asked) -> None:
        self._answerer = answerer
        self._asked = asked
        self.id: Final = asked.call
        self.method: Final = asked.header.method
        self.kind: Final = asked.header.kind
        self.deadline: Final = trio.current_time() + asked.header.timeout_s
        self.scope: Final = trio.CancelScope()
        self.waiting: deque[ItemCame] = deque()
        self.moved = ParkingLot()
        self.ended = False

    def read(self, kind: type[M]) -> Said[M]:
        """What was asked. Raises PeerError."""
        return put_together(self._asked.header, self._asked.body, kind)

    async def send(self, message: Message, arrays: Sequence[Array] = ()) -> None:
        """Send an item of a server stream; waits while the other side has as many as it takes."""
        machine, wire = self._answerer.machine, self._answerer.wire
        payload, content, buffers = take_apart(message, arrays)
        await trio.lowlevel.checkpoint()
        while not machine.may_send(self.id):
            await self.moved.park()
        await wire.room()
        machine.item(ItemHeader(call=self.id, **content), payload, buffers)
        wire.flush()

    def invite(self) -> None:
        """Let the items of a client stream come."""
        self._answerer.machine.invite(self.id)
        self._answerer.wire.flush()

    async def next_item(self, kind: type[M]) -> Said[M] | None:
        """The next item of a client stream, None at its end. Raises PeerError."""
        await trio.lowlevel.checkpoint()
        while not self.waiting:
            if self.ended:
                return None
            await self.moved.park()
        item = self.waiting.popleft()
        self._answerer.machine.consumed(self.id)
        self._answerer.wire.flush()
        return put_together(item.header, item.body, kind)
