"""Streams between simulated devices: in order and whole however bad the link is, or they break, as TCP's do.

To those above it is what `node/generation/links.py` is: one stream each way to every neighbour, opened by the first
word, whose end is told as the peer's loss. Below it are lossy messages: a segment is repeated until it is acknowledged.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ..mesh.errors import PeerError
from ..mesh.identity import PeerId
from ..node.generation.messages import Said, decode, decoder, encode
from .network import Connection

if TYPE_CHECKING:
    from .device import Device

_REPEAT_S: Final = 0.2  # the least that Linux waits for an acknowledgement; each time twice as long
_REPEAT_S_MAX: Final = 5.0  # TCP goes on to double; here who answers again is heard of sooner, and nothing else changes
_OPEN_TIMEOUT_S: Final = 3.0  # this and the next as in node/generation/links.py
_UNSENT_BYTES_MAX: Final = 32 * 1024 * 1024
_LOOK_S: Final = 0.05  # how often who waits for a connection looks for one
_SEGMENT_BYTES: Final = 60  # of headers

Stream = tuple[float, int]  # when it was opened, and which of its sender's it is: a later one is greater


class Segment(NamedTuple):
    """A piece of a stream on the wire."""

    stream: Stream
    sequence: int
    data: bytes


class Acknowledged(NamedTuple):
    """All segments before this one have come."""

    stream: Stream
    sequence: int


@dataclass(slots=True, eq=False)
class _Outlet:
    """Our stream to one peer."""

    stream: Stream
    connection: Connection | None = None  # while it is being opened
    unacknowledged: dict[int, bytes] = field(default_factory=dict)
    unacknowledged_bytes: int = 0
    sequence: int = 0  # of the next


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
            self._send(peer, encode(said))

    def send_together(self, all_said: Sequence[tuple[PeerId, Said]]) -> None:
        """Say several things, those to one peer in one piece."""
        to: dict[PeerId, list[bytes]] = {}
        for peer, said in all_said:
            if peer != self._device.me:
                to.setdefault(peer, []).append(encode(said))
        for peer, data in to.items():
            self._send(peer, b"".join(data))
        for peer, said in all_said:
            if peer == self._device.me:
                self.send(peer, said)

    # -- outwards -----------------------------------------------------------------------------------------------------

    def _send(self, peer: PeerId, data: bytes) -> None:
        outlet = self._outlets.get(peer) or self._new(peer)
        outlet.unacknowledged[outlet.sequence] = data
        outlet.unacknowledged_bytes += len(data)
        if outlet.connection is not None:
            self._transmit(peer, outlet, outlet.sequence, _REPEAT_S)
        outlet.sequence += 1
        if outlet.unacknowledged_bytes > _UNSENT_BYTES_MAX:
            self._forget(peer, outlet, "does not read what is said to it")

    def _new(self, peer: PeerId) -> _Outlet:
        self._opened += 1
        outlet = self._outlets[peer] = _Outlet((self._device.now, self._opened))
        self._open(peer, outlet, self._device.now + _OPEN_TIMEOUT_S)
        return outlet

    def _open(self, peer: PeerId, outlet: _Outlet, until_s: float) -> None:
        open_ones = self._device.connections.get(peer, []) if peer in self._device.connected else []
        if self._outlets.get(peer) is not outlet:
            return
        if open_ones:
            outlet.connection = open_ones[-1]
            for sequence in list(outlet.unacknowledged):
                self._transmit(peer, outlet, sequence, _REPEAT_S)
        elif self._device.now >= until_s:
            self._forget(peer, outlet, f"could not be reached within {_OPEN_TIMEOUT_S:g} s")
        else:
            self._device.after(_LOOK_S, lambda: self._open(peer, outlet, until_s))

    def _transmit(self, peer: PeerId, outlet: _Outlet, sequence: int, wait_s: float) -> None:
        data = outlet.unacknowledged.get(sequence)
        if data is None or self._outlets.get(peer) is not outlet:
            return
        assert outlet.connection is not None
        segment = Segment(outlet.stream, sequence, data)
        self._device.network.send(outlet.connection, self._device.me, segment, _SEGMENT_BYTES + len(data))
        later_s = min(2 * wait_s, _REPEAT_S_MAX)
        self._device.after(wait_s, lambda: self._transmit(peer, outlet, sequence, later_s))

    def _acknowledged(self, peer: PeerId, said: Acknowledged) -> None:
        outlet = self._outlets.get(peer)
        if outlet is not None and outlet.stream == said.stream:
            for sequence in [number for number in outlet.unacknowledged if number < said.sequence]:
                outlet.unacknowledged_bytes -= len(outlet.unacknowledged.pop(sequence))

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
            inlet = self._inlets[peer] = _Inlet(segment.stream, connection)
        if segment.stream != inlet.stream:
            return
        if segment.sequence >= inlet.sequence:
            inlet.early[segment.sequence] = segment.data
        came = []
        while (data := inlet.early.pop(inlet.sequence, None)) is not None:
            inlet.sequence += 1
            came.append(data)
        said = Acknowledged(inlet.stream, inlet.sequence)
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
