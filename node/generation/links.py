"""The shell between machines and the network: one stream each way to every neighbour, which carries all sessions.

Frames go one way and nobody waits for an answer: the window of a session (`stage.py`) bounds what is under way. The
muxer's reader calls in here, so a step wakes no task on its way from the wire to the machine.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ...mesh import frames, limits
from ...mesh.errors import LeptonError, PeerError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ...mesh.transport import Stream
from .messages import PROTOCOL, Said, decode, decoder, encode

# What waits for a peer to read it: some windows of long prompts. More, and it is not there.
UNSENT_BYTES_MAX: Final = 32 * limits.MIB
_OPENING_FRAMES_MAX: Final = 1024  # said while the stream is being opened
_OPEN_TIMEOUT_S: Final = 3.0  # for a stream to a member, dialling included: the route is mended rather than waited for

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Traffic:
    """Frames and their bytes, without the wire's own overhead."""

    sent_frames: int = 0
    sent_bytes: int = 0
    received_frames: int = 0
    received_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Outlet:
    """Our stream to one peer; frames wait while it is being opened."""

    waiting: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0
    stream: Stream | None = None


class Links:
    """The streams of one node to and from those who share sessions with it."""

    def __init__(
        self,
        mesh: Mesh,
        received: Callable[[PeerId, Said], None],
        lost: Callable[[PeerId, str], None],
        in_use: Callable[[PeerId], bool],
        together: Callable[[bool], None],
    ) -> None:
        """``received`` and ``lost`` must neither wait nor raise.

        ``together`` hears True before, and False behind, all that one reading of the wire brought.
        """
        self.traffic = Traffic()
        self._mesh = mesh
        self._received = received
        self._lost = lost
        self._together = together
        self._outlets: dict[PeerId, _Outlet] = {}
        self._inlets: dict[PeerId, Stream] = {}
        self._own: deque[Callable[[], None]] = deque()
        self._telling = False
        self._nursery: trio.Nursery | None = None
        mesh.serve_streams(PROTOCOL, self._answer, in_use)

    async def run(self) -> None:
        """Carry what is said, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def send(self, peer: PeerId, said: Said) -> None:
        """Say something to a peer, or to this node itself. Never waits; ``lost`` tells when it cannot arrive."""
        if peer == self._mesh.me:
            self._tell(partial(self._received, peer, said))
            return
        self.traffic.sent_frames += 1
        self._send(peer, encode(said))

    def send_together(self, all_said: Sequence[tuple[PeerId, Said]]) -> None:
        """Say several things, those to one peer in one piece: what leaves a step together arrives together."""
        frames_to: dict[PeerId, list[bytes]] = {}
        for peer, said in all_said:
            if peer != self._mesh.me:
                frames_to.setdefault(peer, []).append(encode(said))
        for peer, data in frames_to.items():
            self.traffic.sent_frames += len(data)
            self._send(peer, b"".join(data))
        for peer, said in all_said:
            if peer == self._mesh.me:
                self.send(peer, said)

    def _send(self, peer: PeerId, data: bytes) -> None:
        self.traffic.sent_bytes += len(data)
        outlet = self._outlets.get(peer)
        if outlet is None:
            if self._nursery is None:
                return  # the node has not begun, or is about to end
            outlet = self._outlets[peer] = _Outlet()
            self._nursery.start_soon(self._open, peer, outlet)
        if outlet.stream is None:
            if len(outlet.waiting) < _OPENING_FRAMES_MAX and outlet.waiting_bytes + len(data) <= UNSENT_BYTES_MAX:
                outlet.waiting.append(data)
                outlet.waiting_bytes += len(data)
            return
        outlet.stream.send_nowait(data)
        if outlet.stream.unsent_bytes > UNSENT_BYTES_MAX:
            outlet.stream.reset()
            self._forget(peer, outlet, "does not read what is said to it")

    def drop(self, peer: PeerId) -> None:
        """End the streams to and from a peer at once, whatever becomes of its connection; nobody is told."""
        outlet, inlet = self._outlets.pop(peer, None), self._inlets.pop(peer, None)
        for stream in (outlet.stream if outlet is not None else None, inlet):
            if stream is not None:
                stream.reset()

    # -- outwards -----------------------------------------------------------------------------------------------------

    async def _open(self, peer: PeerId, outlet: _Outlet) -> None:
        reason = f"could not be reached within {_OPEN_TIMEOUT_S:g} s"
        with trio.move_on_after(_OPEN_TIMEOUT_S):
            try:
                stream = await self._mesh.open_stream(peer, PROTOCOL)
            except LeptonError as error:
                reason = f"could not be reached: {error}"
            else:
                outlet.stream = stream
                for data in outlet.waiting:
                    stream.send_nowait(data)
                outlet.waiting.clear()
                stream.watch(partial(self._look_at, peer, outlet), _nothing)
                return
        self._forget(peer, outlet, reason)

    def _look_at(self, peer: PeerId, outlet: _Outlet) -> None:
        """Nothing is said on a stream of ours but that it has ended."""
        stream = outlet.stream
        if stream is not None:
            if stream.receive_nowait():
                stream.reset()
            if reason := stream.broken:
                self._forget(peer, outlet, f"was lost: {reason}")

    def _forget(self, peer: PeerId, outlet: _Outlet, reason: str) -> None:
        if self._outlets.get(peer) is outlet:
            del self._outlets[peer]
            self._tell(partial(self._lost, peer, reason))

    # -- inwards ------------------------------------------------------------------------------------------------------

    async def _answer(self, stream: Stream) -> None:
        peer = stream.peer_id
        inlet = _Inlet(
            stream, lambda said: self._tell(partial(self._received, peer, said)), self.traffic, self._together
        )
        old, self._inlets[peer] = self._inlets.get(peer), stream
        if old is not None:
            old.reset()  # it would not open another unless it lost the first
        try:
            await inlet.run()
        finally:
            if self._inlets.get(peer) is stream:
                del self._inlets[peer]
                self._tell(partial(self._lost, peer, "was lost: its stream of steps ended"))

    def _tell(self, what: Callable[[], None]) -> None:
        """Tell the machines, one thing after another, also what they say to this node itself meanwhile."""
        self._own.append(what)
        if self._telling:
            return
        self._telling = True
        try:
            while self._own:
                try:
                    self._own.popleft()()
                except Exception:
                    log.exception("A message of a session could not be taken")
        finally:
            self._telling = False


class _Inlet:
    """A peer's stream to us: bytes in, messages out, until it ends or breaks the rules."""

    def __init__(
        self, stream: Stream, take: Callable[[Said], None], traffic: Traffic, together: Callable[[bool], None]
    ) -> None:
        self._stream = stream
        self._take = take
        self._together = together
        self._traffic = traffic
        self._decoder: frames.FrameDecoder = decoder()
        self._over = trio.Event()
        self._offence: PeerError | None = None

    async def run(self) -> None:
        """Raises PeerError."""
        self._stream.watch(self._read, _nothing)
        begun: object = None
        while not self._over.is_set():
            with trio.move_on_after(limits.FRAME_TIMEOUT_S) as waiting:
                await self._over.wait()
            if waiting.cancelled_caught and begun is not None and self._decoder.begun is begun:
                self._stream.reset()
                most = limits.FRAME_TIMEOUT_S
                raise PeerError(f"It began a frame of a session and did not complete it within {most:g} s.")
            begun = self._decoder.begun
        if self._offence is not None:
            self._stream.reset()
            raise self._offence

    def _read(self) -> None:
        if self._over.is_set():
            return
        self._together(True)  # noqa: FBT003
        try:
            while pieces := self._stream.receive_nowait():
                for piece in pieces:
                    self._traffic.received_bytes += len(piece)
                    for frame in self._decoder.receive(piece):
                        self._traffic.received_frames += 1
                        self._take(decode(frame))
        except PeerError as error:
            self._offence = error
            self._over.set()
        self._together(False)  # noqa: FBT003
        if self._stream.broken:
            self._over.set()


def _nothing() -> None:
    """What is done when all was sent."""
