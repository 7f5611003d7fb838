"""The shell of ``Callee``: answers one peer's calls on one control stream, each in a task that is kept for the next.

Authorisation happens here and nowhere else: with the header known, before the payload or a tensor is looked at.
"""

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from trio.lowlevel import ParkingLot

from .. import limits
from ..errors import Busy, LeptonError, LinkError, PeerError, Uncertain, UsageError
from ..grants import Authority
from ..identity import PeerId, short
from ..messages import Message
from ..tensors import Array
from ..transport import Stream
from .asking import Body, body_of, read_body
from .attached import Attached, Inlet, Key, Outlet
from .callee import Asked, Callee, Ended, Event, ItemCame, Stop, Widened
from .channel import Channel, Counts
from .headers import AnswerHeader, InternalError, ItemHeader, RequestHeader
from .methods import Answer, Empty, Incoming, Method, capability
from .once import OnlyOnce, hash_of

log = logging.getLogger(__name__)

Admit = Callable[[PeerId], Awaitable[Authority]]


class Serving:
    """The calls of one peer, until its control stream ends."""

    def __init__(
        self,
        stream: Stream,
        attached: Attached,
        counts: Counts,
        *,
        methods: Mapping[str, Method],
        admit: Admit,
        offend: Callable[[PeerId, str], None],
        only_once: OnlyOnce,
    ) -> None:
        self.only_once = only_once
        self.peer = stream.peer_id
        self.connection = stream.connection
        self.attached = attached
        self.counts = counts
        self.machine = Callee(epoch=only_once.epoch, queues=self._queues)
        self.methods = methods
        self.large = trio.Semaphore(limits.CALLS_PER_PEER_MAX)  # answers to queued calls that have streams of their own
        self.admit = admit
        self._offend = offend
        self._stream = stream
        self._jobs: dict[int, Job] = {}
        self._idle: list[_Worker] = []
        self._nursery: trio.Nursery
        self._over = trio.Event()
        self.finished = trio.Event()  # and every handler has stopped
        self._sooner = trio.Event()
        self._wake_at = float("inf")
        self.channel = Channel(
            stream,
            counts,
            receive=lambda data: self.machine.receive(data, trio.current_time()),
            take=self.machine.take,
            handle=self._handle,
            begun=self.machine.begun,
            finish=self.machine.finish,
            end=self._ended,
        )

    async def run(self) -> None:
        """Answer until the caller closes the stream or its connection ends; then what it asked for is cancelled."""
        async with trio.open_nursery() as self._nursery:
            self.channel.start()
            self._nursery.start_soon(self._watch)
            await self._over.wait()
            self._nursery.cancel_scope.cancel()

    def _queues(self, method: str) -> bool:
        known = self.methods.get(method)
        return known is not None and known.queued

    async def _watch(self) -> None:
        """Stop calls at their deadlines. Most end long before, so the clock is set forward only when it rings."""
        while True:
            self._wake_at = self.machine.deadline
            self._sooner = trio.Event()
            with trio.move_on_at(self._wake_at):
                await self._sooner.wait()
            for event in self.machine.tick(trio.current_time()):
                self._handle(event)

    # -- the channel's word -------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Asked):
            self._start(Job(self, event), event.header.settled)
            return
        job = self._jobs[event.call]
        match event:
            case ItemCame():
                job.waiting.append(event)
                job.moved.unpark_all()
            case Ended():
                job.ended = True
                job.moved.unpark_all()
            case Widened():
                job.moved.unpark_all()
            case Stop():
                job.stop()

    def _ended(self, error: LeptonError) -> None:
        if isinstance(error, PeerError):
            self.machine.give_up(error)
            self.channel.flush()
            self._offend(self.peer, str(error))
        self._over.set()

    def offended(self, error: PeerError) -> None:
        """A payload broke the protocol; the caller has been told."""
        self._offend(self.peer, str(error))

    # -- workers ------------------------------------------------------------------------------------------------------

    def _start(self, job: "Job", settled: Sequence[bytes]) -> None:
        self._jobs[job.id] = job
        self.only_once.settle(self.peer, settled)
        if self.machine.deadline < self._wake_at:
            self._wake_at = self.machine.deadline
            self._sooner.set()
        if self._idle:
            worker = self._idle.pop()
            worker.job = job
            worker.wake.set()
        else:
            self._nursery.start_soon(self._work, _Worker(job))

    async def _work(self, worker: "_Worker") -> None:
        """Run jobs one after another: a task and a cancel scope of its own for each would cost as much as a call."""
        try:
            with trio.CancelScope() as worker.scope:
                while True:
                    await self._run(worker.job, worker.scope)
                    if worker.scope.cancel_called:
                        break
                    worker.wake = trio.Event()
                    self._idle.append(worker)
                    await worker.wake.wait()
        except Exception:  # what a handler raised while it was cancelled
            log.exception("A handler of a call of %s failed when it was stopped", short(self.peer))

    async def _run(self, job: "Job", scope: trio.CancelScope) -> None:
        job.scope = scope
        try:
            await job.run()
        finally:
            del self._jobs[job.id]
            self.channel.flush()


class _Worker:
    """A task that runs jobs."""

    __slots__ = ("job", "scope", "wake")

    def __init__(self, job: "Job") -> None:
        self.job = job
        self.scope: trio.CancelScope
        self.wake = trio.Event()


class Job:
    """One call that is being answered."""

    __slots__ = ("_asked", "_inlet", "_outlet", "_serving", "ended", "id", "moved", "scope", "stopped", "waiting")

    def __init__(self, serving: Serving, asked: Asked) -> None:
        self._serving = serving
        self._asked = asked
        self.id = asked.call
        self.scope: trio.CancelScope | None = None
        self.stopped = False
        self.waiting: deque[ItemCame] = deque()
        self.moved = ParkingLot()  # where it waits for items, or for room to send some
        self.ended = False
        self._inlet = Inlet(
            serving.attached, Key(asked.call, to_caller=False), serving.counts, serving.connection.account
        )
        self._outlet = Outlet(serving.connection, Key(asked.call, to_caller=True), serving.counts)

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self.stopped = True
        if self.scope is not None:
            self.scope.cancel()

    async def run(self) -> None:
        """Answer the call, in whatever way; raises only Cancelled."""
        serving = self._serving
        error: LeptonError = LinkError("The callee stopped.")
        answered = False
        try:
            if self.stopped:
                return
            body = await self._answer()
            async with self._room_for(body):
                if body.aside:
                    await self._outlet.open()
                serving.machine.answer(_answer_header(self.id, body), body.payload, body.inline)
                answered = True
                if body.aside and serving.machine.is_delivering(self.id):
                    serving.channel.flush()
                    await self._outlet.send(body.buffers, body.bulk)
                if self._outlet.is_open:
                    await self._outlet.aclose()
        except Exception as raised:  # noqa: BLE001  a handler may raise anything, and costs its call only
            error = self._reason(raised)
        finally:
            serving.counts.answered += 1
            serving.counts.answered_failed += not answered
            self._end(None if answered else error)
        if isinstance(error, PeerError):
            serving.channel.flush()
            serving.offended(error)

    @asynccontextmanager
    async def _room_for(self, body: Body) -> AsyncIterator[None]:
        """Let large answers to queued calls go a few at a time; what waits is on the peer's account.

        Raises Uncertain when the account is full: the call ran, and its answer is dropped.
        """
        serving = self._serving
        if not body.aside or not serving.machine.is_queued(self.id):
            yield
            return
        try:
            serving.large.acquire_nowait()
        except trio.WouldBlock:
            size, account = sum(view.nbytes for view in body.buffers), serving.connection.account
            try:
                account.reserve(size)
            except Busy as error:
                raise Uncertain(
                    f"The call ran, but there was no room to keep its answer of {size} B: {error}"
                ) from error
            try:
                await serving.large.acquire()
            finally:
                account.release(size)
        try:
            yield
        finally:
            serving.large.release()

    def _end(self, error: LeptonError | None) -> None:
        """Nothing more is done for this call: an error is its last word, without one the word was given."""
        machine = self._serving.machine
        self._outlet.abandon()
        self._inlet.let_go()
        if self._serving.attached:
            self._inlet.close()
        if error is not None:
            machine.fail(self.id, error)
        elif machine.is_delivering(self.id):
            machine.delivered(self.id)

    def _reason(self, raised: Exception) -> LeptonError:
        while isinstance(raised, ExceptionGroup) and len(raised.exceptions) == 1:  # of a nursery in the handler
            raised = raised.exceptions[0]
        if isinstance(raised, PeerError) and raised.offender not in {"", self._serving.peer}:
            return LinkError(str(raised))  # somebody whom the handler called broke the protocol: not this caller
        if isinstance(raised, LeptonError):
            return raised
        log.error("The handler of %r failed", self._asked.header.method, exc_info=raised)
        return InternalError(f"its handler raised {type(raised).__name__}.")

    async def _answer(self) -> Body:
        serving, header = self._serving, self._asked.header
        authority = await serving.admit(serving.peer)
        method = serving.methods.get(header.method)
        if method is None or method.kind != header.kind:
            raise _unknown(header, method)
        authority.require(capability(method, header.scope), time.time())
        if header.bulk_bytes > method.bulk_bytes_max:
            msg = f"{method.name!r} takes transfers of {method.bulk_bytes_max} B at most, not {header.bulk_bytes} B."
            raise PeerError(msg)
        message, arrays = await read_body(header, self._asked.body, method.takes, self._inlet, method.body_bytes_max)
        incoming = Incoming(serving.peer, authority, header.scope, message, arrays, timeout_s=header.timeout_s)
        if header.kind != "unary" or header.bulk_bytes:
            incoming = incoming._replace(
                items=self,
                send=self._send,
                bulk=await self._inlet.bulk(header) if header.bulk_bytes else None,
            )
        if header.kind == "client_stream":
            serving.machine.invite(self.id)
            serving.channel.flush()
        if header.once is not None:
            return await self._answer_once(method, incoming)
        return _body(await method.handler(incoming))

    async def _answer_once(self, method: Method, incoming: Incoming[Any]) -> Body:
        header = self._asked.header
        assert header.once is not None
        payload = self._asked.body[: header.payload_bytes]
        try:
            body = await self._serving.only_once.run(
                self._serving.peer,
                header.once,
                hash_of(header.method, header.scope, payload, incoming.arrays),
                partial(_handled, method, incoming),
                header.timeout_s,
                queued=self._serving.machine.is_queued(self.id),
            )
        finally:
            if self.stopped and header.once.brief:  # by its caller, and not because the connection broke
                self._serving.only_once.stop(self._serving.peer, header.once.key)
        assert isinstance(body, Body)
        return body

    def __aiter__(self) -> "Job":
        return self

    async def __anext__(self) -> Answer[Any]:
        """The next item of a client stream."""
        await trio.lowlevel.checkpoint()
        self._inlet.let_go()  # the handler has done with the item before
        while not self.waiting:
            if self.ended:
                raise StopAsyncIteration
            await self.moved.park()
        item, method, serving = self.waiting.popleft(), self._serving.methods[self._asked.header.method], self._serving
        message, arrays = await read_body(item.header, item.body, method.items, self._inlet, method.body_bytes_max)
        serving.machine.consumed(self.id)
        serving.channel.flush()
        return Answer(message, arrays)

    async def _send(self, message: Message, arrays: Sequence[Array] = ()) -> None:
        serving, body = self._serving, body_of(message, arrays)
        await trio.lowlevel.checkpoint()
        while not serving.machine.may_send(self.id):
            await self.moved.park()
        await serving.channel.room()
        header = ItemHeader(call=self.id, payload_bytes=len(body.payload), tensors=body.specs, aside=body.aside)
        serving.machine.item(header, body.payload, list(body.inline))
        serving.channel.flush()
        if body.aside:
            await self._outlet.send(body.buffers)


async def _handled(method: Method, incoming: Incoming[Any]) -> tuple[Body, int]:
    body = _body(await method.handler(incoming))
    if body.bulk is not None:
        msg = f"{method.name!r} answers with a transfer, so it cannot be called with an idempotency key."
        raise UsageError(msg)
    return body, len(body.payload) + sum(view.nbytes for view in body.buffers)


def _body(answer: Answer[Any] | None) -> Body:
    return body_of(Empty()) if answer is None else body_of(*answer)


def _answer_header(call: int, body: Body) -> AnswerHeader:
    return AnswerHeader(
        call=call,
        payload_bytes=len(body.payload),
        tensors=body.specs,
        aside=body.aside,
        bulk_bytes=body.bulk_bytes,
    )


def _unknown(header: RequestHeader, method: Method | None) -> UsageError:
    if method is None:
        return UsageError(
            f"This node does not answer {header.method!r}; it may run another release, or not hold what was asked for."
        )
    return UsageError(f"{header.method!r} is a {method.kind} method and was called as {header.kind}.")
