"""Yamux as a machine: bytes in, events out; commands in, frames out. It never waits, reads a clock or opens a socket.

Specification: hashicorp/yamux ``spec.md`` as libp2p uses it (``/yamux/1.0.0``). Rules of the file:

- Whole frames only leave it, control frames before data, and of the streams that have data each sends one frame in
  turn.
- For each stream, what the remote may still send + what lies here unread + what was read and not yet credited = the
  stream's ``granted`` bytes, and the sum of ``granted`` over all streams never exceeds ``memory_bytes_max``. That is
  what bounds the memory of a connection, whatever the remote does.
- A reset is not an end: ``finished`` says that the remote closed its side on purpose, ``was_reset`` that it did not.
- Everything that the remote does against the rules is a PeerError out of ``receive``; after one the machine is of no
  use.
"""

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from . import limits
from .budget import Account, Bucket
from .errors import Busy, LinkError, PeerError

PROTOCOL: Final = "/yamux/1.0.0"
HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
INITIAL_WINDOW: Final = 256 * 1024  # fixed by the specification, for both sides of every new stream
# A chunk that is smaller than this is copied into a shared buffer, so that one unread byte never keeps a whole
# decrypted record (64 KiB) in memory: at most 4 times the bytes that we granted.
COPY_BELOW: Final = 16 * 1024
# Answers that wait because the remote does not read them. Pings and opened streams cost the remote nothing.
ANSWERS_MAX: Final = 4096
DEADLINE_NEVER: Final = float("inf")

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    DATA = 0
    WINDOW = 1
    PING = 2
    GO_AWAY = 3


class Flag:
    """Plain numbers: an IntFlag's ``&`` costs more than the rest of a frame's header."""

    SYN: Final = 1
    ACK: Final = 2
    FIN: Final = 4
    RST: Final = 8


_SYN, _ACK, _FIN, _RST = map(int, (Flag.SYN, Flag.ACK, Flag.FIN, Flag.RST))  # enum arithmetic costs a us each


class GoAway(IntEnum):
    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class YamuxConfig:
    """What one connection may hold, and how long silence lasts before it counts as death."""

    window_bytes: int = 4 * 1024 * 1024  # in flight for each stream: 1 Gbit/s at 32 ms; Noise on a LAN needs 1 MiB
    memory_bytes_max: int = 48 * 1024 * 1024  # 64 streams' initial windows and 8 full ones
    streams_max: int = limits.STREAMS_PER_PEER_MAX  # open at once, for each direction
    pending_max: int = 32  # inbound streams that nobody has accepted yet
    frame_bytes_max: int = 65507  # header + this = 65,519, the plaintext of one Noise message
    ping_after_s: float = 5.0  # silence before we ask
    dead_after_s: float = 15.0  # silence after we asked; a busy Pi stalls for seconds
    linger_s: float = 30.0  # how long a stream that we closed waits for the remote's end before it is reset


@dataclass(slots=True, eq=False)
class YamuxStream:
    """One stream's state. The owner reads it and changes it only through the machine's commands."""

    id: int
    inbound: bool
    granted: int = INITIAL_WINDOW
    receive_window: int = INITIAL_WINDOW  # what the remote may still send
    uncredited: int = 0  # read here, not yet given back to the remote
    unread: deque[bytearray | memoryview] = field(default_factory=deque)
    unread_bytes: int = 0
    send_window: int = INITIAL_WINDOW
    unsent: deque[memoryview] = field(default_factory=deque)
    unsent_bytes: int = 0
    accepted: bool = True
    ending: bool = False  # we asked for our end; FIN follows the data
    ended: bool = False  # our FIN is on its way
    finished: bool = False  # the remote's FIN came
    was_reset: bool = False  # by the remote
    gone: bool = False  # the machine knows it no longer
    deaf: bool = False  # nobody here will read it any more
    queued: bool = False  # waits for its turn to send


@dataclass(frozen=True, slots=True)
class Opened:
    """The remote opened a stream: ``accept`` it or ``reset`` it."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class Readable:
    """There is more to read, or the remote's end: look at ``unread_bytes`` and ``finished``."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class Widened:
    """The window of a stream was shut and is open again."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class WasReset:
    """The remote (or the rule that a closed stream does not linger) broke the stream; unread data is gone."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class Ponged:
    """The answer to ``ping``."""

    value: int


@dataclass(frozen=True, slots=True)
class WentAway:
    """The remote accepts no more streams; with a code other than NORMAL it is about to leave."""

    code: int


@dataclass(frozen=True, slots=True)
class Died:
    """The remote has been silent for ``ping_after_s + dead_after_s``."""


Event = Opened | Readable | Widened | WasReset | Ponged | WentAway | Died


class Yamux:
    """One side of one connection."""

    def __init__(
        self, *, initiator: bool, now: float, config: YamuxConfig | None = None, account: Account | None = None
    ) -> None:
        """``account`` is the peer's part of the node's memory; without one only ``config`` bounds the connection."""
        self._account = account
        self.config = config or YamuxConfig()
        self.streams: dict[int, YamuxStream] = {}
        self.remote_left = False
        self._left = False
        self._next_id = 1 if initiator else 2
        self._remote_parity = 0 if initiator else 1
        self._remote_highest = 0
        self._granted = 0
        self._extra = 0  # of it, beyond the initial windows
        self._counts = {True: 0, False: 0}  # inbound: number of streams
        self._pending = 0
        self._answers: deque[bytes] = deque()
        self._ready: deque[YamuxStream] = deque()
        self._lingering: deque[tuple[float, YamuxStream]] = deque()
        self._header = bytearray()  # an incomplete header
        self._body_left = 0
        self._body_stream: YamuxStream | None = None
        self._body_ends = False
        self._refusals = Bucket(now, per_s=limits.STREAMS_PER_PEER_MAX, burst=limits.STREAM_REFUSALS_MAX)
        self._heard_at = now
        self._pinged_at: float | None = None  # a keep-alive ping without answer yet
        self._ping_taken = self._ping_flushed = False
        self._ping_value = 0

    # -- bytes in -----------------------------------------------------------------------------------------------------

    def receive(self, chunks: Iterable[Buffer], now: float) -> list[Event]:
        """Take the next bytes of the connection, cut anywhere. Raises PeerError at the first violation."""
        self._heard_at = now
        self._pinged_at = None
        events: list[Event] = []
        readable: dict[int, YamuxStream] = {}
        for chunk in chunks:
            view = memoryview(chunk)
            at, end = 0, len(view)
            while at < end:
                if self._body_left:
                    size = min(self._body_left, end - at)
                    self._take_body(view[at : at + size])
                    self._body_left -= size
                    at += size
                    if self._body_stream is not None:
                        readable[self._body_stream.id] = self._body_stream
                        if self._body_ends and not self._body_left:
                            self._take_fin(self._body_stream)
                elif self._header or end - at < HEADER.size:
                    size = min(HEADER.size - len(self._header), end - at)
                    self._header += view[at : at + size]
                    at += size
                    if len(self._header) == HEADER.size:
                        header, self._header = bytes(self._header), bytearray()
                        self._take_header(HEADER.unpack(header), events, readable)
                else:
                    self._take_header(HEADER.unpack_from(view, at), events, readable)
                    at += HEADER.size
        events.extend(Readable(stream) for stream in readable.values() if not stream.was_reset)
        return events

    def _take_header(
        self, header: tuple[int, int, int, int, int], events: list[Event], readable: dict[int, YamuxStream]
    ) -> None:
        version, kind, flags, stream_id, length = header
        if version != 0 or kind > Kind.GO_AWAY or flags > 15:
            msg = f"The peer sent a frame that is not yamux (version {version}, type {kind}, flags {flags})."
            raise PeerError(msg)
        if kind == Kind.PING:
            self._take_ping(flags, length, events)
            return
        if kind == Kind.GO_AWAY:
            self.remote_left = True
            events.append(WentAway(length))
            return
        stream = self._stream_of(stream_id, flags, events)
        if kind == Kind.DATA:
            stream = self._begin_body(stream, length, events)
        elif stream is not None and length:
            self._widen(stream, length, events)
        if flags & _RST:
            self._take_reset(stream, events)
        elif flags & _FIN and stream is not None:
            if length and kind == Kind.DATA:
                self._body_ends = True  # the end counts when the data before it is here
            else:
                readable[stream_id] = stream
                self._take_fin(stream)

    def _stream_of(self, stream_id: int, flags: int, events: list[Event]) -> YamuxStream | None:
        """The stream of a frame. None for one that is closed here already: what was under way for it is dropped."""
        stream = self.streams.get(stream_id)
        if flags & _SYN:
            if stream is not None or not stream_id or stream_id % 2 != self._remote_parity:
                msg = f"The peer opened stream {stream_id}, which is open already or not its to open."
                raise PeerError(msg)
            return self._take_syn(stream_id, events)
        if stream is None and not self._was_known(stream_id):
            msg = f"The peer sent a frame for stream {stream_id}, which nobody has opened."
            raise PeerError(msg)
        return stream

    def _was_known(self, stream_id: int) -> bool:
        if stream_id % 2 == self._remote_parity:
            return 0 < stream_id <= self._remote_highest
        return 0 < stream_id < self._next_id

    def _take_syn(self, stream_id: int, events: list[Event]) -> YamuxStream | None:
        self._remote_highest = max(self._remote_highest, stream_id)
        if (
            self._left
            or self._counts[True] >= self.config.streams_max
            or self._pending >= self.config.pending_max
            or self._granted + INITIAL_WINDOW > self.config.memory_bytes_max
            or not self._affords_a_stream()
        ):
            self._answer(Kind.WINDOW, Flag.RST, stream_id, 0)
            if self._refusals.spend(1, self._heard_at):
                msg = f"The peer opens streams without end: {limits.STREAM_REFUSALS_MAX} were refused."
                raise PeerError(msg)
            return None
        stream = self._add(YamuxStream(stream_id, inbound=True, accepted=False))
        self._pending += 1
        events.append(Opened(stream))
        return stream

    def _begin_body(self, stream: YamuxStream | None, length: int, events: list[Event]) -> YamuxStream | None:
        if stream is not None and length:
            if stream.finished:
                msg = f"The peer sent data on stream {stream.id} after its end."
                raise PeerError(msg)
            if length > stream.receive_window:
                msg = f"The peer sent {length} bytes on stream {stream.id}, more than its window."
                raise PeerError(msg)
            stream.receive_window -= length
            if stream.deaf:
                self.reset(stream)  # tells the remote that nobody reads
                events.append(WasReset(stream))  # and the shell that it is gone
                stream = None
        elif length > INITIAL_WINDOW + self.config.window_bytes:
            msg = f"The peer announced a frame of {length} bytes for a closed stream, more than any window."
            raise PeerError(msg)
        self._body_stream, self._body_left, self._body_ends = stream, length, False
        return stream

    def _take_body(self, piece: memoryview) -> None:
        stream = self._body_stream
        if stream is None or stream.gone:
            return
        stream.unread_bytes += len(piece)
        if len(piece) >= COPY_BELOW:
            stream.unread.append(piece)
            return
        tail = stream.unread[-1] if stream.unread else None
        if isinstance(tail, bytearray) and len(tail) < COPY_BELOW:
            tail += piece
        else:
            stream.unread.append(bytearray(piece))

    def _widen(self, stream: YamuxStream, delta: int, events: list[Event]) -> None:
        if not stream.send_window:
            events.append(Widened(stream))
        stream.send_window += delta
        if stream.send_window > 0xFFFFFFFF:
            msg = f"The peer widened the window of stream {stream.id} past 4 GiB."
            raise PeerError(msg)
        self._want_to_send(stream)

    def _take_fin(self, stream: YamuxStream) -> None:
        if not stream.gone:
            stream.finished = True
            self._forget_if_over(stream)

    def _take_reset(self, stream: YamuxStream | None, events: list[Event]) -> None:
        if stream is None:
            return
        stream.was_reset = True
        self._forget(stream)
        events.append(WasReset(stream))

    def _take_ping(self, flags: int, value: int, events: list[Event]) -> None:
        if flags & _ACK:
            events.append(Ponged(value))
        else:
            self._answer(Kind.PING, Flag.ACK, 0, value)

    # -- commands -----------------------------------------------------------------------------------------------------

    def open(self) -> YamuxStream:
        """Open a stream. Raises LinkError when the remote leaves, Busy when as many are open as may be."""
        if self._left or self.remote_left:
            msg = "The connection is closing and opens no more streams; dial the peer again."
            raise LinkError(msg)
        if (
            self._counts[False] >= self.config.streams_max
            or self._granted + INITIAL_WINDOW > self.config.memory_bytes_max
        ):
            msg = f"{self._counts[False]} streams are open on this connection, all that it takes; wait for one to end."
            raise Busy(msg, limits.BUSY_RETRY_S)
        if self._account is not None:
            self._account.reserve(INITIAL_WINDOW)
        stream = self._add(YamuxStream(self._next_id, inbound=False))
        self._next_id += 2
        self._control(Kind.WINDOW, Flag.SYN, stream.id, self._grow(stream))
        return stream

    def accept(self, stream: YamuxStream) -> None:
        """Take an inbound stream, which so far had only the initial window."""
        if stream.accepted:
            return
        stream.accepted = True
        self._pending -= 1
        if not stream.gone:
            self._control(Kind.WINDOW, Flag.ACK, stream.id, self._grow(stream))

    def send(self, stream: YamuxStream, parts: Sequence[memoryview]) -> None:
        """Queue bytes. They are read when ``take`` puts them into a frame, so must not change until then."""
        for part in parts:
            if len(part):
                stream.unsent.append(part)
                stream.unsent_bytes += len(part)
        self._want_to_send(stream)

    def withdraw(self, stream: YamuxStream) -> None:
        """Forget what ``send`` queued and ``take`` has not taken."""
        stream.unsent.clear()
        stream.unsent_bytes = 0

    def finish(self, stream: YamuxStream) -> None:
        """Say that no more will be sent; the end travels behind the data."""
        if not stream.ending:
            stream.ending = True
            self._want_to_send(stream)

    def close(self, stream: YamuxStream, now: float) -> None:
        """End it in both directions: what was queued still goes, what comes is dropped, and it does not linger long."""
        self.finish(stream)
        stream.deaf = True
        stream.unread.clear()
        stream.uncredited += stream.unread_bytes
        stream.unread_bytes = 0
        self._forget_if_over(stream)
        if stream.uncredited and not stream.finished and not stream.gone:
            self._credit(stream)  # a remote that waits for its window to open is to try, and so to learn of the end
        while self._lingering and self._lingering[0][1].gone:
            self._lingering.popleft()
        if not stream.gone:
            self._lingering.append((now + self.config.linger_s, stream))

    def reset(self, stream: YamuxStream) -> None:
        """Break it in both directions, at once."""
        if not stream.gone:
            self._forget(stream)
            self._control(Kind.WINDOW, Flag.RST, stream.id, 0)

    def read(self, stream: YamuxStream, size_bytes_max: int) -> list[memoryview]:
        """Take up to so many unread bytes, and let the remote send more once half of the window was read."""
        pieces: list[memoryview] = []
        left = size_bytes_max
        while stream.unread and left:
            piece = memoryview(stream.unread.popleft())
            if len(piece) > left:
                stream.unread.appendleft(piece[left:])
                piece = piece[:left]
            left -= len(piece)
            pieces.append(piece)
        size = size_bytes_max - left
        stream.unread_bytes -= size
        stream.uncredited += size
        if stream.finished:
            self._forget_if_over(stream)
        elif 2 * stream.uncredited >= stream.granted and not stream.gone:
            self._credit(stream)
        return pieces

    def put_back(self, stream: YamuxStream, piece: memoryview) -> None:
        """Undo the last part of a ``read``: for bytes that turned out to belong to the next reader."""
        if len(piece):
            stream.unread.appendleft(piece)
            stream.unread_bytes += len(piece)

    def ping(self) -> int:
        """Ask for a sign of life. The answer comes as ``Ponged`` with the value returned here."""
        self._ping_value = (self._ping_value + 1) & 0xFFFFFFFF
        self._control(Kind.PING, Flag.SYN, 0, self._ping_value)
        return self._ping_value

    def leave(self, code: GoAway = GoAway.NORMAL) -> None:
        """Accept and open no more streams, and say so."""
        if not self._left:
            self._left = True
            self._control(Kind.GO_AWAY, 0, 0, code)

    # -- bytes out ----------------------------------------------------------------------------------------------------

    def take(self, size_bytes: int) -> tuple[list[Buffer], list[YamuxStream]]:
        """The next whole frames, about ``size_bytes`` of them, and the streams whose queue this emptied.

        Each frame is a header and its parts in order; nothing is copied.
        """
        pieces: list[Buffer] = list(self._answers)
        self._answers.clear()
        self._ping_taken = self._pinged_at is not None
        size = HEADER.size * len(pieces)
        drained: list[YamuxStream] = []
        while self._ready and size < size_bytes:
            stream = self._ready.popleft()
            stream.queued = False
            size += self._take_frame(stream, pieces)
            if not stream.unsent:
                drained.append(stream)
            self._want_to_send(stream)
            self._forget_if_over(stream)
        return pieces, drained

    @property
    def has_frames(self) -> bool:
        return bool(self._answers or self._ready)

    def _take_frame(self, stream: YamuxStream, pieces: list[Buffer]) -> int:
        length = min(stream.unsent_bytes, stream.send_window, self.config.frame_bytes_max)
        flags = 0
        if stream.ending and length == stream.unsent_bytes and not stream.gone:
            flags = _FIN
            stream.ended = True
        elif not length or stream.gone:
            return 0
        pieces.append(HEADER.pack(0, Kind.DATA, flags, stream.id, length))
        stream.send_window -= length
        stream.unsent_bytes -= length
        left = length
        while left:
            part = stream.unsent.popleft()
            if len(part) > left:
                stream.unsent.appendleft(part[left:])
                part = part[:left]
            left -= len(part)
            pieces.append(part)
        return HEADER.size + length

    def _want_to_send(self, stream: YamuxStream) -> None:
        has_data = bool(stream.unsent_bytes and stream.send_window)
        has_end = stream.ending and not stream.ended and not stream.unsent_bytes
        if (has_data or has_end) and not stream.queued and not stream.gone:
            stream.queued = True
            self._ready.append(stream)

    # -- time ---------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When ``tick`` wants to be called at the latest."""
        if self._pinged_at is not None:
            soonest = self._pinged_at + self.config.dead_after_s
        else:
            soonest = self._heard_at + self.config.ping_after_s
        return min(soonest, self._lingering[0][0]) if self._lingering else soonest

    def tick(self, now: float) -> list[Event]:
        """Ping, give the remote up, or reset streams that linger, as the time says."""
        events: list[Event] = []
        while self._lingering and self._lingering[0][0] <= now:
            _, stream = self._lingering.popleft()
            if not stream.gone:
                self.reset(stream)
                stream.was_reset = True
                events.append(WasReset(stream))
        if self._pinged_at is not None:
            if now >= self._pinged_at + self.config.dead_after_s:
                self._pinged_at = now
                events.append(Died())
        elif now >= self._heard_at + self.config.ping_after_s:
            self._pinged_at = now
            self._ping_flushed = self._ping_taken = False
            self.ping()
        return events

    def progressed(self, now: float) -> None:
        """The link took some of our bytes. Until our ping is through it, that is all the life we can ask for."""
        if self._pinged_at is not None and not self._ping_flushed:
            self._pinged_at = now

    def flushed(self, now: float) -> None:
        """The link took all that ``take`` returned so far."""
        if self._ping_taken and not self._ping_flushed:
            self.progressed(now)
            self._ping_flushed = True

    # -- accounts -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """The connection is over: give its memory back. What is still read here afterwards is on nobody's account."""
        account, self._account = self._account, None
        if account is not None:
            account.release(self._granted)

    def _affords_a_stream(self) -> bool:
        try:
            if self._account is not None:
                self._account.reserve(INITIAL_WINDOW)
        except Busy:
            return False
        return True

    def _add(self, stream: YamuxStream) -> YamuxStream:
        self.streams[stream.id] = stream
        self._counts[stream.inbound] += 1
        self._granted += stream.granted
        return stream

    def _grow(self, stream: YamuxStream) -> int:
        """Grant the whole window if the memory of the connection allows it; returns what was added."""
        delta = self.config.window_bytes - stream.granted
        kept = 2 * self.config.streams_max * INITIAL_WINDOW  # so that wide streams never keep narrow ones from opening
        if delta <= 0 or kept + self._extra + delta > self.config.memory_bytes_max:
            return 0
        if self._account is not None and not self._account.widen(delta):
            return 0
        self._granted += delta
        self._extra += delta
        stream.granted += delta
        stream.receive_window += delta
        return delta

    def _credit(self, stream: YamuxStream) -> None:
        delta = stream.uncredited
        stream.receive_window += delta
        stream.uncredited = 0
        more = 0 if stream.deaf else self._grow(stream)
        self._control(Kind.WINDOW, 0, stream.id, delta + more)

    def _forget_if_over(self, stream: YamuxStream) -> None:
        if stream.ended and stream.finished and not stream.unread_bytes and not stream.gone:
            self._forget(stream)

    def _forget(self, stream: YamuxStream) -> None:
        stream.gone = True
        del self.streams[stream.id]
        self._counts[stream.inbound] -= 1
        self._granted -= stream.granted
        if self._account is not None:
            self._account.release(stream.granted)
        self._extra -= stream.granted - INITIAL_WINDOW
        if not stream.accepted:
            stream.accepted = True
            self._pending -= 1
        stream.unread.clear()
        stream.unread_bytes = 0
        self.withdraw(stream)

    def _answer(self, kind: Kind, flags: int, stream_id: int, length: int) -> None:
        if len(self._answers) >= ANSWERS_MAX:
            msg = f"The peer asks without reading: {ANSWERS_MAX} answers wait for it."
            raise PeerError(msg)
        self._control(kind, flags, stream_id, length)

    def _control(self, kind: Kind, flags: int, stream_id: int, length: int) -> None:
        self._answers.append(HEADER.pack(0, kind, flags, stream_id, length))
