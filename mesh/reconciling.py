"""One exchange: what a node says next to a peer, until both hold the same or nothing more can be done.

First a fingerprint and the news on both sides (``Compare``); then the records that one has and the other lacks
(``Swap``). What the news leaves unexplained is looked for bucket by bucket (``Survey``) when there was no news at all,
too much for one message, or when this exchange is to be thorough; otherwise it is most likely news that came meanwhile,
and waits. In a bucket this node first reads what it lacks and then gives what the peer lacks, so that what one side has
replaced does not travel.

Invariant: every turn moves a record, proves an owner or shortens what is left to do, so an exchange ends whatever the
peer says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from . import limits
from .errors import PeerError
from .grants import Grant
from .identity import PeerId
from .records import Merged, Record, RecordId, RecordStore, SignedRecord
from .shelf import BUCKETS
from .signed import ID_BYTES
from .swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped, ids_in, joined, load

# Of those who were told an id, how many knew it already before it is told no more. With push and pull, four reached
# all of 1,000 simulated nodes but for one record in some thousand, which a survey finds (tests/bench/picture.py).
_KNEW_MAX = 4
# All that a store may hold takes 17 lists of ids. A peer that never comes to an end is left to the next exchange.
_SURVEYS_MAX = 32


class Proofs(Protocol):
    """Who is known to be of this mesh, and by which chains."""

    def knows(self, peer: PeerId) -> bool: ...
    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]]) -> None: ...
    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]: ...


@dataclass(slots=True)
class Copy:
    """One node's copy of the picture, as all its talks share it."""

    store: RecordStore
    proofs: Proofs
    merged: list[Merged] = field(default_factory=list)  # what came in and is still to be acted on
    _news: dict[RecordId, int] = field(default_factory=dict)  # lately learned; how many knew it when they were told
    _useless: dict[RecordId, None] = field(default_factory=dict)  # not worth asking for; forgotten after a while

    def take(self, signed: Iterable[SignedRecord], chains: Mapping[PeerId, tuple[Grant, ...]]) -> Merged:
        """Take in records. Raises PeerError at the first that is forged; what came before it stays."""
        if chains:
            self.proofs.learn(chains)
        got = self.store.merge(signed, known=self.proofs.knows)
        self.merged.append(got)
        for record in got.new + got.restated:
            self.tell_on(record)
        for record_id in got.useless[: limits.USELESS_MAX - len(self._useless)]:
            self._useless[record_id] = None
        if got.forged:
            raise PeerError(got.forged)
        return got

    def tell_on(self, record: Record) -> None:
        """Name a record in the next exchanges."""
        self._news[record.id] = 0
        while len(self._news) > 2 * limits.NEWS_MAX:  # the oldest: what is not told like this is found by a survey
            del self._news[next(iter(self._news))]

    def news(self, but: Iterable[RecordId] = ()) -> list[RecordId]:
        """Return the ids to name, the latest first; of what has been replaced since there is nothing to say."""
        if not self._news:
            return []
        for gone in [known for known in self._news if self.store.with_id(known) is None]:
            del self._news[gone]
        passed_over = set(but)
        return [known for known in reversed(self._news) if known not in passed_over][: limits.NEWS_MAX]

    def knew(self, ids: Iterable[RecordId]) -> None:
        """Note that somebody held these already; told often enough, a thing is no news (Demers 1987, feedback)."""
        for record_id in ids:
            if (count := self._news.get(record_id)) is not None:
                if count + 1 >= _KNEW_MAX:
                    del self._news[record_id]
                else:
                    self._news[record_id] = count + 1

    def lacking(self, ids: Iterable[RecordId]) -> list[RecordId]:
        """Return which of these are neither held nor useless."""
        return [one for one in ids if self.store.with_id(one) is None and one not in self._useless]

    def held(self, ids: Iterable[RecordId]) -> list[Record]:
        return [record for one in ids if (record := self.store.with_id(one)) is not None]

    def ask_again(self) -> None:
        """Give what was useless another chance: there may be room by now."""
        self._useless.clear()


@dataclass(slots=True)
class Exchange:
    """The asking side of one exchange."""

    copy: Copy
    thorough: bool = False  # survey whatever is left unexplained
    curt: bool = False  # survey nothing: it was of no use lately
    heard: bool = False  # the peer has answered something
    agreed: bool = False  # both held the same in the end
    surveyed: int = 0  # how often
    moved: bool = False  # anything has, to either side
    _named: Sequence[RecordId] = ()
    _theirs: bytes = b""  # the peer's fingerprint, when last heard
    _want: Sequence[RecordId] = ()
    _asked: Sequence[RecordId] = ()
    _owe: Sequence[Record] = ()
    _given: Sequence[Record] = ()
    _proofs_wanted: bool = False
    _proven_to: frozenset[PeerId] = frozenset()
    _listed: Surveyed | None = None
    _fruitful: bool = False  # something has moved since the last survey

    def first(self) -> Compare:
        """Return the first words."""
        self._named = self.copy.news()
        return Compare(fingerprint=self.copy.store.fingerprint, news=joined(self._named))

    def answered(self, message: Compared | Surveyed | Swapped) -> Survey | Swap | None:
        """Take the peer's answer and return what to ask next, or None when the exchange is over. Raises PeerError."""
        self.heard = True
        match message:
            case Compared():
                self._compare(message)
            case Surveyed():
                self.surveyed, self._fruitful, self._listed = self.surveyed + 1, False, message
                self._want = self.copy.lacking(ids_in(message.ids))
            case Swapped():
                self._swapped(message)
        return self._next()

    def _compare(self, answer: Compared) -> None:
        self._theirs = answer.fingerprint
        if self._agree():
            self.copy.knew(self._named)
            return
        news, wanted = ids_in(answer.news), set(ids_in(answer.want))
        self.copy.knew([*(one for one in self._named if one not in wanted), *news])
        self._want = self.copy.lacking(news)
        self._owe = self.copy.held(one for one in self._named if one in wanted)
        few, many = not self._named and not news, limits.NEWS_MAX in {len(self._named), len(news)}
        self.thorough |= few or many

    def _agree(self) -> bool:
        return self._theirs == self.copy.store.fingerprint

    def _swapped(self, answer: Swapped) -> None:
        got = self.copy.take(answer.records, answer.chains)
        self._fruitful |= bool(got.new) or answer.fingerprint != self._theirs
        self.moved |= self._fruitful
        self._theirs = answer.fingerprint
        left = self.copy.lacking(self._want)
        to_prove = bool(got.unproven) and not self._proofs_wanted
        self._proofs_wanted |= bool(got.unproven)
        if len(left) == len(self._want) and not to_prove:  # these it does not give, or cannot
            left = left[len(self._asked) :]
        self._want = left
        doubted = set(answer.unproven) - self._proven_to
        self._proven_to |= doubted
        self._owe = [*(record for record in self._given if record.owner in doubted), *self._owe]

    def _next(self) -> Survey | Swap | None:
        if not self._want and not self._owe and self._listed is not None:
            self._owe, self._listed = self._missing_there(self._listed), None
        if self._want or self._owe:
            return self._swap()
        if self._agree():
            self.agreed = True
            return None
        again = self._fruitful and self.surveyed < _SURVEYS_MAX  # what one message did not hold may be left
        if not self.curt and (again if self.surveyed else self.thorough):
            return Survey(digests=self.copy.store.digests())
        return None

    def _missing_there(self, listed: Surveyed) -> list[Record]:
        theirs = set(ids_in(listed.ids))
        return self.copy.held(
            one for number in listed.buckets for one in self.copy.store.bucket(number) if one not in theirs
        )

    def _swap(self) -> Swap:
        chains = self.copy.proofs.chains({record.owner for record in self._owe})
        loaded = load(self._owe, chains, proofs=bool(self._proven_to))
        self._given, self._owe = loaded.records, loaded.rest
        self._asked = self._want[: limits.WANTED_MAX]
        return Swap(records=loaded.signed, chains=loaded.chains, want=joined(self._asked), proofs=self._proofs_wanted)


def answer(copy: Copy, message: Compare | Survey | Swap, start: int) -> Compared | Surveyed | Swapped:
    """Answer a peer. ``start`` is a random bucket to list first: each has to be, at times. Raises PeerError."""
    match message:
        case Compare():
            return _compared(copy, message)
        case Survey():
            return _surveyed(copy, message, start)
        case Swap():
            return _swapped(copy, message)


def _compared(copy: Copy, asked: Compare) -> Compared:
    mine, named = copy.store.fingerprint, ids_in(asked.news)
    copy.knew(named)
    if mine == asked.fingerprint:
        return Compared(fingerprint=mine)
    news = copy.news(but=named)
    return Compared(fingerprint=mine, news=joined(news), want=joined(copy.lacking(named)))


def _surveyed(copy: Copy, asked: Survey, start: int) -> Surveyed:
    mine, theirs = (
        [digests[at : at + ID_BYTES] for at in range(0, len(digests), ID_BYTES)]
        for digests in (copy.store.digests(), asked.digests)
    )
    buckets: list[int] = []
    ids: list[RecordId] = []
    for number in ((start + place) % BUCKETS for place in range(BUCKETS)):
        if mine[number] == theirs[number]:
            continue
        found = copy.store.bucket(number)
        if buckets and len(ids) + len(found) > limits.LISTED_MAX:
            break
        buckets.append(number)
        ids += found
    return Surveyed(buckets=bytes(buckets), ids=joined(ids[: limits.LISTED_MAX]))


def _swapped(copy: Copy, asked: Swap) -> Swapped:
    got = copy.take(asked.records, asked.chains)
    wanted = copy.held(ids_in(asked.want))
    loaded = load(wanted, copy.proofs.chains({record.owner for record in wanted}), proofs=asked.proofs)
    unproven = sorted(set(got.unproven.values()))[: limits.CHAINS_PER_SWAP_MAX]
    return Swapped(
        fingerprint=copy.store.fingerprint, records=loaded.signed, chains=loaded.chains, unproven=tuple(unproven)
    )
