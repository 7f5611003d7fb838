"""The shell of one member: drives membership, records and admission over libp2p connections and mDNS.

Order on every connection: the side that dialled says hello with its grant, the other verifies it and answers with its
own. Until both hold nothing but the join protocol is served, and whoever does anything else loses the connection.
"""

import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from . import limits, membership
from .admission import Admission, Credentials
from .calls import PROTOCOL as CALLS
from .calls import Answer, Calls, Empty, Incoming, Method, receive_frame
from .discovery import Announcement, Hint, local_addresses, open_discovery
from .errors import Busy, LeptonError, LinkError, PeerError, Refused
from .frames import encode
from .grants import Authority, Chain
from .identity import Identity, PeerId, short
from .invites import Invite, InviteBook
from .messages import Message, pack, unpack
from .protocol import HELLO, JOIN, Delta, Hello, HelloAnswer, JoinAsk, JoinGranted, JoinHeld, JoinSecret, delta_of
from .records import Digest, Record, RecordStore
from .transport import Connection, Stream, Transport, open_transport

# Two periods of exchange: a peer that cannot say what it knows within this is missed once.
_EXCHANGE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Where a node listens and looks for others."""

    listen: tuple[str, ...] = ("0.0.0.0:0", "[::]:0")  # every address of the device, any free port
    interfaces: tuple[str, ...] = ()  # mDNS on all of them
    bootstrap: Mapping[PeerId, tuple[str, ...]] = field(default_factory=dict)
    pace: membership.Config = field(default_factory=membership.Config)


class Mesh:
    """One node's place in its mesh: who is present, what everybody says, and calls to them."""

    def __init__(
        self, identity: Identity, admission: Admission, store: RecordStore, invites: InviteBook, config: MeshConfig
    ) -> None:
        self.identity = identity
        self.me = identity.peer_id
        self.store = store
        self.invites = invites
        self.refusals: dict[PeerId, str] = {}  # who refused us or whom we refused, and why
        self.calls = Calls(admission.me, admit=self._admitted, connection_to=self._connection_to, offend=self._offended)
        self.on_absent: list[Callable[[PeerId], None]] = []
        self.on_invite_used: Callable[[], None] = lambda: None
        self._admission = admission
        self._config = config
        self._rng = random.Random(secrets.randbits(64))
        self._members = membership.Membership(self.me, self._rng, config.pace)
        self._strangers = 0  # connections of those who have shown nothing yet
        self._unsaid: dict[PeerId, Digest | None] = {}  # to whom this node is pushing, and from where it has to go on
        self._behind: set[PeerId] = set()  # peers of whom something was missed and is about to be asked for
        self._changed = trio.Event()
        self._running = trio.Event()
        self._closing = False
        self._transport: Transport
        self._nursery: trio.Nursery
        self.calls.serve(
            Method(name="mesh.exchange", needs="mesh", takes=Digest, handler=self._answer_exchange),
            Method(name="mesh.push", needs="mesh", takes=Delta, handler=self._answer_push),
        )

    @property
    def present(self) -> frozenset[PeerId]:
        """The other members that are connected now."""
        return frozenset(self._members.present)

    @property
    def root(self) -> PeerId:
        """The mesh itself: the name of its root key."""
        return self._admission.root

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._transport.addresses

    @property
    def _own_chain(self) -> Chain:
        return self._admission.chains([self.me])[self.me]

    def authority(self, peer: PeerId) -> Authority:
        return self._admission.authority(peer)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be a member until the block ends."""
        config, root = self._config, self._admission.root
        handlers = {CALLS: self.calls.answer}
        async with (
            open_transport(
                self.identity, config.listen, on_connection=self._on_connection, handlers=handlers
            ) as self._transport,
            trio.open_nursery() as self._nursery,
        ):
            port = int(self._transport.addresses[0].rpartition("/")[2])
            said = Announcement(self.me, port, config.interfaces or local_addresses())
            try:
                async with open_discovery(root, interfaces=config.interfaces, announce=said) as hints:
                    self._running.set()
                    self._nursery.start_soon(self._hear, hints)
                    self._nursery.start_soon(self._tick)
                    for peer, addresses in config.bootstrap.items():
                        self._note(membership.Hinted(peer, tuple(addresses), lasting=True))
                    yield
            finally:  # out here: a wait inside a cancelled scope would put Cancelled in place of the block's exception
                self._closing = True
                self._nursery.cancel_scope.cancel()

    # -- the picture ------------------------------------------------------------------------------------------------

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> Record:
        """State something about this node to all. Raises UsageError when it is too large or one too many."""
        since = self.store.digest(self.me)
        record = self.store.publish(kind, name, value, durable=durable)
        self._push(since)
        return record

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        since = self.store.digest(self.me)
        if self.store.withdraw(kind, name) is not None:
            self._push(since)

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind; a record whose value does not parse is passed over."""
        found = []
        for record in self.store.live(kind, self._members.present):
            try:
                found.append((record, record.value(value)))
            except PeerError as error:
                log.warning("%s published a bad %s record: %s", short(record.owner), kind, error)
        return found

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the picture or of who is present. Take it *before* looking, then wait for it."""
        return self._changed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _push(self, since: Digest) -> None:
        """Tell all who are here what this node has said since these heads. What waits for one peer goes together."""
        self._notify()
        if self._closing:
            return
        for peer in sorted(self._members.present):
            if peer not in self._unsaid:
                self._unsaid[peer] = None
                self._nursery.start_soon(self._push_to, peer)
            if self._unsaid[peer] is None:
                self._unsaid[peer] = since

    async def _push_to(self, peer: PeerId) -> None:
        """Push one after the other: of two at once the later one might arrive first."""
        try:
            while (since := self._unsaid[peer]) is not None:
                self._unsaid[peer] = None
                delta = self._delta(self.store.newer_than(since, self.me), since)
                await self.calls.call(peer, "mesh.push", delta, Empty, timeout_s=_EXCHANGE_TIMEOUT_S)
        except LeptonError as error:  # the next exchange repeats it
            log.debug("push to %s: %s", short(peer), error)
        finally:
            del self._unsaid[peer]

    def _delta(self, records: list[Record], since: Digest, digest: Digest | None = None) -> Delta:
        chains = self._admission.chains({record.owner for record in records})
        return delta_of(records, chains, since=since, digest=digest)

    def _lacking(self, digest: Digest) -> list[Record]:
        return self.store.newer_than(digest, turn=self._rng.randrange(limits.MEMBERS_MAX))

    async def _answer_exchange(self, call: Incoming[Digest]) -> Answer[Delta]:
        return Answer(self._delta(self._lacking(call.message), call.message, self.store.digest()))

    async def _answer_push(self, call: Incoming[Delta]) -> Answer[Empty]:
        behind = not self.store.follows_on(call.message.since)
        self._merge(call.message)
        if behind:
            self._catch_up(call.caller)
        return Answer(Empty())

    def _catch_up(self, peer: PeerId) -> None:
        """Ask a peer for all that it said since; at most one such exchange waits to begin."""
        if peer not in self._behind:
            self._behind.add(peer)
            self._nursery.start_soon(self._exchange, peer)

    def _merge(self, delta: Delta) -> None:
        """Take in a delta. Raises PeerError when a record in it is forged."""
        self._admission.learn(delta.chains, time.time())
        revision = self.store.revision
        try:
            self.store.merge(delta.records, since=delta.since, known=self._admission.knows)
        finally:
            if self.store.revision != revision:
                self._notify()

    async def _exchange(self, peer: PeerId) -> None:
        self._behind.discard(peer)
        ok = True
        try:
            with trio.fail_after(_EXCHANGE_TIMEOUT_S):
                while await self._exchange_once(peer):
                    pass
        except (LeptonError, trio.TooSlowError) as error:
            log.debug("exchange with %s: %s", short(peer), error)
            ok = False
            if isinstance(error, PeerError):
                self._offended(peer, str(error))
        self._note(membership.Exchanged(peer, ok))

    async def _exchange_once(self, peer: PeerId) -> bool:
        """Reconcile one message each way; true when this node read on and the peer has more."""
        asked = self.store.digest()
        got = (await self.calls.call(peer, "mesh.exchange", asked, Delta)).message
        self._merge(got)
        if got.digest is None:
            msg = f"{short(peer)} answered an exchange without a digest."
            raise PeerError(msg)
        delta = self._delta(self._lacking(got.digest), got.digest)
        if delta.records:
            await self.calls.call(peer, "mesh.push", delta, Empty)
        # Whether it was this answer or a push meanwhile that brought it; but never again for what is not taken here.
        return self.store.digest() != asked and not self.store.follows_on(got.digest)

    # -- invites ----------------------------------------------------------------------------------------------------

    def invite(self, mesh_name: str, *, role: str, uses: int, lifetime_s: float) -> Invite:
        """Open an invite that this node will honour. Raises Refused or UsageError with the reason."""
        if len(self._own_chain) >= limits.GRANT_CHAIN_MAX:
            msg = (
                f"This node's own grant is a chain of {limits.GRANT_CHAIN_MAX} links, and longer ones are refused; "
                "let the node that invited it give the invite."
            )
            raise Refused(msg)
        return self.invites.give(
            mesh_name,
            self._admission.root,
            held=self._admission.me.capabilities,
            role=role,
            uses=uses,
            now=time.time(),
            lifetime_s=lifetime_s,
            secret=secrets.token_bytes(16),
        )

    async def _serve_join(self, stream: Stream) -> None:
        """Answer a stranger with an invite on the one connection that it has for that."""
        ask = unpack((await receive_frame(stream, body_bytes_max=0)).header, JoinAsk)
        held = self.invites.holds(ask.hint)
        chain = self._own_chain if held else ()
        await _say(stream, JoinHeld(held=held, chain=chain))
        if not held:
            return
        shown = unpack((await receive_frame(stream, body_bytes_max=0)).header, JoinSecret)
        try:
            grant = self.invites.redeem(
                ask.hint,
                shown.secret,
                stream.peer_id,
                issuer=self.identity,
                now=time.time(),
                serial=secrets.token_bytes(16),
            )
        except Refused as error:
            self._refuse(stream.peer_id, str(error))
            await _say(stream, JoinGranted(refused=str(error)))
            return
        self.on_invite_used()
        log.info("%s joined with an invite of this node", short(stream.peer_id))
        await _say(stream, JoinGranted(chain=(*chain, grant)))

    # -- admission --------------------------------------------------------------------------------------------------

    async def _on_connection(self, connection: Connection) -> None:
        """Let a connection in or raise why not. Nothing of it is served before this returns."""
        await self._running.wait()
        peer = connection.peer_id
        try:
            with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                if connection.initiator:
                    await self._greet(connection)
                else:
                    await self._be_greeted(connection)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            msg = f"{short(peer)} broke off the greeting."
            raise LinkError(msg) from error
        except (Refused, PeerError) as error:
            self._refuse(peer, str(error))
            raise
        if self._closing:
            msg = "This node is about to stop."
            raise LinkError(msg)
        self.refusals.pop(peer, None)
        self._nursery.start_soon(self._watch, connection)

    async def _greet(self, connection: Connection) -> None:
        """Say hello on a connection that we dialled. Raises Refused or PeerError."""
        async with await connection.open_stream(HELLO) as stream:
            await _say(stream, Hello(chain=self._own_chain))
            answer = unpack((await receive_frame(stream, body_bytes_max=0)).header, HelloAnswer)
        if answer.refused:
            raise Refused(answer.refused)
        self._admission.admit(connection.peer_id, answer.chain, time.time())

    async def _be_greeted(self, connection: Connection) -> None:
        """Hear a hello, or serve a stranger's attempt to join and then see it off."""
        if self._strangers >= limits.STRANGERS_MAX:
            msg = f"{self._strangers} strangers are here already; try again in a while."
            raise Busy(msg)
        self._strangers += 1
        try:
            await self._hear_a_stranger(connection)
        finally:
            self._strangers -= 1

    async def _hear_a_stranger(self, connection: Connection) -> None:
        async with await connection.accept_stream(HELLO, JOIN) as stream:
            if stream.protocol == JOIN:
                await self._serve_join(stream)
                msg = f"{short(connection.peer_id)} came to join; as a member it will greet on a new connection."
                raise LinkError(msg)
            hello = unpack((await receive_frame(stream, body_bytes_max=0)).header, Hello)
            try:
                self._admission.admit(connection.peer_id, hello.chain, time.time())
            except Refused as error:
                await _say(stream, HelloAnswer(refused=str(error)))
                raise
            await _say(stream, HelloAnswer(chain=self._own_chain))

    async def _watch(self, connection: Connection) -> None:
        """Count a peer as present for as long as it has a connection that was let in."""
        peer = connection.peer_id
        self._note(membership.Connected(peer))
        await connection.closed.wait()
        if self._transport.connections.get(peer) is None:
            self._note(membership.Disconnected(peer))
            for listener in self.on_absent:
                listener(peer)

    async def _admitted(self, peer: PeerId) -> Authority:
        """Return a caller's authority: only connections that were let in are served at all."""
        return self._admission.authority(peer)

    def _refuse(self, peer: PeerId, reason: str) -> None:
        log.warning("refused %s: %s", short(peer), reason)
        self.refusals.pop(peer, None)  # the latest comes last
        if len(self.refusals) >= limits.STRANGERS_MAX:
            self.refusals.pop(next(iter(self.refusals)))
        self.refusals[peer] = reason

    def _offended(self, peer: PeerId, reason: str) -> None:
        self._refuse(peer, reason)
        if not self._closing:
            self._nursery.start_soon(self._hang_up, peer)

    async def _hang_up(self, peer: PeerId) -> None:
        if (connection := self._transport.connections.get(peer)) is not None:
            await connection.aclose()

    def _connection_to(self, peer: PeerId) -> Connection:
        connection = self._transport.connections.get(peer)
        if connection is None or peer not in self._members.present:
            msg = f"{short(peer)} is not connected."
            raise LinkError(msg)
        return connection

    # -- driving the membership machine -----------------------------------------------------------------------------

    def _note(self, event: membership.Event) -> None:
        """Hand the machine an event at once, so that what it knows is never behind what a caller sees."""
        if self._closing:
            return
        before = set(self._members.present)
        for effect in self._members.handle(event, trio.current_time()):
            match effect:
                case membership.Dial(peer, addresses):
                    self._nursery.start_soon(self._dial, peer, addresses)
                case membership.Exchange(peer):
                    self._nursery.start_soon(self._exchange, peer)
                case membership.Drop(peer, reason):
                    log.warning("dropping %s: it %s", short(peer), reason)
                    self._nursery.start_soon(self._hang_up, peer)
        if before != self._members.present:
            self._notify()

    async def _tick(self) -> None:
        while True:
            await trio.sleep_until(self._members.deadline)
            self._note(membership.Expired())

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            await self._transport.dial(peer, addresses, timeout_s=limits.DIAL_TIMEOUT_S)
        except LeptonError as error:
            log.debug("dialling %s: %s", short(peer), error)
            self._note(membership.DialFailed(peer, refused=isinstance(error, Refused | PeerError)))

    async def _hear(self, hints: trio.MemoryReceiveChannel[Hint]) -> None:
        async for hint in hints:
            self._note(membership.Hinted(hint.peer, hint.addresses))


async def _say(stream: Stream, message: Message) -> None:
    for piece in encode(pack(message)):
        await stream.send_all(piece)


@asynccontextmanager
async def open_mesh(
    identity: Identity,
    credentials: Credentials,
    store: RecordStore,
    invites: InviteBook,
    config: MeshConfig,
) -> AsyncIterator[Mesh]:
    """Be a member until the block ends: listen, announce, find the others.

    Raises Refused when the own grant does not hold, UsageError when a port is taken or an interface is missing.
    """
    admission = Admission(credentials, identity.peer_id, time.time())
    mesh = Mesh(identity, admission, store, invites, config)
    async with mesh.run():
        yield mesh
