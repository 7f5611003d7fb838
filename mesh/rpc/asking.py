"""The shell of ``Caller``: our calls to one peer, on one control stream. An answer wakes the task that waits for it."""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import trio
from trio.lowlevel import ParkingLot

from .. import limits, tensors
from ..errors import LeptonError, LinkError, PeerError, UsageError
from ..identity import short
from ..messages import NAME_PATTERN, Message, pack, unpack
from ..tensors import Array
from ..transport import Connection, Stream
from .attached import Attached, Inlet, Key, Outlet
from .bulk import Destination, Source, size_of
from .caller import Answered, Caller, Event, Failed, ItemCame, Welcomed, Widened
from .channel import Channel, Counts
from .headers import Content, ItemHeader, Kind, Once, RequestHeader
from .methods import Answer, Item


class Body(NamedTuple):
    """A message and tensors, ready for the wire."""

    payload: bytes
    specs: tuple[tensors.TensorSpec, ...] = ()
    buffers: tuple[memoryview, ...] = ()
    aside: bool = False
    bulk: Source | None = None
    bulk_bytes: int = 0

    @property
    def inline(self) -> tuple[memoryview, ...]:
        """The buffers that travel in the frame."""
        return () if self.aside else self.buffers


def body_of(message: Message, arrays: Sequence[Array] = (), bulk: Source | None = None) -> Body:
    """Encode a message. Raises ValueError for a tensor whose element type does not travel."""
    payload = pack(message)
    if not arrays and bulk is None:
        return Body(payload=payload)
    buffers = tuple(map(tensors.buffer_of, arrays))
    return Body(
        payload=payload,
        specs=tuple(map(tensors.describe, arrays)),
        buffers=buffers,
        aside=bulk is not None or sum(view.nbytes for view in buffers) > limits.INLINE_BYTES_MAX,
        bulk=bulk,
        bulk_bytes=0 if bulk is None else size_of(bulk),
    )


async def read_body(
    header: Content, body: memoryview, kind: type[Any], inlet: Inlet | None, bytes_max: int
) -> tuple[Any, list[Array]]:
    """Parse a payload and take the tensors in, from the frame or from their stream. Raises PeerError, LinkError."""
    size = header.payload_bytes + sum(map(tensors.size_bytes, header.tensors))
    if size > bytes_max:
        msg = f"A {kind.__name__} and its tensors take {size} B; at most {bytes_max} B are accepted here."
        raise PeerError(msg)
    message = unpack(body[: header.payload_bytes], kind)
    if header.aside:
        assert inlet is not None
        return message, await inlet.arrays(header)
    return message, tensors.read(header.tensors, body[header.payload_bytes :]) if header.tensors else []


@dataclass(slots=True, eq=False)
class Pending:
    """One call of ours that is not over."""

    id: int
    method: str
    moved: ParkingLot = field(default_factory=ParkingLot)  # where all wait who wait for news of it
    answer: Answered | None = None
    error: LeptonError | None = None
    items: deque[ItemCame] = field(default_factory=deque)
    work: trio.CancelScope | None = None  # what makes no sense any more once the call is over

    def wake(self) -> None:
        self.moved.unpark_all()

    def over(self) -> None:
        self.moved.unpark_all()
        if self.work is not None:
            self.work.cancel()


@lru_cache(maxsize=1024)
def is_readable(method: str, scope: str) -> bool:
    """Whether a peer would take these names; asked for every call, hence the cache."""
    name = re.compile(NAME_PATTERN)
    return name.search(method) is not None and (not scope or name.search(scope) is not None)


class Asking:
    """Our calls to the peer of one connection, until its control stream breaks."""

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        attached: Attached,
        counts: Counts,
        first: int,
        blame: Callable[["Asking", PeerError], None],
    ) -> None:
        self.connection = connection
        self._stream = stream
        self._attached = attached
        self._counts = counts
        self._who: Final = short(connection.peer_id)
        self._machine = Caller(self._who, first=first)
        self._pending: dict[int, Pending] = {}
        self._blame = blame
        self._rings_at = float("inf")
        self._welcome = trio.Event()
        self.channel = Channel(
            stream,
            counts,
            receive=self._machine.receive,
            take=self._machine.take,
            handle=self._handle,
            begun=self._machine.begun,
            finish=self._machine.finish,
            end=self._ended,
        )
        self.channel.start()

    def is_over(self, call: int) -> bool:
        """Whether nobody here waits for this call (any more)."""
        return call not in self._pending

    @property
    def in_flight(self) -> int:
        """Calls without a last word, cancelled ones included."""
        return self._machine.in_flight

    @property
    def next_call(self) -> int:
        return self._machine.next_call

    async def epoch(self) -> bytes:
        """Which life of the callee this is. Raises LinkError; bound the wait."""
        await self._welcome.wait()
        if not self._machine.epoch:
            msg = f"The connection to {self._who} broke before it was asked."
            raise LinkError(msg)
        return self._machine.epoch

    # -- one call -----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether ``begin`` may be called now; after ``channel.room()`` it may."""
        return self._stream.unsent_bytes <= limits.CONTROL_UNSENT_BYTES_MAX

    def begin(
        self, method: str, body: Body, *, scope: str, deadline: float, kind: Kind = "unary", once: Once | None = None
    ) -> Pending:
        """Ask. Whoever begins must ``leave`` at the end. Raises Busy when too many calls are in flight."""
        if self.channel.over:
            msg = f"The connection to {self._who} broke before {method!r} was asked."
            raise LinkError(msg)
        wide = any(len(spec.shape) > limits.TENSOR_DIMENSIONS_MAX for spec in body.specs)
        if wide or len(body.specs) > limits.BUFFERS_MAX or not is_readable(method, scope):
            most = f"{limits.BUFFERS_MAX} tensors of {limits.TENSOR_DIMENSIONS_MAX} dimensions"
            msg = (
                f"{method!r} cannot be called like this: it and its scope {scope!r} have to be names (1 to 64 of a-z, "
                f"0-9, '.', '_', '-'), and at most {most} go with a message."
            )
            raise UsageError(msg)
        call, now = self._machine.next_call, trio.current_time()
        header = RequestHeader(
            call=call,
            method=method,
            scope=scope,
            timeout_s=min(max(deadline - now, 0.001), limits.CALL_TIMEOUT_S_MAX),
            kind=kind,
            credit=limits.STREAM_ITEMS_MAX if kind == "server_stream" else 0,
            payload_bytes=len(body.payload),
            tensors=body.specs,
            aside=body.aside,
            bulk_bytes=body.bulk_bytes,
            once=once,
        )
        self._machine.start(header, body.payload, body.inline, now=now)
        self._counts.asked += 1
        if deadline < self._rings_at:
            self._rings_at = deadline
            self._stream.alarm(deadline, self._ring)
        self.channel.flush()
        pending = self._pending[call] = Pending(call, method)
        return pending

    def leave(self, pending: Pending) -> None:
        """The call is over for us: cancel it if it is not for the peer, and forget it."""
        if self._pending.pop(pending.id, None) is None:
            return
        if self._attached:
            self._attached.release(Key(pending.id, to_caller=True))
        if pending.answer is None and pending.error is None and not self.channel.over:
            self._machine.cancel(pending.id)
            self.channel.flush()

    async def answer(self, pending: Pending) -> Answered:
        """Wait for the last word. Raises what the callee raised."""
        while pending.answer is None and pending.error is None:
            await pending.moved.park()
        if pending.error is not None:
            raise pending.error
        assert pending.answer is not None
        return pending.answer

    async def read(
        self,
        pending: Pending,
        header: Content,
        body: memoryview,
        kind: type[Any],
        inlet: Inlet | None,
        *,
        bytes_max: int,
        bulk_to: Destination | None = None,
        bulk_bytes_max: int = 0,
    ) -> Answer[Any]:
        """Turn a frame into what it stands for; an attached stream is read until the control stream breaks."""
        if header.bulk_bytes > bulk_bytes_max:
            msg = f"{self._who} wants to send {header.bulk_bytes} B; at most {bulk_bytes_max} B are wanted."
            raise PeerError(msg)
        if not header.aside:
            return Answer(*await read_body(header, body, kind, inlet, bytes_max))
        with trio.CancelScope() as pending.work:
            message, arrays = await read_body(header, body, kind, inlet, bytes_max)
            if bulk_to is not None and header.bulk_bytes and inlet is not None:
                await (await inlet.bulk(header)).to(bulk_to)
            return Answer(message, arrays)
        raise pending.error or self._broken(pending.method)

    # -- streams of items ---------------------------------------------------------------------------------------------

    async def push(self, pending: Pending, body: Body, outlet: Outlet) -> None:
        """Send one buffer-laden request's rest; ends early, without an error, when the call is over."""
        with trio.CancelScope() as pending.work:
            if pending.answer is None and pending.error is None:
                await _send_aside(outlet, body)
        pending.work = None

    async def feed(self, pending: Pending, items: AsyncIterable[Item], outlet: Outlet) -> None:
        """Send the items of a client stream; ends early, without an error, when the call is over."""
        generator = aclosing(items) if isinstance(items, AsyncGenerator) else nullcontext()
        async with generator:
            await self._feed(pending, items, outlet)

    async def _feed(self, pending: Pending, items: AsyncIterable[Item], outlet: Outlet) -> None:
        with trio.CancelScope() as pending.work:
            if pending.answer is not None or pending.error is not None:
                return
            async for item in items:
                body = body_of(item.message, item.arrays) if isinstance(item, Answer) else body_of(item)
                while not self._machine.may_send(pending.id):
                    await pending.moved.park()
                await self.channel.room()
                header = ItemHeader(
                    call=pending.id, payload_bytes=len(body.payload), tensors=body.specs, aside=body.aside
                )
                self._machine.item(header, body.payload, list(body.inline))
                self.channel.flush()
                if body.aside:
                    await _send_aside(outlet, body)
            self._machine.end(pending.id)
            self.channel.flush()
        pending.work = None

    async def next_item(self, pending: Pending) -> ItemCame | None:
        """The next item of a server stream, None at its end. Raises what the callee raised, behind its last item."""
        await trio.lowlevel.checkpoint()
        while not pending.items:
            if pending.error is not None:
                raise pending.error
            if pending.answer is not None:
                return None
            await pending.moved.park()
        return pending.items.popleft()

    def consumed(self, pending: Pending) -> None:
        """An item was read: another may come."""
        self._machine.consumed(pending.id)
        self.channel.flush()

    # -- large buffers ------------------------------------------------------------------------------------------------

    def outlet(self, pending: Pending) -> Outlet:
        return Outlet(self.connection, Key(pending.id, to_caller=False), self._counts)

    def inlet(self, pending: Pending) -> Inlet:
        return Inlet(self._attached, Key(pending.id, to_caller=True), self._counts, self.connection.account)

    # -- the channel's word -------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Welcomed):
            self._welcome.set()
            return
        pending = self._pending.get(event.call)
        if pending is None:
            return
        match event:
            case Answered():
                pending.answer = event
                pending.over()
            case ItemCame():
                pending.items.append(event)
                pending.wake()
            case Widened():
                pending.wake()
            case Failed():
                self._counts.asked_failed += 1
                pending.error = event.error
                pending.over()

    def _ended(self, error: LeptonError) -> None:
        self._welcome.set()
        if isinstance(error, PeerError):
            self._blame(self, error)
        for pending in self._pending.values():
            if pending.answer is None:
                pending.error = pending.error or LinkError(str(error))
            pending.over()
        self._stream.reset()

    def _ring(self) -> None:
        """The soonest deadline: most calls end long before theirs, so it is looked for only now."""
        for event in self._machine.tick(trio.current_time()):
            self._handle(event)
        self.channel.flush()
        self._rings_at = self._machine.deadline
        if self._rings_at < float("inf"):
            self._stream.alarm(self._rings_at, self._ring)

    def _broken(self, method: str) -> LinkError:
        return LinkError(f"The connection to {self._who} broke while the answer of {method!r} was under way.")


async def _send_aside(outlet: Outlet, body: Body) -> None:
    try:
        await outlet.send(body.buffers, body.bulk)
    except LinkError as error:
        await _wait_for_the_reason(error)


async def _wait_for_the_reason(error: LinkError) -> None:
    """The peer closed our stream: its reason comes on the control stream in a moment, and is the better error."""
    with trio.move_on_after(limits.REASON_WAIT_S):
        await trio.sleep_forever()
    raise error
