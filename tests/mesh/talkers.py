"""Many `Spreading` machines on virtual time: links delay, lose, double and reorder; nodes crash, and some lie."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lepton.mesh.grants import Grant
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import Message, pack
from lepton.mesh.records import Record, RecordStore, SignedRecord, open_record
from lepton.mesh.spreading import (
    Accuse,
    Answered,
    Asked,
    Call,
    Config,
    Effect,
    Event,
    Expired,
    Failed,
    Offend,
    PeerGone,
    PeerHere,
    Published,
    Reply,
    Save,
    Spreading,
)

from .fakes import identity

CALL_BYTES = 48  # what a call's header, the frame and the record layer take beside the message, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One way between two nodes."""

    latency_s: float = 0.005
    jitter_s: float = 0.01
    loss: float = 0.0
    duplication: float = 0.0


class Everybody:
    """Proofs of a mesh in which all know all, but for who was revoked."""

    def __init__(self) -> None:
        self.revoked: set[PeerId] = set()

    def knows(self, peer: PeerId) -> bool:
        return peer not in self.revoked

    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]]) -> None:
        pass

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        return {peer: () for peer in peers if peer not in self.revoked}


@dataclass(slots=True)
class Node:
    """One machine with its disk."""

    who: Identity
    store: RecordStore
    proofs: Everybody
    machine: Spreading
    incarnation: int = 1
    disk: list[SignedRecord] = field(default_factory=list)
    links: set[PeerId] = field(default_factory=set)
    sent_bytes: int = 0
    alive: bool = True
    twist: Callable[[Message], Message] | None = None  # what a liar makes of its own words
    next_at: float = 0.0

    @property
    def id(self) -> PeerId:
        return self.who.peer_id


class Talkers:
    """A world of them. Each signature is checked once for all: checking it a thousand times over shows nothing more."""

    def __init__(self, size: int, seed: int, *, config: Config | None = None, link: Link | None = None) -> None:
        self.now = 0.0
        self.dice = random.Random(seed)
        self.link = link or Link()
        self.config = config or Config()
        self.offences: list[tuple[PeerId, str]] = []
        self.accused: list[PeerId] = []
        self.unsaved: list[str] = []  # durable words that were said before they were kept
        self.calls = 0
        self._checked: dict[SignedRecord, Record] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.nodes: dict[PeerId, Node] = {}
        self._pending: dict[tuple[PeerId, Spreading, int], None] = {}
        for n in range(size):
            self.start(identity(f"talker {n}"))

    # -- who is there -------------------------------------------------------------------------------------------------

    def start(self, who: Identity, incarnation: int = 1, kept: Iterable[SignedRecord] = ()) -> Node:
        """Let a node begin, with what is on its disk."""
        disk, proofs = list(kept), Everybody()
        store = RecordStore(who, incarnation, disk, check=self._check)
        machine = Spreading(who.peer_id, store, proofs, random.Random(self.dice.random()), self.config)
        node = self.nodes[who.peer_id] = Node(who, store, proofs, machine, incarnation, disk)
        self._wake(node, self.dice.random() * self.config.interval_s)
        return node

    def restart(self, node: Node, *, backup: list[SignedRecord] | None = None) -> Node:
        """Crash, and begin again with what was kept; or with a backup, and a start that was counted before."""
        node.alive = False
        links = set(node.links)
        for peer in links:
            self.cut(node.id, peer)
        incarnation = node.incarnation + (backup is None)
        again = self.start(node.who, incarnation, node.disk if backup is None else backup)
        for peer in links:
            self.join(node.id, peer)
        return again

    def join(self, one: PeerId, other: PeerId) -> None:
        for end, peer in ((one, other), (other, one)):
            self.nodes[end].links.add(peer)
        for end, peer in ((one, other), (other, one)):
            self.give(self.nodes[end], PeerHere(peer))

    def cut(self, one: PeerId, other: PeerId) -> None:
        for end, peer in ((one, other), (other, one)):
            node = self.nodes[end]
            node.links.discard(peer)
            if node.alive:
                self.give(node, PeerGone(peer))

    def join_all(self) -> None:
        for one, other in itertools.combinations(self.nodes, 2):
            self.join(one, other)

    def rings(self, count: int) -> list[tuple[PeerId, PeerId]]:
        """Return the links of so many rings in random order, as `mesh/neighbours.py` keeps them."""
        links: dict[tuple[PeerId, PeerId], None] = {}
        for _ in range(count):
            order = list(self.nodes)
            self.dice.shuffle(order)
            for one, other in zip(order, order[1:] + order[:1], strict=True):
                links[min(one, other), max(one, other)] = None
        return list(links)

    # -- what happens -------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._count), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def until(self, so: Callable[[], bool], *, within_s: float, look_s: float = 0.25) -> float:
        """Let time pass until something is so; returns how long it took."""
        begun = self.now
        while not so():
            assert self.now - begun < within_s, f"not so after {within_s:g} s"
            self.run(look_s)
        return self.now - begun

    def publish(self, node: Node, kind: str, name: str, value: object, *, durable: bool = False) -> Record:
        record = node.store.publish(kind, name, value, durable=durable)
        self.give(node, Published(record))
        return record

    def agree(self) -> bool:
        return len({node.store.fingerprint for node in self.nodes.values()}) == 1

    def give(self, node: Node, event: Event) -> Reply | Offend | None:
        said: Reply | Offend | None = None
        for effect in node.machine.handle(event, self.now):
            said = self._carry_out(node, event, effect) or said
        if node.machine.deadline < node.next_at:
            self._wake(node, node.machine.deadline - self.now)
        return said

    def _carry_out(self, node: Node, event: Event, effect: Effect) -> Reply | Offend | None:
        match effect:
            case Save(records):
                node.disk = records
            case Call():
                self._send(node, effect)
            case Accuse(owner):
                self.accused.append(owner)
            case Offend(peer, reason):
                self.offences.append((peer, reason))
                return effect if isinstance(event, Asked) else None
            case Reply():
                return effect
        return None

    def _wake(self, node: Node, delay_s: float) -> None:
        node.next_at = at = self.now + max(delay_s, 1e-3)

        def wake() -> None:
            if node.alive and node.next_at == at:
                node.next_at = float("inf")
                self.give(node, Expired())
                self._wake(node, node.machine.deadline - self.now)

        self.after(at - self.now, wake)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _check(self, signed: SignedRecord) -> Record:
        if (record := self._checked.get(signed)) is None:
            record = self._checked[signed] = open_record(signed)
        return record

    def _size(self, node: Node, message: Message) -> Message:
        said = node.twist(message) if node.twist is not None else message
        node.sent_bytes += len(pack(said)) + CALL_BYTES
        return said

    def _deliver(self, action: Callable[[], None]) -> None:
        if self.dice.random() < self.link.loss:
            return
        for _ in range(1 + (self.dice.random() < self.link.duplication)):
            self.after(self.link.latency_s + self.link.jitter_s * self.dice.random(), action)

    def _send(self, node: Node, call: Call) -> None:
        self.calls += 1
        key = (node.id, node.machine, call.number)
        self._pending[key] = None
        message = self._size(node, call.message)
        self._note_unsaved(node, call)
        self._deliver(lambda: self._arrive(node, call, message))
        self.after(call.timeout_s, lambda: self._end(node, key, Failed(call.number)))

    def _arrive(self, node: Node, call: Call, message: Message) -> None:
        there = self.nodes.get(call.peer)
        if there is None or not there.alive or node.id not in there.links:
            return
        said = self.give(there, Asked(node.id, message))  # type: ignore[arg-type]
        key = (node.id, node.machine, call.number)
        if isinstance(said, Reply):
            answer = self._size(there, said.message)
            self._deliver(lambda: self._end(node, key, Answered(call.number, answer)))  # type: ignore[arg-type]

    def _end(self, node: Node, key: tuple[PeerId, Spreading, int], event: Event) -> None:
        if key in self._pending:
            del self._pending[key]
            if node.alive:
                self.give(node, event)

    def _note_unsaved(self, node: Node, call: Call) -> None:
        for item in getattr(call.message, "records", ()):
            record = self._check(item)
            own = node.store._said.get(record.key)  # what it hears of a life that it forgot was said long ago
            if own is not None and own.signed == item and record.content.durable and item not in node.disk:
                self.unsaved.append(record.name)
