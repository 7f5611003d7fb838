"""The trio shell around ``Yamux`` and a record layer: one secured connection that carries many streams.

Three tasks own a connection: the reader parses all that one wake-up decrypted, the writer sends whole frames in
batches, the clock drives keep-alive. A task with something to say gives the socket what it takes at once, without
waiting, and leaves the rest to the writer. So no task that may be cancelled from outside ever waits in the middle of a
frame: cancelled in ``send_all`` or ``receive_some``, it leaves the connection as it was. At worst its own stream is
reset, when a part of what it sent had gone.
"""

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Final

import trio

from . import limits
from .budget import Account, Bucket
from .errors import LinkError, PeerError
from .records_layer import Records
from .tcp import Socket
from .yamux import (
    Buffer,
    Died,
    Event,
    GoAway,
    Opened,
    Ponged,
    Readable,
    WasReset,
    WentAway,
    Widened,
    Yamux,
    YamuxConfig,
    YamuxStream,
)

log = logging.getLogger(__name__)

# Plaintext for each write to the socket: 8 full frames. More delays small messages, less costs task switches.
BATCH_BYTES: Final = 512 * 1024
# For each read of the socket, one buffer for all connections of a trio run: a read is parsed before anybody else runs.
READ_BYTES: Final = 256 * 1024
CLOSE_TIMEOUT_S: Final = 1.0  # for our last frames to leave, and again for the peer's end to come
RECEIVE_BYTES: Final = 1024 * 1024  # at most, for a ``receive_some`` that names no size

_scratch: Final[trio.lowlevel.RunVar[memoryview]] = trio.lowlevel.RunVar("scratch")


def _read_buffer() -> memoryview:
    try:
        return _scratch.get()
    except LookupError:
        _scratch.set(memoryview(bytearray(READ_BYTES)))
        return _scratch.get()


class Muxer:
    """One connection. ``run`` it; its streams work meanwhile and are broken afterwards."""

    def __init__(
        self,
        socket: Socket,
        records: Records,
        *,
        initiator: bool,
        early: bytes = b"",
        config: YamuxConfig | None = None,
        account: Account | None = None,
    ) -> None:
        """``early`` is plaintext that came behind the handshake, ``account`` the peer's part of the node's memory."""
        self._socket = socket
        self._records = records
        self._yamux = Yamux(initiator=initiator, now=trio.current_time(), config=config, account=account)
        self._bucket = Bucket(trio.current_time(), per_s=limits.RATE_BYTES_S, burst=limits.BURST_BYTES_MAX)
        self._early = early
        self._streams: dict[YamuxStream, MuxedStream] = {}
        self._inbound: dict[YamuxStream, MuxedStream] = {}
        self._pings: dict[int, trio.Event] = {}
        self._work = trio.Event()
        self._arrival = trio.Event()
        self._clock_moved = trio.Event()
        self._rings_at = 0.0
        self._alarms: dict[Callable[[], None], float] = {}
        self._scope = trio.CancelScope()
        self._closing = False
        self._left = memoryview(b"")  # sealed, and not yet taken by the socket
        self._held = False  # frames are being taken in or out, so others wait
        self._remote_ended = trio.Event()
        self.reason = ""  # why it is closed
        self.offence = ""  # what the peer did against the rules
        self.closed = trio.Event()

    # -- the owner's side ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry the connection until it is closed, from either side. Never raises for what the remote or the link
        did.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
        except Exception:
            log.exception("A connection failed through a bug of ours; it is closed, and nothing else.")
            self.reason = self.reason or "an error of our own"
        finally:
            self._end(self.reason or "the connection was closed here")

    def open_stream(self) -> "MuxedStream":
        """A new stream, at once. Raises LinkError."""
        if self.closed.is_set() or self._closing:
            msg = f"The connection is closed: {self.reason or 'by us'}."
            raise LinkError(msg)
        stream = self._wrap(self._yamux.open())
        self._kick()  # the frame that opens it goes with the first data, if that comes at once
        return stream

    async def accept_stream(self) -> "MuxedStream":
        """The next stream that the remote opened. Raises LinkError when the connection is closed."""
        await trio.lowlevel.checkpoint()
        while not self._inbound:
            if self.closed.is_set():
                msg = f"The connection is closed: {self.reason}."
                raise LinkError(msg)
            self._arrival = trio.Event()
            await self._arrival.wait()
        state = next(iter(self._inbound))
        stream = self._inbound.pop(state)
        self._yamux.accept(state)
        self._kick()
        return stream

    def alarm(self, at: float, ring: Callable[[], None]) -> None:
        """Call ``ring`` once at this time, unless the connection is closed by then; it must neither wait nor raise.

        One clock for all calls of a connection costs less than a cancel scope for each.
        """
        self._alarms[ring] = at
        if at < self._rings_at:
            self._clock_moved.set()

    async def ping(self) -> float:
        """Measure the round trip in seconds; bound it with a timeout. Raises LinkError when the connection closes."""
        begin = trio.current_time()
        value = self._yamux.ping()
        answered = self._pings[value] = trio.Event()
        self._kick()
        try:
            await answered.wait()
        finally:
            del self._pings[value]
        if self.closed.is_set():
            msg = f"The connection is closed: {self.reason}."
            raise LinkError(msg)
        return trio.current_time() - begin

    async def aclose(self, *, linger: bool = True) -> None:
        """Close it: queued frames still go, then the peer's end is awaited, each for ``CLOSE_TIMEOUT_S`` at most."""
        if self.closed.is_set():
            await trio.lowlevel.checkpoint()
            return
        try:
            self.reason = self.reason or "closed here"
            if linger and not self._closing:
                self._yamux.leave()
                self._closing = True
                self._kick()
                with trio.move_on_after(2 * CLOSE_TIMEOUT_S):
                    await self._remote_ended.wait()
        finally:
            self._scope.cancel()
            with trio.CancelScope(shield=True):  # run() ends as soon as its tasks saw the cancellation
                await self.closed.wait()

    def abort(self, reason: str) -> None:
        """Close it at once, without a word to the peer."""
        self.reason = self.reason or reason
        self._scope.cancel()

    # -- the three tasks ----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        scratch = _read_buffer()
        try:
            if self._early:
                self._take([self._early], trio.current_time())
                self._early = b""
            while not self._records.ended:
                size = self._socket.receive_nowait(scratch)
                if size is None:
                    await self._socket.readable()
                elif size:
                    now = trio.current_time()
                    self._take(self._records.open(scratch[:size]), now)
                    if too_fast_s := self._bucket.spend(size, now):
                        await trio.sleep(too_fast_s)  # what it sends meanwhile fills its own queues
                    elif size == READ_BYTES:
                        await trio.lowlevel.checkpoint()
                    else:  # all that was there: to ask again would cost a system call and a task switch
                        await self._socket.readable()
                else:
                    break
            self._fail("the peer closed the connection")
        except PeerError as error:
            self.offence = str(error)
            self._yamux.leave(GoAway.PROTOCOL_ERROR)
            self._last_words()
            self._fail(str(error))
        except LinkError as error:
            self._fail(str(error))

    async def _write(self) -> None:
        try:
            while True:
                if self._left:
                    await self._socket.writable()
                    self._send_left()
                elif self._yamux.has_frames:
                    self._left = memoryview(self._next_batch())
                    self._send_left()
                    await trio.lowlevel.checkpoint()
                elif self._closing:
                    break
                else:
                    self._work = trio.Event()
                    await self._work.wait()
            await self._socket.send_all(self._records.farewell())
            self._socket.end()
        except LinkError as error:
            self._fail(str(error))

    def _push(self) -> None:
        """Send what there is at once, from whichever task made it: it saves a small message two task switches.

        What the socket does not take is the writer's, and as long as it has some nothing overtakes it.
        """
        if self._held:
            self._kick()
        if self._held or self._left or self._closing:
            return
        try:
            self._left = memoryview(self._next_batch())
            self._send_left()
        except LinkError as error:
            self._fail(str(error))
        if self._left or self._yamux.has_frames:
            self._kick()

    def _next_batch(self) -> Buffer:
        pieces, drained = self._yamux.take(BATCH_BYTES)
        self._held = True  # what a watcher says now comes behind these frames
        for state in drained:
            if (stream := self._streams.get(state)) is not None:
                stream.notice_drained()
            self._drop_if_gone(state)
        self._held = False
        return self._records.seal(pieces) if pieces else b""

    def _send_left(self) -> None:
        now = trio.current_time()
        if sent := self._socket.send_nowait(self._left):
            self._left = self._left[sent:]
            self._yamux.progressed(now)
        if not self._left:
            self._yamux.flushed(now)

    async def _watch(self) -> None:
        while True:
            self._rings_at = min([self._yamux.deadline, *self._alarms.values()])
            self._clock_moved = trio.Event()
            with trio.move_on_at(self._rings_at):
                await self._clock_moved.wait()
            now = trio.current_time()
            for ring in [ring for ring, at in self._alarms.items() if at <= now]:
                del self._alarms[ring]
                ring()
            for event in self._yamux.tick(now):
                self._handle(event)
            self._kick()

    # -- events -------------------------------------------------------------------------------------------------------

    def _take(self, chunks: Sequence[bytes], now: float) -> None:
        self._held = True  # all that watchers answer goes in one batch
        for event in self._yamux.receive(chunks, now):
            self._handle(event)
        self._held = False
        if self._yamux.has_frames:
            self._push()

    def _handle(self, event: Event) -> None:
        match event:
            case Readable(state):
                self._wake(state, MuxedStream.notice_readable)
            case Widened(state):
                self._wake(state, MuxedStream.notice_drained)
            case Opened(state):
                self._inbound[state] = self._wrap(state)
                self._arrival.set()
            case WasReset(state):
                self._inbound.pop(state, None)
                if (stream := self._streams.pop(state, None)) is not None:
                    stream.break_off("the peer reset the stream")
            case Ponged(value) if value in self._pings:
                self._pings[value].set()
            case WentAway(code) if code != GoAway.NORMAL:
                self._fail(f"the peer leaves with code {code}")
            case Died():
                self._fail("the peer has been silent for too long")

    def _wake(self, state: YamuxStream, notice: Callable[["MuxedStream"], None]) -> None:
        if (stream := self._streams.get(state)) is not None:
            notice(stream)
        if not state.was_reset:  # else WasReset follows in the same batch, for readers and writers to hear of
            self._drop_if_gone(state)

    def _wrap(self, state: YamuxStream) -> "MuxedStream":
        stream = self._streams[state] = MuxedStream(self, self._yamux, state)
        return stream

    def _drop_if_gone(self, state: YamuxStream) -> None:
        if state.gone:
            self._streams.pop(state, None)

    def _kick(self) -> None:
        self._work.set()

    def _fail(self, reason: str) -> None:
        self._remote_ended.set()
        self.reason = self.reason or reason
        self._scope.cancel()

    def _last_words(self) -> None:
        """Say why we leave if the socket takes it now; nobody waits for a peer that broke the protocol."""
        try:
            self._socket.send_nowait(memoryview(self._records.seal(self._yamux.take(BATCH_BYTES)[0])))
        except LinkError:
            log.debug("The peer that broke the protocol was gone already.")

    def _end(self, reason: str) -> None:
        self.reason = reason
        self._closing = True
        self._socket.close()
        self._yamux.settle()
        self.closed.set()
        self._arrival.set()
        self._inbound.clear()
        for answered in self._pings.values():
            answered.set()
        for stream in list(self._streams.values()):
            stream.break_off(reason)
        self._streams.clear()


class MuxedStream(trio.abc.HalfCloseableStream):
    """One stream of a connection. One task may send and one may receive at a time."""

    def __init__(self, muxer: Muxer, yamux: Yamux, state: YamuxStream) -> None:
        self._muxer = muxer
        self._yamux = yamux
        self._state = state
        self._broken = ""
        self._closed = False
        self._reset_here = False
        self._sending = False
        self._receiving = False
        self._moved_in = trio.Event()
        self._moved_out = trio.Event()
        self._on_readable: Callable[[], None] | None = None
        self._on_drained: Callable[[], None] | None = None

    # -- without waiting ----------------------------------------------------------------------------------------------

    def watch(self, readable: Callable[[], None], drained: Callable[[], None]) -> None:
        """Call these, from the connection's own tasks, when there may be more to read, and when all was sent; both
        when the stream breaks.

        It saves a task's wake-up for every small message. They must neither wait nor raise; now is a first call.
        """
        self._on_readable, self._on_drained = readable, drained
        readable()

    @property
    def unsent_bytes(self) -> int:
        """What was queued and is in no frame yet."""
        return self._state.unsent_bytes

    @property
    def broken(self) -> str:
        """Why nothing more comes or goes, ``""`` while it does. What came before an end on purpose is read first."""
        if self._broken or self._closed:
            return self._broken or "this stream was closed here"
        return "the peer ended the stream" if self._state.finished and not self._state.unread_bytes else ""

    @property
    def ended(self) -> bool:
        """Whether the peer ended it on purpose, so that all that it sent is here."""
        return self._state.finished and not self._state.was_reset and not self._reset_here

    def send_nowait(self, data: bytes) -> None:
        """Queue bytes behind those queued before; bound ``unsent_bytes``. Of a broken stream they go nowhere."""
        if not (self._broken or self._closed or self._state.ending):
            self._yamux.send(self._state, (memoryview(data),))
            self._muxer._push()  # noqa: SLF001  the two classes are one module's

    def receive_nowait(self) -> list[memoryview]:
        """What lies here unread, in pieces."""
        return self._read(RECEIVE_BYTES) if self._state.unread_bytes else []

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send_all(self, data: Buffer) -> None:
        """Send bytes. Returns when all of them are in frames, so ``data`` may be reused then.

        Waits without limit while the remote does not read. Cancelled in the middle, the stream is reset, because the
        remote has a part; cancelled before anything went, it stays as it was. Raises trio.BrokenResourceError when the
        remote reset the stream or the connection closed, trio.ClosedResourceError after our own ``aclose`` or
        ``send_eof``.
        """
        await self.send_parts((data,))

    async def send_parts(self, parts: Sequence[Buffer]) -> None:
        """Send several buffers as one run of bytes, without joining them. Otherwise like ``send_all``."""
        await self._begin_sending()
        try:
            views = [memoryview(part).cast("B") for part in parts]
            size = sum(map(len, views))
            self._yamux.send(self._state, views)
            self._muxer._push()  # noqa: SLF001  the two classes are one module's
            await self._wait_until_sent(size)
        finally:
            self._sending = False

    async def _wait_until_sent(self, size: int) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while self._state.unsent_bytes and not (self._broken or self._closed):
                self._moved_out = trio.Event()
                await self._moved_out.wait()
        except trio.Cancelled:
            untouched = self._state.unsent_bytes == size
            self._yamux.withdraw(self._state)
            if not untouched and size:
                self.reset()
            raise
        self._check()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _begin_sending(self) -> None:
        if self._sending:
            msg = "another task is sending on this stream"
            raise trio.BusyResourceError(msg)
        if self._broken or self._closed or self._state.ending:
            await trio.lowlevel.checkpoint()
            self._check()
            msg = "the end of this stream was sent already"
            raise trio.ClosedResourceError(msg)
        self._sending = True

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a send would make progress at once."""
        await self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            while not (self._state.send_window or self._broken or self._closed):
                self._moved_out = trio.Event()
                await self._moved_out.wait()
            self._check()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Say that nothing more comes from here; the remote reads ``b""`` behind the data."""
        if self._sending:
            msg = "another task is sending on this stream"
            raise trio.BusyResourceError(msg)
        await trio.lowlevel.checkpoint()
        self._check()
        self._yamux.finish(self._state)
        self._muxer._kick()  # noqa: SLF001

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, ``b""`` only when the remote ended its side on purpose. Raises as ``send_all`` does."""
        size_bytes_max = RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if size_bytes_max < 1:
            msg = "max_bytes must be 1 or more"
            raise ValueError(msg)
        if not await self._wait_until_readable():
            return b""
        pieces = self._read(size_bytes_max)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def receive_into(self, into: Buffer) -> int:
        """Copy the next bytes straight to where they belong; returns how many, 0 at the remote's end."""
        target = memoryview(into).cast("B")
        if not target or not await self._wait_until_readable():
            return 0
        at = 0
        for piece in self._read(len(target)):
            target[at : at + len(piece)] = piece
            at += len(piece)
        return at

    def push_back(self, data: bytes) -> None:
        """Make ``data`` the next that is received: for bytes that belong to the next reader."""
        if not self._broken:
            self._yamux.put_back(self._state, memoryview(data))

    async def _wait_until_readable(self) -> bool:
        if self._receiving:
            msg = "another task is receiving on this stream"
            raise trio.BusyResourceError(msg)
        self._receiving = True
        try:
            if self._state.unread_bytes or self._state.finished or self._broken or self._closed:
                await trio.lowlevel.checkpoint()
            while not (self._state.unread_bytes or self._state.finished or self._broken or self._closed):
                self._moved_in = trio.Event()
                await self._moved_in.wait()
        finally:
            self._receiving = False
        self._check(reading=True)
        return bool(self._state.unread_bytes)

    def _read(self, size_bytes_max: int) -> list[memoryview]:
        pieces = self._yamux.read(self._state, size_bytes_max)
        if self._yamux.has_frames:
            self._muxer._kick()  # noqa: SLF001
        self._muxer._drop_if_gone(self._state)  # noqa: SLF001
        return pieces

    # -- the end ------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End both directions. What was sent still arrives; what the remote sends from now on resets the stream."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sending and self._state.unsent_bytes:
            self.reset()  # a part of what another task is sending must not look like the whole
        elif not self._broken and not self._state.gone:
            self._yamux.close(self._state, trio.current_time())
            self._muxer._kick()  # noqa: SLF001
            self._muxer._drop_if_gone(self._state)  # noqa: SLF001
        self._moved_in.set()
        self._moved_out.set()

    def reset(self) -> None:
        """Break the stream in both directions, at once; the remote's reads and writes fail. Never blocks."""
        if not self._broken:
            self._reset_here = True
            self._yamux.reset(self._state)
            self._muxer._kick()  # noqa: SLF001
            self._muxer._drop_if_gone(self._state)  # noqa: SLF001
            self.break_off("the stream was reset here")

    def break_off(self, reason: str) -> None:
        """The muxer's word that nothing more comes or goes."""
        self._broken = self._broken or reason
        self.notice_readable()
        self.notice_drained()

    def notice_readable(self) -> None:
        """Let whoever waits to read look again: there is something, or an end."""
        self._moved_in.set()
        if self._on_readable is not None:
            self._on_readable()

    def notice_drained(self) -> None:
        """Let whoever waits to write look again."""
        self._moved_out.set()
        if self._on_drained is not None:
            self._on_drained()

    def _check(self, *, reading: bool = False) -> None:
        if self._closed:
            msg = "this stream was closed here"
            raise trio.ClosedResourceError(msg)
        if self._broken and not (
            reading and self.ended
        ):  # all that the remote sent is here, whatever became of the rest
            raise trio.BrokenResourceError(self._broken)
