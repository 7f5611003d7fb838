"""How the picture spreads: a machine that decides what this node says to whom, and when.

What this node states goes at once to all who are connected (push). Once a period it exchanges with one random peer
(push-pull anti-entropy, Demers 1987; one exchange with one peer is `reconciling.py`): so what is pushed travels on to
those who are not connected with its owner, and what got lost is repaired. While exchanges only show that both hold the
same, periods double up to a bound; whatever is new makes them short again (Trickle, RFC 6206). A peer that has just
come is surveyed whole.

What this node itself states durably is saved before it is said: others must not know what a crash can make its owner
forget. What others state durably is saved soon; they have it too.

Invariant: at most one exchange and one push to each peer are under way; effects are to be carried out in their order.
"""

import bisect
import random
from dataclasses import dataclass, field

import msgspec

from .errors import PeerError
from .identity import PeerId
from .reconciling import Copy, Exchange, Proofs, answer
from .records import Key, Record, RecordStore, SignedRecord
from .shelf import BUCKETS
from .swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped, load

_PUSHES_FAILED_MAX = 3  # a link that loses every fifth message loses three calls in a row once in twenty times


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How eagerly a node looks after its copy of the picture."""

    interval_s: float = 1.0  # push-pull with one random peer a second reached 1,000 nodes in 9.3 periods (trust.md)
    # Between two exchanges while nothing is new. Each node is asked as often as it asks: one that missed everything
    # learns of it in half of this, and a calm mesh of batteries says a sixteenth as much.
    calm_s: float = 16.0
    # Exchanges in a row that find both sides equal before the period doubles: who agrees with who told it knows
    # nothing of the others. On rings of 60 at 5 % loss news took 14 s at most with 4, 22 s with 1, 15 s with 8.
    agreements: int = 4
    timeout_s: float = 2.0  # of one call: two periods, and 64 KiB in 2 s is a link of 250 kbit/s
    # Exchanges in a row that end unequal before one surveys all: with a change every 30 ms news is always under way.
    unequal_max: int = 32
    save_after_s: float = 1.0  # one write for all that comes in a burst; an SD card takes some 10 ms for each
    ask_again_s: float = 60.0  # what was of no use is not asked for, a peer that never agrees not surveyed, for so long


@dataclass(frozen=True, slots=True)
class Published:
    """The store has something new of this node's own."""

    record: Record


@dataclass(frozen=True, slots=True)
class PeerHere:
    """A member is connected: it can be talked to."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerGone:
    """It cannot any more."""

    peer: PeerId


class Asked(msgspec.Struct, frozen=True):
    """A member asks; answered by one Reply, or by Offend in its place."""

    peer: PeerId
    message: Compare | Survey | Swap


class Answered(msgspec.Struct, frozen=True):
    """The answer to the call of this number."""

    number: int
    message: Compared | Surveyed | Swapped


class Failed(msgspec.Struct, frozen=True):
    """No answer to the call of this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Forgot:
    """The store has forgotten an owner that is of the mesh no more."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Save:
    """Keep these, all that are durable, across a restart; ``first`` when nothing may be said before that is done."""

    records: list[SignedRecord]
    first: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """Readers of the picture should look again."""


class Call(msgspec.Struct, frozen=True):
    """Ask a peer and come back with Answered or Failed."""

    peer: PeerId
    number: int
    message: Compare | Survey | Swap
    timeout_s: float


class Reply(msgspec.Struct, frozen=True):
    """The answer to Asked."""

    message: Compared | Surveyed | Swapped


class Heard(msgspec.Struct, frozen=True):
    """Whether this peer answered in an exchange: for who judges whether it lives."""

    peer: PeerId
    ok: bool


@dataclass(frozen=True, slots=True)
class Offend:
    """A peer broke the protocol."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Accuse:
    """An owner was caught, by its own signatures; the proof is in the store's ``contradictions``."""

    owner: PeerId
    reason: str


Event = Published | PeerHere | PeerGone | Asked | Answered | Failed | Forgot | Expired
Effect = Save | Changed | Call | Reply | Heard | Offend | Accuse


@dataclass(slots=True)
class _Pushing:
    """What one peer is still to be told."""

    keys: dict[Key, None] = field(default_factory=dict)
    under_way: list[Record] = field(default_factory=list)
    proven: bool = False
    failures: int = 0  # in a row


class Spreading:
    """One node's talk about the picture."""

    def __init__(
        self, me: PeerId, store: RecordStore, proofs: Proofs, rng: random.Random, config: Config | None = None
    ) -> None:
        self.deadline = 0.0
        self._me = me
        self._copy = Copy(store, proofs)
        self._rng = rng
        self._config = config or Config()
        self._present: list[PeerId] = []  # in order
        self._unmet: set[PeerId] = set()  # with whom no exchange has ended since they came
        self._exchanges: dict[PeerId, Exchange] = {}
        self._pushes: dict[PeerId, _Pushing] = {}
        self._calls: dict[int, tuple[PeerId, Exchange | _Pushing]] = {}
        self._stuck: set[PeerId] = set()  # with whom a survey led to nothing
        self._number = 0
        self._unequal = 0
        self._exchange_at = 0.0
        self._pause_s = self._config.interval_s  # between two exchanges, as of now
        self._agreements = 0  # exchanges in a row that found both sides equal
        self._save_at: float | None = None
        self._ask_again_at = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; ``now`` is monotonic seconds. Sets ``deadline``, when ``Expired`` is due."""
        effects = self._take(event, now)
        if isinstance(event, Published | PeerHere | Failed):
            self._stir(now)
        if self._copy.merged:
            effects = self._act_on_merged(now) + effects
        self.deadline = min(self._exchange_at, self._ask_again_at)
        if self._save_at is not None:
            self.deadline = min(self.deadline, self._save_at)
        return effects

    def _take(self, event: Event, now: float) -> list[Effect]:
        match event:  # what is most frequent comes first
            case Asked(peer, message):
                return [self._answer(peer, message)]
            case Answered(number, message):
                return self._answered(number, message, now)
            case Expired():
                return self._expired(now)
            case Published(record):
                return self._publish([record])
            case PeerHere(peer):
                return self._here(peer)
            case PeerGone(peer):
                self._gone(peer)
                return []
            case Failed(number):
                return self._failed(number)
            case Forgot():
                self._save_soon(now)
                return [Changed()]

    # -- what has changed ---------------------------------------------------------------------------------------------

    def _publish(self, records: list[Record]) -> list[Effect]:
        """Save if need be, then tell all who are here."""
        effects: list[Effect] = []
        if any(record.content.durable for record in records):
            effects.append(self._save(first=True))
        effects.append(Changed())
        for record in records:
            self._copy.tell_on(record)
            for peer in self._present:
                self._pushes.setdefault(peer, _Pushing()).keys[record.key] = None
        for peer in self._present:
            effects += self._push(peer)
        return effects

    def _act_on_merged(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for merged in self._copy.merged:
            effects += [
                Accuse(owner, "signed two records of one version: it lies, or two devices run with its key")
                for owner in merged.contradicted
            ]
            if merged.new:
                self._stir(now)
                effects.append(Changed())
            if any(record.content.durable for record in merged.new):
                self._save_soon(now)
            if merged.restated:
                effects += self._publish(merged.restated)
        self._copy.merged.clear()
        return effects

    def _stir(self, now: float) -> None:
        """Exchange soon: there is something to pass on, or somebody who may have something new."""
        self._pause_s, self._agreements = self._config.interval_s, 0
        if self._exchange_at > now + 1.2 * self._pause_s:
            self._exchange_at = now + self._pause_s * self._rng.uniform(0.8, 1.2)

    def _save_soon(self, now: float) -> None:
        if self._save_at is None:
            self._save_at = now + self._config.save_after_s

    def _save(self, *, first: bool) -> Save:
        self._save_at = None
        return Save(self._copy.store.durable(), first)

    # -- who is here --------------------------------------------------------------------------------------------------

    def _here(self, peer: PeerId) -> list[Effect]:
        if peer in self._present:
            return []
        bisect.insort(self._present, peer)
        self._unmet.add(peer)
        return self._exchange(peer) if self._me < peer else []  # one of the two is enough, and periods bring it else

    def _gone(self, peer: PeerId) -> None:
        if peer in self._present:
            self._present.remove(peer)
        self._unmet.discard(peer)
        self._stuck.discard(peer)
        self._exchanges.pop(peer, None)
        self._pushes.pop(peer, None)
        self._calls = {number: call for number, call in self._calls.items() if call[0] != peer}

    def _expired(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._save_at is not None and now >= self._save_at:
            effects.append(self._save(first=False))
        if now >= self._ask_again_at:
            self._ask_again_at = now + self._config.ask_again_s
            self._copy.ask_again()
            self._stuck.clear()
        if now >= self._exchange_at:
            self._exchange_at = now + self._pause_s * self._rng.uniform(0.8, 1.2)
            idle = [peer for peer in self._present if peer not in self._exchanges]
            if idle:
                effects += self._exchange(self._rng.choice(idle))
        return effects

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, peer: PeerId, work: Exchange | _Pushing, message: Compare | Survey | Swap) -> list[Effect]:
        self._number += 1
        self._calls[self._number] = (peer, work)
        return [Call(peer, self._number, message, self._config.timeout_s)]

    def _exchange(self, peer: PeerId) -> list[Effect]:
        if peer in self._exchanges:
            return []
        thorough = peer in self._unmet or self._unequal >= self._config.unequal_max
        exchange = Exchange(self._copy, thorough=thorough, curt=peer in self._stuck)
        self._exchanges[peer] = exchange
        return self._call(peer, exchange, exchange.first())

    def _push(self, peer: PeerId) -> list[Effect]:
        """Push one message after the other: of two at once the later one might arrive first."""
        pushing = self._pushes[peer]
        if pushing.under_way:
            return []
        store = self._copy.store
        records = [record for key in pushing.keys if (record := store.get(key)) is not None]
        loaded = load(records, self._copy.proofs.chains([self._me]), proofs=pushing.proven)
        if not loaded.records:
            del self._pushes[peer]
            return []
        pushing.under_way, pushing.keys = loaded.records, {record.key: None for record in loaded.rest}
        return self._call(peer, pushing, Swap(records=loaded.signed, chains=loaded.chains))

    def _answered(self, number: int, message: Compared | Surveyed | Swapped, now: float) -> list[Effect]:
        peer, work = self._calls.pop(number, (None, None))
        if peer is None:
            return []
        if isinstance(work, Exchange):
            return self._exchanged(peer, work, message, now)
        assert isinstance(work, _Pushing)
        assert isinstance(message, Swapped)
        if self._me in message.unproven and not work.proven:
            work.proven = True
            work.keys = {record.key: None for record in work.under_way} | work.keys
        work.under_way, work.failures = [], 0
        return self._push(peer)

    def _exchanged(
        self, peer: PeerId, exchange: Exchange, message: Compared | Surveyed | Swapped, now: float
    ) -> list[Effect]:
        try:
            ask = exchange.answered(message)
        except PeerError as error:
            del self._exchanges[peer]
            return [Heard(peer, ok=False), Offend(peer, str(error))]
        if ask is not None:
            self._stir(now)
            return self._call(peer, exchange, ask)
        del self._exchanges[peer]
        self._unmet.discard(peer)
        if exchange.surveyed and not exchange.agreed and not exchange.moved:
            self._stuck.add(peer)
        if exchange.agreed and not exchange.moved:
            self._agreements += 1
            if self._agreements >= self._config.agreements:
                self._pause_s = min(2 * self._pause_s, max(self._config.calm_s, self._config.interval_s))
        else:
            self._stir(now)
        self._unequal = 0 if exchange.agreed or exchange.surveyed else self._unequal + 1
        return [Heard(peer, ok=True)]

    def _failed(self, number: int) -> list[Effect]:
        peer, work = self._calls.pop(number, (None, None))
        if peer is None:
            return []
        if isinstance(work, Exchange):
            del self._exchanges[peer]
            return [Heard(peer, ok=work.heard)]
        assert isinstance(work, _Pushing)
        work.keys, work.under_way = {record.key: None for record in work.under_way} | work.keys, []
        work.failures += 1
        if work.failures < _PUSHES_FAILED_MAX:
            return self._push(peer)
        del self._pushes[peer]  # an exchange brings it
        return []

    def _answer(self, peer: PeerId, message: Compare | Survey | Swap) -> Effect:
        try:
            return Reply(answer(self._copy, message, self._rng.randrange(BUCKETS)))
        except PeerError as error:
            return Offend(peer, str(error))


METHODS: dict[type[Compare | Survey | Swap], tuple[str, type[Compared | Surveyed | Swapped]]] = {
    Compare: ("mesh.compare", Compared),
    Survey: ("mesh.survey", Surveyed),
    Swap: ("mesh.swap", Swapped),
}
