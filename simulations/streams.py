"""Streams between simulated devices: in order and whole however bad the link is, or they break, as TCP's do.

To those above it is what `node/generation/links.py` is: one stream each way to every neighbour, opened by the first
word, whose end is told as the peer's loss. Below it are lossy messages: a segment is repeated until it is acknowledged.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ..mesh.errors import PeerError, Refused
from ..mesh.identity import PeerId
from ..node.generation.messages import Data, Open, Said, Token, decode, decoder, encode
from .network import Connection

if TYPE_CHECKING:
    from .device import Device

_REPEAT_S: Final = 0.2  # the least that Linux waits for an acknowledgement; twice as long each time that none comes
# Linux goes on to 120 s. There the mesh's own probes go over the same connection, which is given up and dialled anew.
_REPEAT_S_MAX: Final = 5.0
_AGAIN_S: Final = 0.05  # what the other end says is missing is repeated if it was sent so long ago: some round trips
_AT_ONCE: Final = 64  # segments that are repeated or named as missing
_OPEN_TIMEOUT_S: Final = 3.0  # this and the next as in node/generation/links.py
_UNSENT_BYTES_MAX: Final = 32 * 1024 * 1024
_LOOK_S: Final = 0.05  # how often who waits for a connection looks for one
_SEGMENT_BYTES: Final = 60  # of headers

_SERVES: Final = (Data, Token, Open)  # what somebody is served with: steps, tokens, prompts

Stream = tuple[float, int]  # when it was opened, and which of its sender's it is: a later one is greater


class Segment(NamedTuple):
    """A piece of a stream on the wire."""

    stream: Stream
    sequence: int
    data: bytes


class Acknowledged(NamedTuple):
    """All segments before this one have come, and those behind it but for the missing."""

    stream: Stream
    sequence: int
    missing: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Outlet:
    """Our stream to one peer."""

    stream: Stream
    connection: Connection | None = None  # while it is being opened
    unacknowledged: dict[int, bytes] = field(default_factory=dict)
    unacknowledged_bytes: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)
    sequence: int = 0  # of the next
    wait_s: float = _REPEAT_S
    waits: bool = False  # for an acknowledgement


@dataclass(slots=True, eq=False)
class _Inlet:
    """A peer's stream to us."""

    stream: Stream
    connection: Connection
    sequence: int = 0  # what comes next
    early: dict[int, bytes] = field(default_factory=dict)


class Streams:
    """The streams of one device to and from those who share sessions with it."""

    def __init__(
        self,
        device: "Device",
        received: Callable[[PeerId, Said], None],
        lost: Callable[[PeerId, str], None],
        together: Callable[[bool], None],
    ) -> None:
        """``together`` hears True before, and False behind, all that came at once."""
        self._device = device
        self._received, self._lost, self._together = received, lost, together
        self._outlets: dict[PeerId, _Outlet] = {}
        self._inlets: dict[PeerId, _Inlet] = {}
        self._opened = 0
        self._own: deque[Callable[[], None]] = deque()
        self._telling = False
        device.on_other.append(self._on_packet)
        device.on_gone.append(self._on_gone)

    def send(self, peer: PeerId, said: Said) -> None:
        """Say something to a peer, or to this device itself."""
        if peer == self._device.me:
            self._tell(lambda: self._received(peer, said))
        else:
            self._send(peer, encode(said), serves=isinstance(said, _SERVES))

    def send_together(self, all_said: Sequence[tuple[PeerId, Said]]) -> None:
        """Say several things, those to one peer in one piece."""
        to: dict[PeerId, list[Said]] = {}
        for peer, said in all_said:
            if peer != self._device.me:
                to.setdefault(peer, []).append(said)
        for peer, some in to.items():
            self._send(peer, b"".join(map(encode, some)), serves=any(isinstance(said, _SERVES) for said in some))
        for peer, said in all_said:
            if peer == self._device.me:
                self.send(peer, said)

    def drop(self, peer: PeerId) -> None:
        """End the streams to and from a peer at once; nobody is told."""
        self._outlets.pop(peer, None)
        self._inlets.pop(peer, None)

    # -- outwards -----------------------------------------------------------------------------------------------------

    def _send(self, peer: PeerId, data: bytes, *, serves: bool) -> None:
        outlet = self._outlets.get(peer) or self._new(peer)
        if serves and outlet.connection is not None:
            self._device.serves(peer)
        outlet.unacknowledged[outlet.sequence] = data
        outlet.unacknowledged_bytes += len(data)
        if outlet.connection is not None:
            self._transmit(peer, outlet, (outlet.sequence,))
        outlet.sequence += 1
        if outlet.unacknowledged_bytes > _UNSENT_BYTES_MAX:
            self._forget(peer, outlet, "does not read what is said to it")

    def _new(self, peer: PeerId) -> _Outlet:
        self._opened += 1
        outlet = self._outlets[peer] = _Outlet((self._device.world.now, self._opened))
        self._open(peer, outlet, self._device.now + _OPEN_TIMEOUT_S)
        return outlet

    def _open(self, peer: PeerId, outlet: _Outlet, until_s: float) -> None:
        if self._outlets.get(peer) is not outlet:
            return
        if (connection := self._connection_to(peer)) is not None and self._stands(peer):
            outlet.connection = connection
            self._transmit(peer, outlet, tuple(outlet.unacknowledged))
        elif self._device.now >= until_s:
            self._forget(peer, outlet, f"could not be reached within {_OPEN_TIMEOUT_S:g} s")
        else:
            self._device.after(_LOOK_S, lambda: self._open(peer, outlet, until_s))

    def _connection_to(self, peer: PeerId) -> Connection | None:
        open_ones = self._device.connections.get(peer, []) if peer in self._device.connected else []
        return open_ones[-1] if open_ones else None

    def _stands(self, peer: PeerId) -> bool:
        try:
            self._device.admission.standing(peer, self._device.unix_s)
        except Refused:
            return False
        return True

    def _transmit(self, peer: PeerId, outlet: _Outlet, sequences: Sequence[int]) -> None:
        connection, device = outlet.connection, self._device
        assert connection is not None
        for sequence in sequences:
            data = outlet.unacknowledged[sequence]
            segment = Segment(outlet.stream, sequence, data)
            device.network.send(connection, device.me, segment, _SEGMENT_BYTES + len(data))
            outlet.sent_at[sequence] = device.now
        if not outlet.waits:
            self._wait(peer, outlet)

    def _wait(self, peer: PeerId, outlet: _Outlet) -> None:
        """Repeat the oldest when nothing is acknowledged in time."""

        def expire() -> None:
            outlet.waits = False
            if not outlet.unacknowledged or self._outlets.get(peer) is not outlet:
                return
            oldest = tuple(outlet.unacknowledged)[:_AT_ONCE]
            if self._device.now >= outlet.sent_at[oldest[0]] + outlet.wait_s:
                outlet.wait_s = min(2 * outlet.wait_s, _REPEAT_S_MAX)
                self._transmit(peer, outlet, oldest)
            else:
                self._wait(peer, outlet)

        outlet.waits = True
        self._device.after(outlet.wait_s, expire)

    def _acknowledged(self, peer: PeerId, said: Acknowledged) -> None:
        outlet = self._outlets.get(peer)
        if outlet is None or outlet.stream != said.stream:
            return
        for sequence in [number for number in outlet.unacknowledged if number < said.sequence]:
            outlet.unacknowledged_bytes -= len(outlet.unacknowledged.pop(sequence))
            del outlet.sent_at[sequence]
            outlet.wait_s = _REPEAT_S
        old_s = self._device.now - _AGAIN_S
        again = [number for number in said.missing if outlet.sent_at.get(number, math.inf) <= old_s]
        self._transmit(peer, outlet, again)

    def _forget(self, peer: PeerId, outlet: _Outlet, reason: str) -> None:
        if self._outlets.get(peer) is outlet:
            del self._outlets[peer]
            self._tell(lambda: self._lost(peer, reason))

    # -- inwards ------------------------------------------------------------------------------------------------------

    def _on_packet(self, connection: Connection, packet: object) -> None:
        peer = connection.other(self._device.me)
        if isinstance(packet, Acknowledged):
            self._acknowledged(peer, packet)
        elif isinstance(packet, Segment) and peer in self._device.connected:  # before that it is repeated
            self._take(peer, connection, packet)

    def _take(self, peer: PeerId, connection: Connection, segment: Segment) -> None:
        inlet = self._inlets.get(peer)
        if inlet is None or segment.stream > inlet.stream:  # it would not open another unless it lost the first
            if not self._stands(peer):
                return
            inlet = self._inlets[peer] = _Inlet(segment.stream, connection)
        if segment.stream != inlet.stream:
            return
        if segment.sequence >= inlet.sequence:
            inlet.early[segment.sequence] = segment.data
        came = []
        while (data := inlet.early.pop(inlet.sequence, None)) is not None:
            inlet.sequence += 1
            came.append(data)
        until = max(inlet.early, default=inlet.sequence)
        missing = tuple(number for number in range(inlet.sequence, until) if number not in inlet.early)
        said = Acknowledged(inlet.stream, inlet.sequence, missing[:_AT_ONCE])
        self._device.network.send(connection, self._device.me, said, _SEGMENT_BYTES)
        if came:
            self._read(peer, b"".join(came))

    def _read(self, peer: PeerId, data: bytes) -> None:
        self._together(True)  # noqa: FBT003
        try:
            for frame in decoder().receive(data):
                said = decode(frame)
                self._tell(lambda said=said: self._received(peer, said))  # type: ignore[misc]
        except PeerError as error:
            self._device.offended(peer, str(error))
        self._together(False)  # noqa: FBT003

    def _on_gone(self, connection: Connection) -> None:
        peer = connection.other(self._device.me)
        outlet, inlet = self._outlets.get(peer), self._inlets.get(peer)
        if outlet is not None and outlet.connection is connection:
            self._forget(peer, outlet, "was lost: the connection is gone")
        if inlet is not None and inlet.connection is connection:
            del self._inlets[peer]
            self._tell(lambda: self._lost(peer, "was lost: its stream of steps ended"))

    def _tell(self, what: Callable[[], None]) -> None:
        """Tell the machines, one thing after another, also what they say to this device itself meanwhile."""
        self._own.append(what)
        if self._telling:
            return
        self._telling = True
        try:
            while self._own:
                self._own.popleft()()
        finally:
            self._telling = False
