"""How one blob comes from whoever has it: which chunk is asked of whom, and when to give up. Pure.

Invariant: a chunk counts as here only when it was checked and written (`Came`); each is asked of one peer at a time, of
a second one only when the first is late and nothing else waits. The rarest chunk goes first, ties by lot, so that
several who fetch one model soon have different parts of it and give them to each other (BitTorrent's rule: Cohen,
Incentives Build Robustness in BitTorrent, 2003, section 2.4.2). Who sends a wrong chunk is asked for nothing any more.
"""

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ...mesh.errors import PeerError
from ..deployments import BlobRef
from .hashing import Chunks, checked_chunks, only_chunk

# As often the patience are peers asked that say they have more and do not give it: they may be busy with others.
_PATIENCE_WITH_HOPE: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The pace of one fetch."""

    per_peer: int = 2  # chunks of one peer at once: while one is checked the next is under way
    at_once: int = 8  # of all peers together: 32 MiB of memory
    asked_at_once: int = 8  # peers asked what they have
    again_s: float = 1.0  # until a peer that has a part, or nothing, is asked again what it has
    late_s: float = 5.0  # for a chunk to be late: poor Wi-Fi, a megabyte a second
    give_up_s: float = 30.0  # for a chunk to be given up: 140 kB/s
    strikes: int = 3  # failures of a peer one after another, until it is left out
    patience_s: float = 20.0  # with peers that have parts and no new chunk: they may be fetching it too


@dataclass(frozen=True, slots=True)
class Here:
    """These peers are here now, and no others."""

    peers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Told:
    """A peer said which chunks it has, and if it was asked for them the hashes of all."""

    peer: str
    have: frozenset[int] | None  # None: all
    hashes: bytes | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A peer could not be asked what it has."""

    peer: str
    why: str
    retry_s: float = 0.0  # it is only busy


@dataclass(frozen=True, slots=True)
class Begun:
    """The file is open; these chunks are in it from an earlier time."""

    have: frozenset[int]


@dataclass(frozen=True, slots=True)
class Came:
    """A chunk was checked and written."""

    peer: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Wrong:
    """A peer broke the protocol: what it sent is not that chunk."""

    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk did not come."""

    peer: str
    chunk: int
    why: str
    retry_s: float = 0.0  # it is only busy


@dataclass(frozen=True, slots=True)
class Passed:
    """Time passed."""


Event = Here | Told | Unanswered | Begun | Came | Wrong | Failed | Passed


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer which chunks it has; answered by Told, Unanswered or Wrong."""

    peer: str
    hashes: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """Open the file; answered by Begun."""

    chunks: Chunks


@dataclass(frozen=True, slots=True)
class Get:
    """Fetch a chunk; answered by Came, Failed or Wrong."""

    peer: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for this chunk from this peer any more; it is not answered."""

    peer: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Done:
    """All chunks are here."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """It cannot be had, for this reason."""

    why: str


Effect = Ask | Begin | Get | Drop | Done | GaveUp


@dataclass(slots=True)
class _Peer:
    asked: bool = False  # an answer is under way
    known: bool = False  # it said what it has, and nothing since made that doubtful
    ask_at: float = -math.inf
    have: frozenset[int] | None = frozenset()
    flights: dict[int, float] = field(default_factory=dict)  # chunk to when it was asked for
    paused_until: float = -math.inf
    strikes: int = 0
    out: str = ""  # why it is left out

    def has(self, chunk: int) -> bool:
        return self.have is None or chunk in self.have


class Fetching:
    """One blob on its way here."""

    def __init__(
        self, ref: BlobRef, rng: random.Random, *, chunks: Chunks | None = None, config: Config | None = None
    ) -> None:
        """``chunks`` are known from an earlier time; else they are asked for, and checked."""
        self.deadline = math.inf  # when to say Passed
        self.config = config or Config()
        self.ref = ref
        self.chunks = chunks or only_chunk(ref)
        self.have: set[int] = set()
        self._rng = rng
        self._peers: dict[str, _Peer] = {}
        self._liars: dict[str, str] = {}
        self._beginning = False
        self._begun = False
        self._over = False
        self._progress_at = -math.inf
        self._waiting: set[int] = set()  # neither here nor asked for
        self._rank: list[float] = []

    @property
    def left_out(self) -> dict[str, str]:
        """Who is asked for nothing any more, and why."""
        return self._liars | {name: peer.out for name, peer in self._peers.items() if peer.out}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done."""
        if self._over:
            return []
        if self._progress_at == -math.inf:
            self._progress_at = now
        effects = self._take(event, now)
        if not self._over:
            effects += self._late(now)
            effects += self._asks(now)
            effects += self._gets(now)
            effects += self._end(now)
        self.deadline = self._next(now)
        return effects

    # -- what happened ------------------------------------------------------------------------------------------------

    def _take(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Here(peers):
                return self._here(peers)
            case Told():
                return self._told(event, now)
            case Begun(have):
                assert self.chunks is not None
                self._begun, self.have = True, set(have)
                self._waiting = set(range(self.chunks.number)) - self.have
                self._rank = [self._rng.random() for _ in range(self.chunks.number)]
            case Came(name, chunk):
                return self._came(name, chunk, now)
            case Wrong(name, why):
                self._liars[name] = why
                return self._lose(name)
            case Failed(name, chunk, why, retry_s):
                self._failed(name, chunk, why, retry_s, now)
            case Unanswered(name, why, retry_s):
                if (peer := self._peers.get(name)) is not None:
                    peer.asked, peer.known, peer.ask_at = False, False, now + max(self.config.again_s, retry_s)
                    self._strike(peer, why, retry_s)
            case Passed():
                pass
        return []

    def _here(self, peers: frozenset[str]) -> list[Effect]:
        effects: list[Effect] = []
        for name in sorted(self._peers.keys() - peers):
            effects += self._lose(name)
        for name in sorted(peers - self._peers.keys() - self._liars.keys()):
            self._peers[name] = _Peer()
        return effects + self._begin()

    def _begin(self) -> list[Effect]:
        if self.chunks is None or self._beginning:
            return []
        self._beginning = True
        return [Begin(self.chunks)]

    def _told(self, told: Told, now: float) -> list[Effect]:
        peer = self._peers.get(told.peer)
        if peer is None:
            return []
        peer.asked, peer.known, peer.have = False, True, told.have
        peer.ask_at = math.inf if told.have is None else now + self.config.again_s
        if told.have is not None and not told.have:
            peer.strikes = 0  # it owes nothing
        if told.hashes is None:
            return []
        try:
            self.chunks = checked_chunks(self.ref, told.hashes)
        except PeerError as error:
            self._liars[told.peer] = str(error)
            return self._lose(told.peer)
        return self._begin()

    def _came(self, name: str, chunk: int, now: float) -> list[Effect]:
        self.have.add(chunk)
        self._waiting.discard(chunk)
        self._progress_at = now
        effects: list[Effect] = []
        for other, peer in self._peers.items():
            if peer.flights.pop(chunk, None) is not None and other != name:
                effects.append(Drop(other, chunk))
        if (sender := self._peers.get(name)) is not None:
            sender.strikes = 0
        return effects

    def _failed(self, name: str, chunk: int, why: str, retry_s: float, now: float) -> None:
        peer = self._peers.get(name)
        if peer is None or peer.flights.pop(chunk, None) is None:
            return
        self._put_back(chunk)
        peer.paused_until = now + retry_s
        if not retry_s:
            peer.known, peer.have, peer.ask_at = False, frozenset(), now + self.config.again_s
        self._strike(peer, why, retry_s)

    def _strike(self, peer: _Peer, why: str, retry_s: float) -> None:
        if retry_s:
            return
        peer.strikes += 1
        if peer.strikes >= self.config.strikes and not peer.out:
            peer.out = why
            peer.have = frozenset()

    def _lose(self, name: str) -> list[Effect]:
        peer = self._peers.pop(name, None)
        if peer is None:
            return []
        flights, peer.flights = list(peer.flights), {}
        for chunk in flights:
            self._put_back(chunk)
        return [Drop(name, chunk) for chunk in flights]

    def _put_back(self, chunk: int) -> None:
        if chunk not in self.have and not any(chunk in peer.flights for peer in self._peers.values()):
            self._waiting.add(chunk)

    # -- what to do ---------------------------------------------------------------------------------------------------

    def _useful(self) -> Iterator[tuple[str, _Peer]]:
        return ((name, peer) for name, peer in self._peers.items() if not peer.out)

    def _late(self, now: float) -> list[Effect]:
        """Give up what does not come at all, and whatever is asked of those who are left out."""
        effects: list[Effect] = []
        for name, peer in self._peers.items():
            for chunk, since in list(peer.flights.items()):
                if peer.out or since + self.config.give_up_s <= now:
                    effects.append(Drop(name, chunk))
                    self._failed(name, chunk, f"it brought no chunk within {self.config.give_up_s:g} s", 0.0, now)
        return effects

    def _asks(self, now: float) -> list[Effect]:
        due = [(name, peer) for name, peer in self._useful() if not peer.asked and peer.ask_at <= now]
        room = self.config.asked_at_once - sum(peer.asked for peer in self._peers.values())
        effects: list[Effect] = []
        for name, peer in self._rng.sample(due, max(0, min(room, len(due)))):
            peer.asked = True
            effects.append(Ask(name, self.chunks is None))
        return effects

    def _gets(self, now: float) -> list[Effect]:
        if not self._begun:
            return []
        effects: list[Effect] = []
        room = 2 * self.config.at_once - sum(len(peer.flights) for peer in self._peers.values())
        busy = sum(since + self.config.late_s > now for peer in self._peers.values() for since in peer.flights.values())
        holders = self._holders() if busy < self.config.at_once else Counter()
        idle = True
        while idle and busy < self.config.at_once:
            idle = False
            free = [(len(peer.flights), self._rng.random(), name) for name, peer in self._useful()
                    if len(peer.flights) < self.config.per_peer and peer.paused_until <= now]  # fmt: skip
            for _, _, name in sorted(free):
                peer = self._peers[name]
                chunk = self._pick(peer, holders, now)
                if chunk is None or busy >= self.config.at_once or len(effects) >= room:
                    continue
                self._waiting.discard(chunk)
                peer.flights[chunk] = now
                effects.append(Get(name, chunk))
                busy, idle = busy + 1, True
        return effects

    def _holders(self) -> Counter[int]:
        """How many have each chunk, beside those who have all."""
        return Counter(chunk for _, peer in self._useful() for chunk in peer.have or ())

    def _pick(self, peer: _Peer, holders: Counter[int], now: float) -> int | None:
        """The rarest that waits; when none does, one that another peer is late with."""
        at_hand: Iterable[int] = self._waiting if peer.have is None else self._waiting & peer.have
        chunk = min(at_hand, key=lambda chunk: (holders[chunk], self._rank[chunk]), default=None)
        return chunk if chunk is not None else self._pick_late(peer, now)

    def _pick_late(self, peer: _Peer, now: float) -> int | None:
        asked = Counter(chunk for other in self._peers.values() for chunk in other.flights)
        late = (
            (since, chunk)
            for other in self._peers.values()
            for chunk, since in other.flights.items()
            if asked[chunk] == 1 and since + self.config.late_s <= now and peer.has(chunk)
        )
        oldest = min((found for found in late if found[1] not in peer.flights), default=None)
        return None if oldest is None else oldest[1]

    def _end(self, now: float) -> list[Effect]:
        if self._begun and self.chunks is not None and len(self.have) == self.chunks.number:
            self._over = True
            return [Done()]
        patience_s = self.config.patience_s * (1 if self._is_stuck() else _PATIENCE_WITH_HOPE)
        hope = self._has_partial_holders() or not self._is_stuck()
        if hope and (now < self._progress_at + patience_s or self._is_under_way()):
            return []
        self._over = True
        return [GaveUp(self._why())]

    def _is_under_way(self) -> bool:
        """Whether a chunk is, or the file is being opened."""
        return self._beginning > self._begun or any(peer.flights for peer in self._peers.values())

    def _is_stuck(self) -> bool:
        """Whether nothing is under way and nobody offers what is missing."""
        if self.chunks is not None and not self._begun:
            return False  # the file is being opened
        for _, peer in self._useful():
            offers = peer.have is None or not self._waiting.isdisjoint(peer.have)
            if not peer.known or peer.flights or (self._begun and offers):
                return False
        return True

    def _has_partial_holders(self) -> bool:
        return any(peer.have for _, peer in self._useful())

    def _why(self) -> str:
        of = (
            ""
            if self.chunks is None or not self.have
            else f"{self.chunks.number - len(self.have)} of {self.chunks.number} chunks of "
        )
        why = "".join(f"; {name[-6:]} is left out: {reason}" for name, reason in sorted(self.left_out.items())[:4])
        return f"nobody who is here has {of}the blob {self.ref.digest[:8]}…{why}"

    def _next(self, now: float) -> float:
        if self._over:
            return math.inf
        times = [self._progress_at + times * self.config.patience_s for times in (1, _PATIENCE_WITH_HOPE)]
        room = sum(peer.asked for peer in self._peers.values()) < self.config.asked_at_once
        for _, peer in self._useful():
            if not peer.asked and room:
                times.append(peer.ask_at)
            times.append(peer.paused_until)
            times += [since + self.config.late_s for since in peer.flights.values()]
            times += [since + self.config.give_up_s for since in peer.flights.values()]
        return min((time for time in times if time > now), default=math.inf)


def bitmap(have: Collection[int], number: int) -> bytes:
    """Which of ``number`` chunks are there, a bit each, the first chunk the lowest bit of the first byte."""
    bits = 0
    for chunk in have:
        bits |= 1 << chunk
    return bits.to_bytes(-(-number // 8), "little")


def read_bitmap(data: bytes, number: int) -> frozenset[int]:
    """Read a stranger's bitmap. Raises PeerError when it has another length or chunks that there are not."""
    bits = int.from_bytes(data, "little")
    if len(data) != -(-number // 8) or bits >> number:
        raise PeerError(f"a bitmap of {len(data)} bytes is not one of {number} chunks")
    return frozenset(chunk for chunk in range(number) if bits >> chunk & 1)
