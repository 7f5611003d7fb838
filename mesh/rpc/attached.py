"""The streams that carry the large buffers of single calls: each is met by the call that announced them, or goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

import trio

from .. import limits
from ..budget import Account
from ..errors import PeerError
from ..tensors import Array, size_bytes
from ..transport import Connection, Stream
from . import headers
from .bulk import Bulk, Source, receive_arrays, send_buffers, send_source, size_of
from .channel import Counts
from .headers import Attach, Content

PROTOCOL = "/lepton/call/1"


class Key(NamedTuple):
    """Whose buffers: of which call, and in which direction. Calls in both directions may have the same number."""

    call: int
    to_caller: bool


@dataclass(slots=True, eq=False)
class _Slot:
    stream: Stream | None = None
    arrived: trio.Event = field(default_factory=trio.Event)
    claimed: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)


class Attached:
    """The attached streams that the peer of one connection opened."""

    def __init__(self) -> None:
        self._slots: dict[Key, _Slot] = {}

    def __bool__(self) -> bool:
        """Whether there is any, or any is waited for."""
        return bool(self._slots)

    async def serve(self, key: Key, stream: Stream) -> None:
        """Keep a stream until its call is done with it, or nobody asks for it. Raises PeerError for a second one."""
        slot = self._slots.setdefault(key, _Slot())
        if slot.stream is not None:
            msg = f"Two streams came for the buffers of call {key.call}."
            raise PeerError(msg)
        try:
            if sum(not slot.claimed.is_set() for slot in self._slots.values()) > limits.ATTACHED_PER_PEER_MAX:
                stream.reset()
                return
            slot.stream = stream
            slot.arrived.set()
            with trio.move_on_after(limits.FRAME_TIMEOUT_S) as waiting:
                stream.watch(*[partial(_hurry, stream, waiting)] * 2)
                await slot.claimed.wait()
            if slot.claimed.is_set():
                await slot.done.wait()
        finally:
            if self._slots.get(key) is slot:
                del self._slots[key]

    async def claim(self, key: Key) -> Stream:
        """The stream with a call's buffers, when it is here. Bound the wait; ``release`` it in any case."""
        slot = self._slots.setdefault(key, _Slot())
        slot.claimed.set()
        await slot.arrived.wait()
        assert slot.stream is not None
        return slot.stream

    def release(self, key: Key) -> None:
        """The call is over, or done with its stream."""
        if (slot := self._slots.pop(key, None)) is not None:
            slot.claimed.set()
            slot.done.set()


def _hurry(stream: Stream, waiting: trio.CancelScope) -> None:
    """A stream that its sender broke off is kept only for a call that may just be about to learn of it."""
    if stream.broken:
        waiting.deadline = min(waiting.deadline, trio.current_time() + limits.REASON_WAIT_S)


class Outlet:
    """Our side's large buffers of one call: a stream that opens when the first of them is sent."""

    def __init__(self, connection: Connection, key: Key, counts: Counts) -> None:
        self._connection = connection
        self._key = key
        self._counts = counts
        self._stream: Stream | None = None

    @property
    def is_open(self) -> bool:
        return self._stream is not None

    async def open(self) -> Stream:
        """Open the stream if it is not open yet. Raises LinkError."""
        if self._stream is None:
            self._stream = await self._connection.open_stream(PROTOCOL)
            first = headers.frame(Attach(call=self._key.call, to_caller=self._key.to_caller))
            self._stream.send_nowait(first)
            self._counts.sent += len(first)
        return self._stream

    async def send(self, buffers: Sequence[memoryview], bulk: Source | None = None) -> None:
        """Send buffers behind those of earlier messages. Raises LinkError; cancelled, the stream is reset."""
        stream = await self.open()
        await send_buffers(stream, buffers)
        self._counts.sent += sum(view.nbytes for view in buffers)
        if bulk is not None:
            await send_source(stream, bulk)
            self._counts.sent += size_of(bulk)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        self.abandon()

    async def aclose(self) -> None:
        """All was sent."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    def abandon(self) -> None:
        """Break it off, if it is open."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset()


class Inlet:
    """The other side's large buffers of one call; until ``close`` their memory is on the peer's account."""

    def __init__(self, attached: Attached, key: Key, counts: Counts, account: Account) -> None:
        self._attached = attached
        self._key = key
        self._counts = counts
        self._account = account
        self._held_bytes = 0

    async def arrays(self, header: Content) -> list[Array]:
        """Receive the tensors that a header announced; their sizes were checked.

        Raises Busy before anything is read when this node has no memory for them, LinkError, PeerError.
        """
        if not header.tensors:
            return []
        size = sum(map(size_bytes, header.tensors))
        self._account.reserve(size)
        self._held_bytes += size
        stream = await self._attached.claim(self._key)
        arrays = await receive_arrays(stream, header.tensors)
        self._counts.received += sum(array.nbytes for array in arrays)
        return arrays

    async def bulk(self, header: Content) -> Bulk:
        """The transfer behind them."""
        stream = await self._attached.claim(self._key)
        self._counts.received += header.bulk_bytes
        return Bulk(stream, header.bulk_bytes)

    def let_go(self) -> None:
        """What was read is somebody else's now."""
        held, self._held_bytes = self._held_bytes, 0
        self._account.release(held)

    def close(self) -> None:
        self.let_go()
        self._attached.release(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
