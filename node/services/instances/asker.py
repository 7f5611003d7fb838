"""The asking side of a local socket: the shell of ``Caller`` between a node and an instance, in either direction."""

import socket
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec
import trio
from trio.lowlevel import ParkingLot

from ....mesh import limits, tensors
from ....mesh.errors import LeptonError, LinkError, PeerError, UsageError
from ....mesh.messages import Message
from ....mesh.rpc.caller import Answered, Caller, Event, Failed, ItemCame
from ....mesh.rpc.headers import Content, ItemHeader, Kind, RequestHeader
from ....mesh.tensors import Array
from .wire import BODY_BYTES_MAX, Wire, undecodable

R = TypeVar("R", bound=Message)
Said = tuple[R, list[Array]]
_encode = msgspec.msgpack.Encoder().encode


def take_apart(message: Message, arrays: Sequence[Array]) -> tuple[bytes, dict[str, Any], list[memoryview]]:
    """A message and arrays as a payload, what a header says of them, and buffers. Raises UsageError."""
    payload = _encode(message)
    try:
        buffers = [tensors.buffer_of(array) for array in arrays]
        specs = tuple(tensors.describe(array) for array in arrays)
    except (ValueError, KeyError) as error:
        raise UsageError(f"An array cannot travel: {error}") from error
    if sum(map(len, buffers)) > limits.BODY_BYTES_MAX or len(specs) > limits.BUFFERS_MAX:
        raise UsageError(f"A {type(message).__name__} with its arrays is too large for one message.")
    return payload, {"payload_bytes": len(payload), "tensors": specs}, buffers


def put_together(header: Content, body: memoryview, kind: type[R]) -> Said[R]:
    """A frame as a message and arrays. Raises PeerError."""
    try:
        message = msgspec.msgpack.decode(body[: header.payload_bytes], type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise undecodable(kind.__name__, error) from error
    return message, tensors.read(header.tensors, body[header.payload_bytes :]) if header.tensors else []


@dataclass(slots=True, eq=False)
class Pending:
    """One call that is not over."""

    id: int
    deadline: float
    answer: Answered | None = None
    error: LeptonError | None = None
    items: deque[ItemCame] = field(default_factory=deque)
    moved: ParkingLot = field(default_factory=ParkingLot)  # who feeds waits there, beside who waits for the answer


class Asker:
    """Asks over one socket while ``run`` runs."""

    def __init__(self, sock: socket.socket, who: str, *, in_flight_max: int = limits.CALLS_OUT_PER_PEER_MAX) -> None:
        """``who`` is how errors name the other side."""
        self._machine: Final = Caller(who, in_flight_max=in_flight_max, body_bytes_max=BODY_BYTES_MAX)
        self._machine.take()  # the word that this is a stream of calls: a socket is nothing else
        self._pending: dict[int, Pending] = {}
        self._rings_at = float("inf")
        self._sooner = trio.Event()
        self.ended: LeptonError | None = None
        self.wire = Wire(
            sock,
            receive=self._machine.receive,
            take=self._machine.take,
            handle=self._handle,
            finish=self._machine.finish,
            end=self._end,
        )

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ring)
            await self.wire.run()
            nursery.cancel_scope.cancel()

    def is_open(self, call: int) -> bool:
        """Whether the other side still works on a call, or may: also after nobody waits for it any more."""
        return self.ended is None and self._machine.is_open(call)

    async def ask(
        self, method: str, message: Message, arrays: Sequence[Array] = (), *, answers: type[R], deadline: float
    ) -> Said[R]:
        """Call a method. Raises what the other side raised, LinkError at the deadline or when the socket ends."""
        pending = await self.begin(method, message, arrays, deadline=deadline)
        try:
            return await self.answer(pending, answers)
        finally:
            self.leave(pending)

    @asynccontextmanager
    async def stream(
        self, method: str, message: Message, arrays: Sequence[Array] = (), *, items: type[R], deadline: float
    ) -> AsyncIterator["Items[R]"]:
        """Call a server stream's method; leaving the block ends it."""
        pending = await self.begin(method, message, arrays, deadline=deadline, kind="server_stream")
        try:
            yield Items(self, pending, items)
        finally:
            self.leave(pending)

    async def begin(
        self, method: str, message: Message, arrays: Sequence[Array], *, deadline: float, kind: Kind = "unary"
    ) -> Pending:
        """Ask, and wait for nothing but room. Whoever begins must ``leave``."""
        payload, content, buffers = take_apart(message, arrays)
        if self.wire.unsent_bytes:
            with trio.CancelScope(deadline=deadline):
                await self.wire.room()
        now = trio.current_time()
        if self.ended is not None or now >= deadline:
            raise self.ended or LinkError(f"There was no time left to ask for {method!r}.")
        header = RequestHeader(
            call=self._machine.next_call,
            method=method,
            timeout_s=min(deadline - now, limits.CALL_TIMEOUT_S_MAX),
            kind=kind,
            credit=limits.STREAM_ITEMS_MAX if kind == "server_stream" else 0,
            **content,
        )
        self._machine.start(header, payload, tuple(buffers), now=now)
        pending = self._pending[header.call] = Pending(header.call, deadline)
        if deadline < self._rings_at:
            self._sooner.set()
        self.wire.flush()
        return pending

    def leave(self, pending: Pending) -> None:
        """The call is over for us: cancel it if it is not for the other side."""
        if self._pending.pop(pending.id, None) is not None and pending.answer is None and pending.error is None:
            self._machine.cancel(pending.id)
            self.wire.flush()

    async def answer(self, pending: Pending, kind: type[R]) -> Said[R]:
        while pending.answer is None and pending.error is None:
            await pending.moved.park()
        if pending.error is not None:
            raise pending.error
        assert pending.answer is not None
        return self._read(pending.answer.header, pending.answer.body, kind)

    async def feed(self, pending: Pending, items: AsyncIterable[tuple[Message, Sequence[Array]]]) -> None:
        """Send the items of a client stream; ends early when the call is over."""
        async for message, arrays in items:
            payload, content, buffers = take_apart(message, arrays)
            await self.wire.room()
            while not self._machine.may_send(pending.id) and pending.answer is None and pending.error is None:
                await pending.moved.park()
            if pending.answer is not None or pending.error is not None:
                return
            self._machine.item(ItemHeader(call=pending.id, **content), payload, buffers)
            self.wire.flush()
        self._machine.end(pending.id)
        self.wire.flush()

    async def next_item(self, pending: Pending, kind: type[R]) -> Said[R] | None:
        """The next item of a server stream, None at its end. Raises what the other side raised, behind the last."""
        await trio.lowlevel.checkpoint()
        while not pending.items:
            if pending.error is not None:
                raise pending.error
            if pending.answer is not None:
                return None
            await pending.moved.park()
        came = pending.items.popleft()
        self._machine.consumed(pending.id)
        self.wire.flush()
        return self._read(came.header, came.body, kind)

    def _read(self, header: Content, body: memoryview, kind: type[R]) -> Said[R]:
        try:
            return put_together(header, body, kind)
        except PeerError as error:  # of what it says nothing more can be trusted
            self.wire.close(error)
            raise

    def _handle(self, event: Event) -> None:
        pending = self._pending.get(event.call)
        if pending is None:
            return
        match event:
            case Answered():
                pending.answer = event
            case ItemCame():
                pending.items.append(event)
            case Failed():
                pending.error = event.error
        pending.moved.unpark_all()

    def _end(self, error: LeptonError) -> None:
        self.ended = error
        for pending in self._pending.values():
            if pending.answer is None and pending.error is None:
                pending.error = error
            pending.moved.unpark_all()

    async def _ring(self) -> None:
        """Give calls up at their deadlines. Most end long before, so the clock is set forward only when it rings."""
        while True:
            self._sooner = trio.Event()
            self._rings_at = self._machine.deadline
            with trio.move_on_at(self._rings_at):
                await self._sooner.wait()
            for event in self._machine.tick(trio.current_time()):
                self._handle(event)
            self.wire.flush()


class Items(Generic[R]):
    """What a server stream brings, in order; ``last`` is what it said at its end."""

    def __init__(self, asker: Asker, pending: Pending, kind: type[R]) -> None:
        self._asker = asker
        self._kind = kind
        self.pending = pending

    def __aiter__(self) -> "Items[R]":
        return self

    async def __anext__(self) -> Said[R]:
        item = await self._asker.next_item(self.pending, self._kind)
        if item is None:
            raise StopAsyncIteration
        return item
