"""Members over the real transport on 127.0.0.1, and people who only look like members."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from lepton.mesh import membership, spreading
from lepton.mesh.admission import Credentials
from lepton.mesh.calls import PROTOCOL as CALLS
from lepton.mesh.calls import Calls, receive_frame
from lepton.mesh.discovery import Announcement, Hint
from lepton.mesh.frames import encode
from lepton.mesh.grants import Authority, Grant, authority_of
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.invites import InviteBook
from lepton.mesh.mesh import Mesh, MeshConfig, open_mesh
from lepton.mesh.messages import Message, pack, unpack
from lepton.mesh.picture import Keep
from lepton.mesh.protocol import HELLO, Hello, HelloAnswer
from lepton.mesh.records import RecordStore
from lepton.mesh.revocations import Revocation
from lepton.mesh.transport import Connection, Stream, Transport, open_transport

from .fakes import credentials

LOCAL = ("127.0.0.1:0",)
PATIENCE_S = 60.0  # a test that waits as long has failed; none of them measures time


@asynccontextmanager
async def no_discovery(
    mesh: PeerId, *, interfaces: Sequence[str] = (), announce: Announcement | None = None
) -> AsyncIterator[trio.MemoryReceiveChannel[Hint]]:
    """In place of mDNS, where a test introduces its nodes to each other itself."""
    send, receive = trio.open_memory_channel[Hint](0)
    async with send:
        yield receive


@asynccontextmanager
async def member(
    who: Identity,
    *,
    store: RecordStore | None = None,
    book: InviteBook | None = None,
    held: Credentials | None = None,
    pace: membership.Config | None = None,
    bootstrap: tuple[str, ...] = (),
    listen: tuple[str, ...] = LOCAL,
    interfaces: tuple[str, ...] = ("127.0.0.1",),
    revocations: Sequence[Revocation] = (),
    root: Identity | None = None,
    talk: spreading.Config | None = None,
    keep: Keep | None = None,
) -> AsyncIterator[Mesh]:
    config = MeshConfig(
        listen=listen,
        interfaces=interfaces,
        pace=pace or membership.Config(),
        talk=talk or spreading.Config(),
        bootstrap=bootstrap,
    )
    async with open_mesh(
        who,
        held or credentials(who),
        store or RecordStore(who, 1),
        book or InviteBook(),
        config,
        revocations=revocations,
        root=root,
        keep=keep or (lambda _records: None),
    ) as mesh:
        yield mesh


def introduce(one: Mesh, other: Mesh) -> None:
    one._note(membership.Hinted(other.me, other.addresses))


async def until(mesh: Mesh, so: Callable[[], object]) -> None:
    """Wait for something to become true of what a node sees."""
    with trio.fail_after(PATIENCE_S):
        while True:
            changed = mesh.changed
            if so():
                return
            with trio.move_on_after(0.05):  # it may depend on more than this node
                await changed.wait()


async def closed(connection: Connection) -> None:
    with trio.fail_after(PATIENCE_S):
        await connection.closed.wait()


async def say(stream: Stream, message: object) -> None:
    for piece in encode(pack(message)):
        await stream.send_all(piece)


async def hear(stream: Stream, kind: type[Any]) -> Any:
    return unpack((await receive_frame(stream, body_bytes_max=2**20)).header, kind)


async def greet(connection: Connection, chain: tuple[Grant, ...]) -> HelloAnswer:
    async with await connection.open_stream(HELLO) as stream:
        await say(stream, Hello(chain=chain))
        answer: HelloAnswer = await hear(stream, HelloAnswer)
        return answer


async def let_in(_connection: Connection) -> None:
    """Whoever comes."""


class Guest:
    """A peer of our own making that can greet like a member and then do as it likes."""

    def __init__(self, who: Identity, transport: Transport, victim: Mesh) -> None:
        self.who = who
        self.transport = transport
        self.victim = victim
        self.served: Callable[[Stream], Awaitable[None]] = self._hang
        self.calls = Calls(
            Authority(who.peer_id, (), 0),
            admit=self._admit,
            connection_to=lambda peer: self.transport.connections[peer],
            offend=lambda _peer, _reason: None,
        )

    async def dial(self) -> Connection:
        return await self.transport.dial(self.victim.me, self.victim.addresses, timeout_s=PATIENCE_S)

    async def enter(self) -> Connection:
        """Connect and greet with a grant that holds."""
        connection = await self.dial()
        answer = await greet(connection, credentials(self.who).chain)
        assert not answer.refused
        await until(self.victim, lambda: self.who.peer_id in self.victim.present)
        return connection

    async def send(self, connection: Connection, data: bytes) -> None:
        """Open a stream for a call and send anything."""
        stream = await connection.open_stream(CALLS)
        await stream.send_all(data)
        await stream.send_eof()

    async def serve(self, stream: Stream) -> None:
        await self.served(stream)

    async def _admit(self, peer: PeerId) -> Authority:
        chain = credentials(self.victim.identity).chain
        return authority_of(chain, root=self.victim.root, subject=peer, now=time.time())

    async def _hang(self, _stream: Stream) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def guest(who: Identity, victim: Mesh) -> AsyncIterator[Guest]:
    found: list[Guest] = []

    async def serve(stream: Stream) -> None:
        await found[0].serve(stream)

    async with open_transport(who, (), on_connection=let_in, handlers={CALLS: serve}) as transport:
        found.append(Guest(who, transport, victim))
        yield found[0]


class Anything(Message, frozen=True, kw_only=True):
    """Not a message that anybody expects."""

    other: int = 1
