"""The shell of one member: drives membership over libp2p connections and mDNS.

Who gets in is the door's business (`door.py`), what everybody says the picture's (`picture.py`).
"""

import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from . import limits, membership, spreading
from .admission import Admission, Credentials
from .calls import PROTOCOL as CALLS
from .calls import Answer, Calls, Empty, Incoming, Method
from .codes import Code
from .discovery import Announcement, Hint, open_discovery
from .door import Door
from .errors import LeptonError, LinkError, PeerError, Refused
from .finding import Finding
from .grants import Authority
from .identity import Identity, PeerId, short
from .invites import InviteBook
from .messages import Message
from .picture import Keep, Picture
from .probing import Probing
from .protocol import Part
from .records import Record, RecordStore, SignedRecord
from .renewing import Renewing
from .revocations import Revocation
from .revoking import Revoking
from .tcp import parse_place
from .transport import Connection, Stream, StreamHandler, Transport, open_transport

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Where a node listens and looks for others."""

    listen: tuple[str, ...] = ("0.0.0.0:0", "[::]:0")  # every address of the device, any free port
    interfaces: tuple[str, ...] = ()  # mDNS on all of them
    bootstrap: tuple[str, ...] = ()  # addresses of any members, as in 192.0.2.1:4001, where mDNS does not reach
    pace: membership.Config = field(default_factory=membership.Config)
    talk: spreading.Config = field(default_factory=spreading.Config)


def _keep_nothing(_records: list[SignedRecord]) -> None:
    """What a node does whose durable records need not outlive it."""


class Mesh:
    """One node's place in its mesh: who is present, what everybody says, and calls to them."""

    def __init__(
        self,
        identity: Identity,
        admission: Admission,
        store: RecordStore,
        invites: InviteBook,
        config: MeshConfig,
        root: Identity | None = None,
        keep: Keep = _keep_nothing,
    ) -> None:
        self.identity = identity
        self._root = root
        self.me = identity.peer_id
        self.store = store
        self.calls = Calls(
            admission.me,
            admit=self._admitted,
            connection_to=self._connection_to,
            offend=self._offended,
            reach=self._reach,
            spawn=self._spawn,
        )
        self.calls.serve(Method(name="mesh.part", needs="mesh", takes=Part, handler=self._answer_part))
        self.door = Door(identity, admission, invites)
        self.on_absent: list[Callable[[PeerId], None]] = []
        self.on_expelled: list[Callable[[PeerId], None]] = []  # at once, while its connection is being closed
        self._admission = admission
        self._config = config
        rng = random.Random(secrets.randbits(64))
        self._members = membership.Membership(self.me, rng, config.pace)
        self._picture = Picture(
            store,
            admission,
            self.calls,
            present=lambda: self._members.present,
            spawn=self._spawn,
            heard=lambda peer, ok: self._note(membership.Exchanged(peer, ok)),
            offend=self._offended,
            accuse=self.door.refuse,
            keep=keep,
            rng=rng,
            config=config.talk,
        )
        self.revoking = Revoking(
            admission,
            store,
            self.calls,
            connected=lambda: self._transport.connections,
            spawn=self._spawn,
            end=self._offended,
            rng=rng,
        )
        self.renewing = Renewing(
            identity,
            admission,
            self.calls,
            root=root,
            connected=lambda: self._transport.connections,
            spawn=self._spawn,
            end=self._offended,
        )
        self.probing = Probing(
            identity,
            admission.root,
            self.calls,
            rng,
            incarnation=store.incarnation,
            knows=admission.is_member,
            received=self._received,
            note=self._note_unconnected,
            drop=self._drop,
            spawn=self._spawn,
            offend=self._offended,
        )
        self.door.on_revocations = self.revoking.take
        self.revoking.on_fall = self._fell
        self.finding = Finding(
            config.bootstrap,
            config.interfaces,
            store,
            config.pace,
            rng,
            note=self._note,
            publish=self.publish,
            present=lambda: self._members.present,
            changed=lambda: self.changed,
        )
        self._needed: list[Callable[[PeerId], bool]] = []  # whether streams of others' protocols need a connection
        self._awaited: dict[PeerId, trio.Event] = {}  # dials that calls wait for
        self.dial_troubles: dict[PeerId, str] = {}  # why the last dial of somebody absent came to nothing
        self._sooner = trio.Event()  # membership wants to be called before it last did
        self._running = trio.Event()
        self._closing = False
        self._transport: Transport
        self._nursery: trio.Nursery

    @property
    def present(self) -> frozenset[PeerId]:
        """The other members that are here now. In a mesh of more than about fifty few of them are connected."""
        return frozenset(self._members.present)

    @property
    def connected(self) -> frozenset[PeerId]:
        """The other members that this node has a connection to."""
        return frozenset(self._members.connected)

    @property
    def traffic(self) -> dict[PeerId, tuple[int, int]]:
        """Bytes sent to and received from each peer over the connection that there is now."""
        found = self._transport.connections
        return {peer: (one.bytes_sent, one.bytes_received) for peer, one in found.items()}

    @property
    def root(self) -> PeerId:
        """The mesh itself: the name of its root key."""
        return self._admission.root

    @property
    def admission(self) -> Admission:
        """Who has proved to belong, and who was thrown out."""
        return self._admission

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._transport.addresses

    def authority(self, peer: PeerId) -> Authority:
        return self._admission.authority(peer)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be a member until the block ends."""
        config, root = self._config, self._admission.root
        handlers = {CALLS: self.calls.answer}
        async with (
            open_transport(
                self.identity,
                config.listen,
                on_connection=self._on_connection,
                handlers=handlers,
                favours=self._admission.knows,
            ) as self._transport,
            trio.open_nursery() as self._nursery,
        ):
            said = Announcement(self.me, self._transport.addresses)
            try:
                async with open_discovery(root, interfaces=config.interfaces, announce=said) as hints:
                    self._running.set()
                    self._nursery.start_soon(self._hear, hints)
                    self._nursery.start_soon(self._tick)
                    self._nursery.start_soon(self.probing.run)
                    self._nursery.start_soon(self._picture.run)
                    self._nursery.start_soon(self.revoking.repair)
                    self._nursery.start_soon(self.finding.run, self._transport)
                    self._nursery.start_soon(self.renewing.run)
                    yield
            finally:  # out here: a wait inside a cancelled scope would put Cancelled in place of the block's exception
                self._closing = True
                self._nursery.cancel_scope.cancel()

    # -- the picture ------------------------------------------------------------------------------------------------

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> Record:
        """State something about this node to all. Raises UsageError when it is too large or one too many."""
        return self._picture.publish(kind, name, value, durable=durable)

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        self._picture.withdraw(kind, name)

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind; a record whose value does not parse is passed over."""
        return self._picture.live(kind, value)

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the picture or of who is present. Take it *before* looking, then wait for it."""
        return self._picture.changed

    def notify(self) -> None:
        """Wake whoever waits for a change: something that follows from the picture is there now."""
        self._picture.notify()

    # -- streams ----------------------------------------------------------------------------------------------------

    def serve_streams(self, protocol: str, handler: StreamHandler, in_use: Callable[[PeerId], bool]) -> None:
        """Serve members' streams of a protocol of one's own, for what calls are too slow for.

        The handler learns what its peer may do from ``admission``; PeerError out of it costs the peer its connection.
        ``in_use`` says whether the connection to a peer is needed, for those streams never end.
        """

        async def serve(stream: Stream) -> None:
            try:
                self._admission.standing(stream.peer_id, time.time())
                await handler(stream)
            except Refused:
                stream.reset()
            except PeerError as error:
                self._offended(stream.peer_id, str(error))

        self._transport.serve(protocol, serve)
        self._needed.append(in_use)

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """Open a stream to a member, dialling it if need be. The caller bounds the wait.

        Raises LinkError, Busy, and Refused for who was thrown out and is still connected.
        """
        if peer in self._members.connected:
            self._admission.standing(peer, time.time())
        return await (await self._reach(peer)).open_stream(protocol)

    # -- looking ----------------------------------------------------------------------------------------------------

    def whereabouts(self) -> dict[PeerId, tuple[str, ...]]:
        """Where others may be, as they say it or somebody on the network does."""
        return {peer: self._members.book.addresses(peer) for peer in self._members.book}

    def connection(self, peer: PeerId) -> Connection | None:
        """Return the connection to a peer, for measuring it; None when there is none."""
        return self._transport.connections.get(peer)

    async def meet(self, address: str) -> PeerId:
        """Dial whoever lives at an address, in any form. Raises LinkError, Refused or PeerError that says why not."""
        connection = await self._transport.dial_whoever([parse_place(address)], timeout_s=limits.DIAL_TIMEOUT_S)
        return connection.peer_id

    # -- admission --------------------------------------------------------------------------------------------------

    @property
    def refusals(self) -> dict[PeerId, str]:
        """Who refused this node or whom it refused, and why; the latest comes last."""
        return self.door.refusals

    def invite(self, *, role: str, uses: int, lifetime_s: float) -> Code:
        """Open an invite that this node will honour. Raises Refused or UsageError with the reason."""
        return self.door.invite(role=role, uses=uses, lifetime_s=lifetime_s)

    def revoke(self, subject: PeerId, *, reason: str, keeps: tuple[bytes, ...] = (), disowns: bool = False) -> None:
        """Throw somebody out, with the root key if it is here, else as an admin; all who are here are told at once.

        ``keeps`` are the ids of grants of the subject's that stay good, ``disowns`` undoes what it revoked. Raises
        Refused when this node may not, UsageError when there is too much to say.
        """
        self.revoking.revoke(
            self._root or self.identity,
            subject,
            reason=reason,
            now=time.time(),
            chain=() if self._root else self._admission.chains([self.me])[self.me],
            keeps=keeps,
            disowns=disowns,
        )

    async def _on_connection(self, connection: Connection) -> None:
        """Let a connection in or raise why not. Nothing of it is served before this returns."""
        await self._running.wait()
        await self.door.pass_through(connection)
        if self._closing:
            msg = "This node is about to stop."
            raise LinkError(msg)
        self.door.refusals.pop(connection.peer_id, None)
        self.dial_troubles.pop(connection.peer_id, None)
        self._nursery.start_soon(self._watch, connection)

    def _fell(self, peers: Collection[PeerId]) -> None:
        """Count those who were thrown out as absent even if others still say that they are here."""
        self._note(membership.Expelled(tuple(peers)))
        self._picture.forgot()
        for peer in sorted(set(peers) - {self.me}):
            for listener in self.on_expelled:
                listener(peer)

    async def _watch(self, connection: Connection) -> None:
        """Count a peer as connected for as long as it has a connection that was let in."""
        peer = connection.peer_id
        self._note(membership.Connected(peer, dialled=connection.initiator))
        self._tell_waiting(peer)
        await connection.closed.wait()
        if self._transport.connections.get(peer) is None:
            self._note(membership.Disconnected(peer))

    async def _admitted(self, peer: PeerId) -> Authority:
        """Return a caller's authority: only connections that were let in are served at all. Raises Refused."""
        return self._admission.standing(peer, time.time())

    def _offended(self, peer: PeerId, reason: str) -> None:
        self.door.refuse(peer, reason)
        self._spawn(self._hang_up, peer)

    def _spawn(self, work: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of this node, unless it is about to stop."""
        if not self._closing:
            self._nursery.start_soon(work, *args)

    async def _hang_up(self, peer: PeerId) -> None:
        if (connection := self._transport.connections.get(peer)) is not None:
            await connection.aclose()

    def _connection_to(self, peer: PeerId) -> Connection:
        connection = self._transport.connections.get(peer)
        if connection is None or peer not in self._members.connected:
            msg = f"{short(peer)} is not connected."
            raise LinkError(msg)
        return connection

    async def _reach(self, peer: PeerId) -> Connection:
        """Return the connection to a member, dialling it if it is here and not connected. The caller bounds the wait.

        Raises LinkError. However many calls wait for a peer, it is dialled once.
        """
        connected = self._members.connected
        if peer in self._members.present - connected:
            done = self._awaited.setdefault(peer, trio.Event())
            self._note(membership.Needed(peer))
            if peer in self._members.book.dialling:
                await done.wait()
            elif self._awaited.get(peer) is done:
                del self._awaited[peer]
        return self._connection_to(peer)

    def _tell_waiting(self, peer: PeerId) -> None:
        if (done := self._awaited.pop(peer, None)) is not None:
            done.set()

    async def _probe(self, peer: PeerId) -> None:
        """Close a connection that carries nothing any more, without waiting for the muxer to find out."""
        connection = self._transport.connections.get(peer)
        if connection is None:
            return
        with trio.move_on_after(limits.PROBE_TIMEOUT_S):
            with suppress(LinkError):  # then it is closed already
                await connection.ping()
            return
        log.info("%s does not answer over its old connection, which is closed", short(peer))
        await connection.aclose()

    async def _release(self, peer: PeerId, reason: str) -> None:
        """Give up a connection that nothing was called over for a while, and tell the peer that it is not for good."""
        connection = self._transport.connections.get(peer)
        if connection is None or self.calls.in_use(connection, since=trio.current_time() - self._config.pace.linger_s):
            return
        if any(needed(peer) for needed in self._needed):
            return
        with suppress(LeptonError):
            await self.calls.call(peer, "mesh.part", Part(reason=reason), Empty, timeout_s=limits.PROBE_TIMEOUT_S)
        self._note(membership.Parting(peer))
        await connection.aclose()

    async def _answer_part(self, call: Incoming[Part]) -> Answer[Empty]:
        log.info("%s gives up its connection: %s", short(call.caller), call.message.reason)
        self._note(membership.Parting(call.caller))
        return Answer(Empty())

    # -- driving the membership machine -----------------------------------------------------------------------------

    def _note(self, event: membership.Event) -> None:
        """Hand the machine an event at once, so that what it knows is never behind what a caller sees."""
        if self._closing:
            return
        if isinstance(event, membership.Exchanged):  # every second, and it changes nothing that anybody sees
            self._members.handle(event, trio.current_time())
            return
        before, linked = set(self._members.present), set(self._members.connected)
        whole, deadline = self._members.neighbours.whole, self._members.deadline
        for effect in self._members.handle(event, trio.current_time()):
            self._carry_out(effect)
        if self._members.deadline < deadline:
            self._sooner.set()
        match event:
            case (
                membership.Connected()
                | membership.Disconnected()
                | membership.Parting()
                | membership.DialFailed()
                | membership.Expelled()
            ):
                self.probing.note(event)
        if whole and not self._members.neighbours.whole:
            self._note(membership.Heard(tuple(sorted(self.probing.machine.alive))))
        for peer in sorted(self._members.connected - linked):
            self._picture.come(peer)
        for peer in sorted(linked - self._members.connected):
            self._picture.go(peer)
        if before != self._members.present:
            self._tell_absent(before - self._members.present)

    def _tell_absent(self, left: set[PeerId]) -> None:
        self._picture.notify()
        for peer in sorted(left):
            for listener in self.on_absent:
                listener(peer)

    def _carry_out(self, effect: membership.Effect) -> None:
        match effect:
            case membership.Dial(peer, addresses):
                self._nursery.start_soon(self._dial, peer, addresses)
            case membership.Probe(peer):
                self._nursery.start_soon(self._probe, peer)
            case membership.Release(peer, reason):
                self._nursery.start_soon(self._release, peer, reason)

    # -- who lives --------------------------------------------------------------------------------------------------

    def _note_unconnected(self, event: membership.Heard | membership.Gone) -> None:
        """In a small mesh only a connection makes present."""
        if isinstance(event, membership.Gone) or not self._members.neighbours.whole:
            self._note(event)

    def _drop(self, peer: PeerId, reason: str) -> None:
        log.warning("dropping %s: it %s", short(peer), reason)
        if (connection := self._transport.connections.get(peer)) is not None:
            connection.abort(reason)

    def _received(self, peer: PeerId) -> int:
        connection = self._transport.connections.get(peer)
        return 0 if connection is None else connection.bytes_received

    async def _tick(self) -> None:
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._members.deadline):
                await self._sooner.wait()
                continue
            self._note(membership.Expired())

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            await self._transport.dial(peer, addresses, timeout_s=limits.DIAL_TIMEOUT_S)
        except LeptonError as error:
            log.debug("dialling %s: %s", short(peer), error)
            self._note_trouble(peer, str(error))
            self._note(membership.DialFailed(peer, refused=isinstance(error, Refused | PeerError)))
            self._tell_waiting(peer)

    def _note_trouble(self, peer: PeerId, why: str) -> None:
        self.dial_troubles.pop(peer, None)
        if len(self.dial_troubles) >= limits.HINTED_PEERS_MAX:
            self.dial_troubles.pop(next(iter(self.dial_troubles)))
        self.dial_troubles[peer] = why

    async def _hear(self, hints: trio.MemoryReceiveChannel[Hint]) -> None:
        async for hint in hints:
            self._note(membership.Hinted(hint.peer, hint.addresses))


@asynccontextmanager
async def open_mesh(
    identity: Identity,
    credentials: Credentials,
    store: RecordStore,
    invites: InviteBook,
    config: MeshConfig,
    *,
    revocations: Iterable[Revocation] = (),
    root: Identity | None = None,
    keep: Keep = _keep_nothing,
) -> AsyncIterator[Mesh]:
    """Be a member until the block ends: listen, announce, find the others.

    ``revocations`` are those that were kept; ``root`` is the mesh's own key, where that is. ``keep`` writes what is
    durable to the disk: before it is said when this node says it, soon when others did. Raises Refused when the own
    grant does not hold, UsageError when a port is taken or an interface is missing.
    """
    admission = Admission(credentials, identity.peer_id, time.time(), revocations)
    for owner in store.owners():
        if admission.revocations.why(owner):
            store.forget(owner)  # it was kept on disk until the revocation came
    mesh = Mesh(identity, admission, store, invites, config, root, keep)
    async with mesh.run():
        yield mesh
