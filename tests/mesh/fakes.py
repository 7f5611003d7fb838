"""What the tests of the mesh share: named identities, grants, and streams of memory in place of libp2p's."""

import hashlib
from collections.abc import Awaitable, Callable

import trio
from lepton.mesh.admission import Credentials
from lepton.mesh.errors import LinkError
from lepton.mesh.grants import ROLES, Grant, issue
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import Message
from trio.testing import lockstep_stream_one_way_pair, memory_stream_one_way_pair

NOW = 1_800_000_000.0  # Unix seconds; no test of a machine reads the clock
FOREVER = 2_000_000_000.0
SERIAL = bytes(16)


class Note(Message, frozen=True, kw_only=True):
    """A small message or record."""

    text: str = ""


def identity(name: str) -> Identity:
    """Return the same key pair for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


ROOT = identity("root")


def grant(
    issuer: Identity, subject: Identity, *capabilities: str, role: str = "member", expires: float = FOREVER
) -> Grant:
    given = capabilities or ROLES[role]
    return issue(issuer, subject.peer_id, given, expires=expires, serial=SERIAL)


def credentials(who: Identity, *, role: str = "member", expires: float = FOREVER) -> Credentials:
    chain = (grant(ROOT, who, role=role, expires=expires),)
    return Credentials(mesh_name="home", root=ROOT.peer_id, chain=chain)


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a stream with the manners of the transport's: a reset is not an end."""

    def __init__(self, peer_id: PeerId, send: trio.abc.SendStream, receive: trio.abc.ReceiveStream) -> None:
        self.peer_id = peer_id
        self.protocol = "/test/1"
        self._send, self._receive = send, receive
        self.other: MemoryStream
        self.was_reset = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        await self._send.send_all(data)
        self._check()

    async def wait_send_all_might_not_block(self) -> None:
        await self._send.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        data = bytes(await self._receive.receive_some(max_bytes))
        if not data:
            self._check()
        return data

    async def send_eof(self) -> None:
        self._check()
        await self._send.aclose()

    async def aclose(self) -> None:
        await self._send.aclose()
        await self._receive.aclose()

    def reset(self) -> None:
        self.was_reset = True
        trio.lowlevel.spawn_system_task(self.aclose)

    def _check(self) -> None:
        if self.other.was_reset:
            raise trio.BrokenResourceError("the other end reset the stream")


def stream_pair(left: PeerId, right: PeerId, *, lockstep: bool = False) -> tuple[MemoryStream, MemoryStream]:
    """Return the two ends of a stream between two peers; each end names the other.

    With ``lockstep`` nothing is buffered: who sends waits for who reads.
    """
    one_way = lockstep_stream_one_way_pair if lockstep else memory_stream_one_way_pair
    (to_right, at_right), (to_left, at_left) = one_way(), one_way()
    left_end = MemoryStream(right, to_right, at_left)
    right_end = MemoryStream(left, to_left, at_right)
    left_end.other, right_end.other = right_end, left_end
    return left_end, right_end


class MemoryConnection:
    """A connection that opens memory streams to a handler at the other end."""

    def __init__(
        self,
        me: PeerId,
        peer_id: PeerId,
        handler: Callable[[MemoryStream], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        self.peer_id = peer_id
        self.closed = trio.Event()
        self._me, self._handler, self._nursery = me, handler, nursery

    async def open_stream(self, protocol: str) -> MemoryStream:
        if self.closed.is_set():
            raise LinkError("the connection is closed")
        await trio.lowlevel.checkpoint()
        mine, theirs = stream_pair(self._me, self.peer_id)
        mine.protocol = theirs.protocol = protocol
        self._nursery.start_soon(self._handler, theirs)
        return mine
