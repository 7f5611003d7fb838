"""One simulated device: the deployed machines, wired as `mesh/mesh.py` wires them, on virtual time.

Hello with a grant on every connection, then talk about records; membership decides who is dialled and dropped.
Nothing here decides anything: where this file and the real shell differ, the simulation proves less.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..gossip.averager import Averager
from ..mesh import limits, membership
from ..mesh.admission import Admission, Credentials
from ..mesh.errors import LeptonError, LinkError, PeerError, Refused
from ..mesh.grants import Authority, Grant
from ..mesh.identity import Identity, PeerId
from ..mesh.invites import OpenInvite
from ..mesh.messages import Message, pack, unpack
from ..mesh.protocol import ADDRESS, Hello, HelloAnswer, Part, Whereabouts
from ..mesh.records import Record, RecordStore, SignedRecord, open_record
from ..mesh.revocations import Revocation
from ..mesh.signed import Version
from ..mesh.swaps import Swap, Swapped
from ..node.generation.asker import Asker
from ..node.generation.stage import Stage
from ..node.inference.session import Session
from . import joining
from .calls import Answer, Calls, Done, Empty, Incoming, Method, Reply, Request
from .faults import Skew
from .joining import Invites
from .network import Connection, Network
from .probing import Probing
from .process import Process
from .records import Records
from .revoking import COMPARE, Revoking
from .world import World

_ANNOUNCE_S = 10.0  # how often mDNS repeats itself; zeroconf asks again on a similar scale
_BYE_S = 0.2  # as in mesh/mesh.py
_TICK_S = 1.0  # at least as often membership is asked: its deadline may have come nearer since


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines that devices run: the deployed ones, unless a test breaks one on purpose."""

    store: type[RecordStore] = RecordStore
    session: type[Session] = Session
    averager: type[Averager] = Averager
    stage: type[Stage] = Stage
    asker: type[Asker] = Asker


@dataclass(slots=True)
class Disk:
    """What a crash leaves."""

    incarnation: int = 0
    life: int = 0  # how often its device was started, whatever was lost of the disk since: only the world knows
    records: list[SignedRecord] = field(default_factory=list)
    revocations: list[Revocation] = field(default_factory=list)
    invites: tuple[OpenInvite, ...] = ()
    checkpoint: tuple[int, np.ndarray] | None = None  # the last finished round, the model after it


@dataclass(frozen=True, slots=True)
class Watch:
    """Who hears what a device does: the ledgers that the invariants are checked against."""

    published: Callable[[Record], None]
    left: Callable[[PeerId, PeerId], None]  # who noticed, who left
    told: Callable[[PeerId, PeerId], None] = lambda _who, _subject: None  # who heard that somebody was revoked, whom
    served: Callable[[PeerId, PeerId], None] = lambda _who, _caller: None  # who is about to answer whose call
    opens: Callable[[SignedRecord], Record] = open_record  # so that a run checks each signature but once


class Device(Process):
    """One process, from its start to its crash."""

    def __init__(
        self,
        world: World,
        network: Network,
        name: str,
        identity: Identity,
        credentials: Credentials,
        disk: Disk,
        *,
        watch: Watch,
        machines: Machines,
        skew: Skew | None = None,
    ) -> None:
        """``skew`` is what is wrong with the clocks of its machine. Raises Refused when it is no member any more."""
        super().__init__(world)
        if skew is not None:
            self.skew(skew.offset_s, skew.drift)
        disk.incarnation += 1
        disk.life += 1
        self.network, self.name, self.disk, self.machines = network, name, disk, machines
        self.me = identity.peer_id
        self.dice = world.dice(f"{name}/{disk.life}")
        self.members = membership.Membership(self.me, self.dice)
        self.connections: dict[PeerId, list[Connection]] = {}
        self.refusals = 0
        self.on_absent: list[Callable[[PeerId], None]] = []
        self.on_expelled: list[Callable[[PeerId], None]] = []
        self.on_other: list[Callable[[Connection, object], None]] = []  # what is neither a call nor its answer came
        self.on_gone: list[Callable[[Connection], None]] = []  # a connection ended, for whatever reason
        self._left = watch.left
        self._served = watch.served
        self.admission = Admission(credentials, self.me, self.unix_s, disk.revocations)
        self.calls = Calls(
            network,
            self.me,
            unix_s=lambda: self.unix_s,
            after=self.after,
            admit=self._admitted,
            offend=self.offended,
        )
        self._greeting: dict[PeerId, list[tuple[Connection, Request]]] = {}
        self.calls.serve("mesh.part", Method("mesh", Part, self._answer_part))
        self._read: dict[PeerId, Version] = {}  # whose address was read last in which record
        self._comparing: dict[PeerId, Connection] = {}  # who was let in, but has not heard all revocations yet
        self.probing = Probing(self, identity, disk.incarnation)
        store = machines.store(identity, disk.incarnation, disk.records, check=watch.opens)
        self.records = Records(self, store, watch.published)
        self.revoking = Revoking(self, watch.told)
        self.invites = Invites(self, identity)

    @property
    def peer_id(self) -> PeerId:
        return self.me

    @property
    def present(self) -> set[PeerId]:
        return self.members.present

    @property
    def connected(self) -> set[PeerId]:
        return self.members.connected

    def start(self) -> None:
        """Come to life: be reachable, announce oneself."""
        self.network.attach(self)
        self.tell("starts" if self.disk.incarnation == 1 else "starts again")
        self._announce()
        self._tick()
        self.probing.start()
        self.records.start()
        self.records.on_change.append(self._read_addresses)
        self.records.publish(ADDRESS, "self", Whereabouts(addresses=(self._address_of(self.me),)))

    def crash(self) -> None:
        """Die without a word."""
        self.alive = False
        self.calls.stop()
        self.network.crash(self.me)
        self.tell("crashes")

    def freeze(self) -> None:
        super().freeze()
        self.tell("is frozen")

    def thaw(self) -> None:
        self.tell("thaws")
        super().thaw()

    def tell(self, what: str) -> None:
        self.world.tell(self.name, self.world.in_words(what))

    def authority(self, peer: PeerId) -> Authority:
        return self.admission.authority(peer)

    # -- connections --------------------------------------------------------------------------------------------------

    def call(
        self,
        peer: PeerId,
        method: str,
        message: Message,
        answers: type[object],
        done: Done | None = None,
        **how: object,
    ) -> None:
        """Call a method of a connected peer; see `Calls.call`."""
        open_ones = self.connections.get(peer, []) if peer in self.connected else []
        connection = open_ones[-1] if open_ones else None
        self.calls.call(connection, method, message, answers, self._living(done), **how)  # type: ignore[arg-type]

    def _living(self, done: Done | None) -> Done:
        return lambda result: done(result) if done is not None and self.alive else None

    def on_packet(self, connection: Connection, packet: object) -> None:
        """Take a message from the network."""
        if isinstance(packet, Reply):
            self.calls.on_reply(connection, packet)
        elif isinstance(packet, Request) and packet.method == "hello":
            self._serve_hello(connection, packet)
        elif isinstance(packet, Request) and packet.method == COMPARE:
            self._serve_comparison(connection, packet)
        elif isinstance(packet, Request) and packet.method in {joining.ASK, joining.PROVE}:
            self._serve_join(connection, packet)
        elif isinstance(packet, Request):
            waiting = self._greeting.get(connection.other(self.me))
            if waiting is not None:  # it may overtake its caller's answer to our hello
                waiting.append((connection, packet))
            else:
                self.calls.on_request(connection, packet)
        else:
            for listener in self.on_other:
                listener(connection, packet)

    def on_connection(self, connection: Connection) -> None:
        """Give who dialled us a while to show a grant."""
        peer = connection.other(self.me)
        self.connections.setdefault(peer, []).append(connection)

        def expire() -> None:
            if connection.open_at[self.me] and peer not in self.connected:
                self.refuse(peer, "connected and showed no grant")
                self.hang_up(peer)

        self.after(limits.HANDSHAKE_TIMEOUT_S, expire)

    def on_closed(self, connection: Connection) -> None:
        """Take the end of a connection; with the last one a peer is no more connected."""
        peer = connection.other(self.me)
        left = [other for other in self.connections.get(peer, []) if other is not connection]
        self.connections[peer] = left
        self.calls.closed(connection)
        for listener in self.on_gone:
            listener(connection)
        if self._comparing.get(peer) is connection:
            del self._comparing[peer]
        if not left and peer in self.connected:
            self.note(membership.Disconnected(peer))

    def hang_up(self, peer: PeerId) -> None:
        for connection in list(self.connections.get(peer, [])):
            self.network.close(connection, self.me)
            self.on_closed(connection)

    # -- admission ----------------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        chain = self.admission.chains([self.me])[self.me]
        return Hello(chain=chain, revocations=self.admission.revocations.digest)

    def _dial(self, peer: PeerId) -> None:
        def dialled(connection: Connection | None, _why: str) -> None:
            if connection is None:
                self.undialled(peer)
                return
            self.connections.setdefault(peer, []).append(connection)
            self._greeting.setdefault(peer, [])
            hello = self.hello()
            done = self._living(lambda result: self._greeted(connection, result, hello))
            timeout_s = limits.HANDSHAKE_TIMEOUT_S
            self.calls.call(connection, "hello", hello, HelloAnswer, done, timeout_s=timeout_s)

        self.network.dial(self, peer, dialled)

    def undialled(self, peer: PeerId) -> None:
        self.note(membership.DialFailed(peer))

    def _greeted(self, connection: Connection, result: Answer | LeptonError, hello: Hello | None = None) -> None:
        peer = connection.other(self.me)
        try:
            if isinstance(result, LeptonError):
                raise result
            answer: HelloAnswer = result.message
            self.revoking.take(answer.proof, peer)
            if answer.refused:
                raise Refused(answer.refused)
            self.admission.check(peer, answer.chain, self.unix_s)
            if hello is not None and answer.revocations != hello.revocations:
                self.revoking.compare(connection, lambda error: self._enter(connection, answer, error))
                return
        except LeptonError as error:
            self._enter(connection, None, error)
        else:
            self._enter(connection, answer, None)

    def _enter(self, connection: Connection, answer: HelloAnswer | None, error: LeptonError | None) -> None:
        """Let in whom this device dialled, or not."""
        peer = connection.other(self.me)
        waiting = self._greeting.pop(peer, [])
        try:
            if answer is None or error is not None:
                raise error or LinkError("there was no answer")
            self.admission.admit(peer, answer.chain, self.unix_s)
            self.admission.standing(peer, self.unix_s)
            if not connection.open_at[self.me]:
                raise LinkError("the connection is gone")
            self.note(membership.Connected(peer, dialled=True))
        except LeptonError as raised:
            if refused := isinstance(raised, Refused | PeerError):
                self.refuse(peer, str(raised))
            if connection.open_at[self.me]:
                self.network.close(connection, self.me)
                self.on_closed(connection)
            self.note(membership.DialFailed(peer, refused=refused))
        for waited, request in waiting:
            if waited.open_at[self.me]:
                self.calls.on_request(waited, request)

    def _serve_hello(self, connection: Connection, request: Request) -> None:
        peer = connection.other(self.me)
        chain: tuple[Grant, ...] = ()
        try:
            hello = unpack(request.payload, Hello)
            chain = hello.chain
            self.admission.admit(peer, chain, self.unix_s)
        except (Refused, PeerError) as error:
            self.refuse(peer, str(error))
            answer = HelloAnswer(refused=str(error), proof=self.admission.proof(peer, chain, self.unix_s))
            self.after(_BYE_S, lambda: self.hang_up(peer))
        else:
            mine = self.hello()
            answer = HelloAnswer(chain=mine.chain, revocations=mine.revocations)
            if hello.revocations == mine.revocations:
                self.note(membership.Connected(peer))  # before the answer, which its first call might overtake
            else:
                self._comparing[peer] = connection
        payload = pack(answer)
        self.network.send(connection, self.me, Reply(request.number, "", "", payload, b""), len(payload))

    def _serve_comparison(self, connection: Connection, request: Request) -> None:
        """Hear what a peer that greeted knows of revocations; only after its last word is it let in."""
        peer = connection.other(self.me)
        if self._comparing.get(peer) is not connection:
            return
        try:
            if self.revoking.serve_comparison(connection, request):
                del self._comparing[peer]
                self.admission.standing(peer, self.unix_s)
                self.note(membership.Connected(peer))
        except (Refused, PeerError) as error:
            self.refuse(peer, str(error))
            self.after(_BYE_S, lambda: self.hang_up(peer))

    def _serve_join(self, connection: Connection, request: Request) -> None:
        try:
            self.invites.serve(connection, request)
        except (Refused, PeerError) as error:
            self.offended(connection.other(self.me), str(error))

    def _admitted(self, peer: PeerId) -> Authority:
        if peer not in self.connected:
            raise Refused("A call came before a grant of this mesh was shown.")
        authority = self.admission.standing(peer, self.unix_s)
        self._served(self.me, peer)
        return authority

    def serves(self, peer: PeerId) -> None:
        """Note that this device is about to do something for a peer."""
        self._served(self.me, peer)

    def offended(self, peer: PeerId, reason: str) -> None:
        self.refuse(peer, reason)
        self.after(0.0, lambda: self.hang_up(peer))

    def refuse(self, peer: PeerId, reason: str) -> None:
        self.refusals += 1
        self.tell(f"refuses {self.world.called(peer)}: {reason}")

    # -- membership ---------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Speak as mDNS does: who hears it knows where this device is, and answers."""
        for endpoint in self.network.heard_by(self.me):
            if isinstance(endpoint, Device):
                endpoint.after(0.0, lambda heard=endpoint: heard.hint(self.me))  # type: ignore[misc]
                if self.network.carries(endpoint.me, self.me):  # its answer
                    self.hint(endpoint.me)
        self.after(_ANNOUNCE_S, self._announce)

    def _address_of(self, peer: PeerId) -> str:
        return f"simulated/{self.world.called(peer)}"

    def hint(self, peer: PeerId) -> None:
        self.note(membership.Hinted(peer, (self._address_of(peer),)))

    def _read_addresses(self) -> None:
        """Follow what members say of where they are."""
        store = self.records.store
        for record in store.live(ADDRESS, store.owners()):
            if self._read.get(record.owner) != record.version:
                self._read[record.owner] = record.version
                self.note(membership.Hinted(record.owner, record.value(Whereabouts).addresses, signed=True))

    def note(self, event: membership.Event) -> None:
        before, linked = set(self.present), set(self.connected)
        whole = self.members.neighbours.whole
        for effect in self.members.handle(event, self.now):
            self._carry_out(effect)
        match event:
            case (
                membership.Connected()
                | membership.Disconnected()
                | membership.Parting()
                | membership.DialFailed()
                | membership.Expelled()
            ):
                self.probing.note(event)
        if whole and not self.members.neighbours.whole:
            self.note(membership.Heard(tuple(sorted(self.probing.machine.alive))))
        for peer in sorted(self.connected - linked):
            self.records.come(peer)
        for peer in sorted(linked - self.connected):
            self.records.go(peer)
        if before != self.present:
            self._tell_present(before)

    def _carry_out(self, effect: membership.Effect) -> None:
        match effect:
            case membership.Dial(peer, _):
                self._dial(peer)
            case membership.Probe(peer):
                self._probe(peer)
            case membership.Release(peer, reason):
                self._release(peer, reason)

    def _tell_present(self, before: set[PeerId]) -> None:
        came, went = sorted(self.present - before), sorted(before - self.present)
        self.tell(" ".join([f"+{self.world.called(p)}" for p in came] + [f"-{self.world.called(p)}" for p in went]))
        self.records.changed()
        for peer in went:
            self._left(self.me, peer)
            for listener in self.on_absent:
                listener(peer)

    def note_unconnected(self, event: membership.Heard | membership.Gone) -> None:
        if isinstance(event, membership.Gone) or not self.members.neighbours.whole:
            self.note(event)

    def drop(self, peer: PeerId, reason: str) -> None:
        self.tell(f"drops {self.world.called(peer)}: it {reason}")
        self.after(0.0, lambda: self.hang_up(peer))

    def _probe(self, peer: PeerId) -> None:
        """Close a connection that carries nothing any more."""

        def probed(result: Answer | LeptonError) -> None:
            if isinstance(result, LinkError):
                self.hang_up(peer)

        self.call(peer, "mesh.swap", Swap(), Swapped, probed, timeout_s=limits.PROBE_TIMEOUT_S)

    def _release(self, peer: PeerId, reason: str) -> None:
        """Give up a connection, and tell the peer that it is not for good."""

        def told(_result: Answer | LeptonError) -> None:
            self.note(membership.Parting(peer))
            self.hang_up(peer)

        self.tell(f"gives up {self.world.called(peer)}: {reason}")
        self.call(peer, "mesh.part", Part(reason=reason), Empty, told, timeout_s=limits.PROBE_TIMEOUT_S)

    def _answer_part(self, call: Incoming) -> Answer:
        self.note(membership.Parting(call.caller))
        return Answer(Empty())

    def _tick(self) -> None:
        """Call the machine at its deadline, which may move in either direction meanwhile."""
        self.note(membership.Expired())
        self.after(min(max(self.members.deadline - self.now, 0.01), _TICK_S), self._tick)
