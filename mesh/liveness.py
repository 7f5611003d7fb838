"""Who lives: SWIM (Das, Gupta, Motivala 2002) with Lifeguard's local health (Dadgar, Phillips, Currey 2018).

Once a period a node probes one of its *neighbours*, the members that it is connected with, in an order that is drawn
anew each time round. In a large mesh, where a node has few neighbours, it probes whoever has been silent for about as
long as a round takes: a neighbour's own probe shows as well that it lives (MSPastry spares such probes too: Castro,
Costa, Rowstron 2004), so half as many serve both ends. Who does not answer is asked for by way of three others; if they
find nothing either, it is suspected, told so, and dead when its time to speak up is over. Of members that are not
neighbours a node knows from rumours, and what it missed of them before it came from a lesson (``lesson.py``). Probes go
over the connections that exist: nothing here dials.

Invariants: a neighbour is held for dead only if this node itself got nothing from it since the suspicion began; a
member's incarnation comes from its own signed statements alone, and only grows; a statement outdoes every doubt about
an earlier incarnation; memory is bounded by ``limits``, whatever others say.

What a member can do that lies: cause doubts, each of which costs its victim one statement, and hold up the news of
others' lives that go by way of it alone. It cannot state for another, nor make others drop one who answers.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from . import limits
from .identity import PeerId
from .lesson import Lesson
from .lifeguard import LocalHealth, Suspicion
from .lives import Lives
from .membership import Connected, DialFailed, Disconnected, Expelled, Expired, Parting
from .rumours import Ack, Doubt, Probe, ProbeFor, Statement, Tell, Words

Message = Probe | ProbeFor | Ack | Tell
# Incarnations that each start of a node has to itself: one a second for 12 days, and 2^33 starts fit into a Natural.
STATEMENTS_PER_START = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How soon and how surely a death is noticed. The defaults are for a LAN."""

    period_s: float = 1.0  # between two probes (memberlist's ProbeInterval on a LAN)
    timeout_s: float = 0.5  # for a direct answer (memberlist's ProbeTimeout); Wi-Fi that saves power takes 0.3 s
    retry_s: float = 0.2  # then the probe is repeated, while others try: TCP repeats after as long (Linux's RTO_MIN)
    relays: int = 3  # asked to try in our place (SWIM's k, memberlist's IndirectChecks)
    # The least time to speak up: as long as an edge processor is away that a step of training keeps busy (a guess), and
    # for each power of ten of members what news takes to go round and back. memberlist takes 4 s for each power of ten.
    suspicion_s: float = 3.0
    round_s: float = 1.5
    suspicion_most: float = 6.0  # times the least, while nobody else doubts (memberlist's SuspicionMaxTimeoutMult)
    confirmations: int = 2  # bring that down to the least (memberlist: SuspicionMult - 2)
    retransmissions: float = 4.0  # of a rumour by each node, per power of ten of members (memberlist: RetransmitMult)
    news_s: float = 0.2  # between two messages that only pass on news (memberlist's GossipInterval on a LAN)
    news_to: int = 3  # neighbours at a time (memberlist's GossipNodes)
    rumours: int = 6  # in one message: with 130 B each it fits into one Ethernet frame
    spare: int = 1  # statements of members whom one is not connected with, to fill a message up
    stall_s: float = 0.5  # a deadline noticed so much too late: answers may have lain unread, it was this node


class Heard(msgspec.Struct, frozen=True):
    """A message came over the connection to this neighbour."""

    peer: PeerId
    message: Message


class Seen(msgspec.Struct, frozen=True):
    """Something else came from this neighbour just now."""

    peer: PeerId


class Send(msgspec.Struct, frozen=True):
    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Suspected:
    """A member is silent, here or by what others say."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Died:
    """A member did not speak up in time."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Living:
    """A member lives that was suspected or dead, or of whom nothing was known."""

    peer: PeerId


Event = Heard | Seen | Connected | Disconnected | Parting | Expelled | DialFailed | Expired
Effect = Send | Suspected | Died | Living


class _Due(Protocol):
    @property
    def deadline(self) -> float: ...


@dataclass(slots=True)
class _Attempt:
    """A probe of one's own that is under way."""

    target: PeerId
    deadline: float  # when to try again
    end: float
    asked: bool = False  # others, to try as well
    relays: Sequence[PeerId] = ()
    silent: AbstractSet[PeerId] = frozenset()  # relays that have not answered at all


@dataclass(slots=True)
class _Errand:
    """A probe that is made for another."""

    asker: PeerId
    number: int
    target: PeerId
    deadline: float


class Liveness:
    """One node's view of who lives."""

    def __init__(
        self,
        me: PeerId,
        rng: random.Random,
        words: Words,
        *,
        knows: Callable[[PeerId], bool],
        incarnation: int = 0,
        config: Config | None = None,
    ) -> None:
        """``knows`` says who is a member; ``incarnation`` is higher than at any earlier start of this one."""
        self.config = config or Config()
        self.health = LocalHealth()
        self.neighbours: set[PeerId] = set()
        self.deadline = 0.0
        self._rng = rng
        self._lives = Lives(me, rng, words, knows, incarnation)
        self._lesson = Lesson()
        self._silent_at: dict[PeerId, float] = {}  # when a neighbour has been silent for so long that it is probed
        self._parting: set[PeerId] = set()  # neighbours that are about to close their connections and live on
        self._round: list[PeerId] = []  # whom to probe next, from the end
        self._probe_at = 0.0
        self._news_at = math.inf
        self._begun = False
        self._numbers = itertools.count(1)
        self._attempts: dict[int, _Attempt] = {}
        self._errands: dict[int, _Errand] = {}
        self._effects: list[Effect] = []

    @property
    def alive(self) -> frozenset[PeerId]:
        """The other members that are not held for dead, whether neighbours or not; suspected ones are alive."""
        return self._lives.alive

    @property
    def suspects(self) -> frozenset[PeerId]:
        return frozenset(self._lives.suspects)

    @property
    def incarnation(self) -> int:
        """That of this node itself."""
        return self._lives.own.incarnation

    @property
    def word(self) -> Statement:
        """What this node states of itself."""
        return self._lives.own

    def recall(self, statements: Iterable[Statement]) -> None:
        """Know what members stated before this node began. It is no news to anybody.

        Raises PeerError when a statement is not that of the member whom it names.
        """
        for statement in statements:
            self._lives.recall(statement)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; ``now`` is monotonic seconds. Sets ``deadline``, when ``Expired`` is due.

        Raises PeerError when a message holds a statement that is not that of the member whom it names.
        """
        self._effects = []
        if not self._begun or now - self.deadline > self.config.stall_s:
            self._excuse(now)
        try:
            self._take(event, now)
        finally:
            self._set_deadline(now)
        return self._effects

    def _set_deadline(self, now: float) -> None:
        """Find what is due next. Mostly nothing is under way but one's own next probe."""
        if self._news_at == math.inf and self._lives.news:
            self._news_at = now + self.config.news_s
        self.deadline = min(self._probe_at, self._news_at, self._lesson.deadline)
        waiting: Mapping[Any, _Due]
        for waiting in (self._attempts, self._errands, self._lives.suspects):
            for each in waiting.values():
                self.deadline = min(self.deadline, each.deadline)

    def _take(self, event: Event, now: float) -> None:
        match event:  # what is most frequent comes first
            case Heard(peer, message):
                if peer in self.neighbours:
                    self._hear(peer, message, now)
            case Expired():
                self._pass_time(now)
            case Seen(peer):
                if peer in self.neighbours:
                    self._see(peer)
            case _:
                self._take_connection(event, now)

    def _take_connection(self, event: Connected | Disconnected | Parting | Expelled | DialFailed, now: float) -> None:
        match event:
            case Connected(peer):
                self._connected(peer, now)
            case Disconnected(peer):
                self._disconnected(peer, now)
            case Parting(peer) if peer in self.neighbours:
                self._parting.add(peer)
            case DialFailed(peer, refused=False):
                self._undialled(peer, now)
            case Expelled(peers):
                for peer in peers:
                    self._lives.forget(peer)

    def _excuse(self, now: float) -> None:
        """Notice that this node itself was away: asleep, stopped, or busy. What it did not hear then proves nothing."""
        late_s = now - self.deadline
        if not self._begun:
            self._begun, self._probe_at = True, now
        elif late_s > self.config.stall_s:
            self.health.note(math.ceil(late_s / self.config.period_s))
            self._attempts.clear()
            self._errands.clear()  # whoever asked has given up
            self._probe_at = now
            for suspicion in self._lives.suspects.values():
                suspicion.excuse(late_s)

    # -- connections --------------------------------------------------------------------------------------------------

    def _connected(self, peer: PeerId, now: float) -> None:
        """Begin with a probe: if it was doubted it learns so, and states at once that it lives."""
        if peer not in self.neighbours:
            self.neighbours.add(peer)
            self._round.insert(self._rng.randint(0, len(self._round)), peer)
        self._silent_at.setdefault(peer, now + self._round_s * self._rng.random())
        self._parting.discard(peer)
        self._lives.meet(peer)
        self._see(peer)
        self._lives.doubt_anew()
        self._probe(peer, now)

    def _undialled(self, peer: PeerId, now: float) -> None:
        """Ask others about one whom a dial did not find: all that were connected with it may have died with it."""
        life = self._lives.get(peer)
        if (suspicion := self._lives.suspects.get(peer)) is not None:
            suspicion.confirm(self._lives.me)
        elif life is not None and not life.dead and peer not in self.neighbours and not self._attempts_at(peer):
            self._ask_others(next(self._numbers), self._attempt(peer, now), now)

    def _disconnected(self, peer: PeerId, now: float) -> None:
        """Ask others at once: a connection that closes is no death, but most deaths close one.

        Not of who said before that it would: in a large mesh most are not connected with it and find nothing, so that
        every connection given up would make the mesh doubt one who lives.
        """
        if peer not in self.neighbours:
            return
        self.neighbours.discard(peer)
        self._silent_at.pop(peer, None)
        if peer == self._lesson.teacher:
            self._lesson.end(now)
        if peer in self._round:
            self._round.remove(peer)
        for number in self._attempts_at(peer):
            del self._attempts[number]
        life, parted = self._lives.get(peer), peer in self._parting
        self._parting.discard(peer)
        if life is not None and not life.dead and not parted:
            self._ask_others(next(self._numbers), self._attempt(peer, now), now)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _hear(self, peer: PeerId, message: Message, now: float) -> None:
        if self._lives.hear_word(peer, message.incarnation, message.signature):
            self._effects.append(Living(peer))
        self._see(peer)
        self._silent_at[peer] = now + self._draw_silence_s()
        for statement in message.statements:
            if statement.peer == self._lives.me:
                self._lives.hear_oneself(statement)
            elif self._lives.hear_statement(statement):
                self._effects.append(Living(statement.peer))
        for doubt in message.doubts:
            self._hear_doubt(doubt, now)
        self._reply(peer, message, now)
        self._learn(peer, message.known, now)

    def _reply(self, peer: PeerId, message: Message, now: float) -> None:
        match message:
            case Probe(number=number, after=None):
                self._answer(peer, number, reached=True)
            case Probe(number=number, after=str(after)):
                self._send(peer, Ack(number=number, **self._lives.page_after(after)))
            case ProbeFor(number=number, target=target):
                self._run_errand(peer, number, target, now)
            case Ack():
                self._acked(peer, message)
                if self._lesson.answered(peer, message, now):
                    self._ask_on(now)

    def _learn(self, peer: PeerId, known: int, now: float) -> None:
        """Ask one that knows of clearly more members who they are."""
        alone = len(self.neighbours) == 1
        if self._lesson.wants(peer, theirs=known, mine=self._lives.count, alone=alone, now=now):
            self._lesson.begin(peer)
            self._ask_on(now)

    def _ask_on(self, now: float) -> None:
        """Ask for the next page. Nothing is concluded from silence: for that there are probes."""
        if (teacher := self._lesson.teacher) is not None:
            number = next(self._numbers)
            self._lesson.asked(number, now)
            self._send(teacher, Probe(number=number, after=self._lesson.after, **self._word(teacher)))

    def _hear_doubt(self, doubt: Doubt, now: float) -> None:
        if doubt.peer == self._lives.me:
            if self._lives.answer_doubt(doubt):
                self.health.note(1)
        elif self._lives.may_be(doubt) and self._suspect(doubt.peer, doubt.by, now):
            self._probe(doubt.peer, now)

    def _see(self, peer: PeerId) -> None:
        """A neighbour spoke: whatever others say, it lives."""
        if self._attempts:
            for number in self._attempts_at(peer):
                self._reached(number)
        if self._lives.clear(peer):
            self._effects.append(Living(peer))

    def _attempts_at(self, peer: PeerId) -> list[int]:
        return [number for number, attempt in self._attempts.items() if attempt.target == peer]

    # -- probing ------------------------------------------------------------------------------------------------------

    def _pass_time(self, now: float) -> None:
        if self._errands or self._attempts or self._lives.suspects:
            self._end_waits(now)
        if now >= self._lesson.deadline and self._lesson.lost(now):
            self._ask_on(now)
        if now >= self._probe_at:
            self._probe_at = now + self.config.period_s * self.health.slowness
            if self._large:
                self._probe_silent(now)
            else:
                self._probe_next(now)
        if now >= self._news_at:
            self._news_at = math.inf
            for peer in self._rng.sample(sorted(self.neighbours), min(self.config.news_to, len(self.neighbours))):
                self._send(peer, Tell(**self._word(peer)))

    def _end_waits(self, now: float) -> None:
        for mine in [number for number, errand in self._errands.items() if now >= errand.deadline]:
            errand = self._errands.pop(mine)
            self._answer(errand.asker, errand.number, reached=False)
        for number, attempt in [(n, a) for n, a in self._attempts.items() if now >= a.deadline]:
            self._try_on(number, attempt, now)
        for peer, suspicion in [(p, s) for p, s in self._lives.suspects.items() if now >= s.deadline]:
            self._judge(peer, suspicion, now)

    @property
    def _large(self) -> bool:
        """Whether there are members that are not neighbours."""
        return self._lives.count - 1 > len(self.neighbours)

    @property
    def _round_s(self) -> float:
        return self.config.period_s * max(len(self.neighbours), 1)

    def _draw_silence_s(self) -> float:
        """Return how long a neighbour may be silent: not as long as at its end, where who draws less spares the other
        its probe, and each another time, else all links of one node would fall silent and be probed together.
        """
        return self._round_s * (0.5 + self._rng.random())

    def _probe_silent(self, now: float) -> None:
        """Probe who has been silent for about a round; until somebody has, there is nothing to do."""
        if self._silent_at:
            peer = min(self._silent_at, key=self._silent_at.__getitem__)
            if now >= self._silent_at[peer]:
                self._silent_at[peer] = now + self._draw_silence_s()  # another's turn, should this one stay silent
                self._probe(peer, now)
            else:
                self._probe_at = max(self._probe_at, self._silent_at[peer])

    def _probe_next(self, now: float) -> None:
        if not self._round:
            self._round = sorted(self.neighbours)
            self._rng.shuffle(self._round)
        if self._round:
            self._probe(self._round.pop(), now)

    def _attempt(self, peer: PeerId, now: float) -> _Attempt:
        slowness = self.health.slowness
        return _Attempt(peer, now + self.config.timeout_s * slowness, now + self.config.period_s * slowness)

    def _probe(self, peer: PeerId, now: float) -> None:
        """Begin to probe a neighbour, unless that is under way."""
        if peer in self.neighbours and not self._attempts_at(peer):
            number = next(self._numbers)
            self._attempts[number] = self._attempt(peer, now)
            self._send_probe(peer, number)

    def _try_on(self, number: int, attempt: _Attempt, now: float) -> None:
        if now >= attempt.end:
            self._unreached(number, now)
        elif not attempt.asked:
            self._ask_others(number, attempt, now)
        else:
            self._repeat(number, attempt, now)

    def _repeat(self, number: int, attempt: _Attempt, now: float) -> None:
        attempt.deadline = min(now + self.config.retry_s, attempt.end)
        if attempt.target in self.neighbours:
            self._send_probe(attempt.target, number)

    def _ask_others(self, number: int, attempt: _Attempt, now: float) -> None:
        """The direct way failed: let others try."""
        others = sorted(self.neighbours - {attempt.target} - self._lives.suspects.keys())
        attempt.relays = self._rng.sample(others, min(self.config.relays, len(others)))
        attempt.silent = set(attempt.relays)
        attempt.asked = True
        self._attempts[number] = attempt
        self._repeat(number, attempt, now)
        for relay in attempt.relays:
            self._send(relay, ProbeFor(number=number, target=attempt.target, **self._word(relay)))
        if not attempt.relays and attempt.target not in self.neighbours:
            self._unreached(number, now)

    def _unreached(self, number: int, now: float) -> None:
        """Nobody reached it: suspect it, and oneself a little for every relay that was silent too."""
        attempt = self._attempts.pop(number)
        life = self._lives.get(attempt.target)
        if life is None or life.dead or (life.suspicion is not None and life.suspicion.unheard):
            return  # its silence is nothing new
        self._suspect(attempt.target, (self._lives.me,), now)
        self._lives.suspects[attempt.target].unheard = True
        self.health.note(len(attempt.silent) if attempt.relays else 1)

    def _reached(self, number: int) -> None:
        target = self._attempts.pop(number).target
        self.health.note(-1)
        if target not in self.neighbours:  # its connection closed, and it lives
            self._effects.append(Living(target))

    def _acked(self, peer: PeerId, ack: Ack) -> None:
        errand, attempt = self._errands.get(ack.number), self._attempts.get(ack.number)
        if errand is not None and errand.target == peer:
            del self._errands[ack.number]
            self._answer(errand.asker, errand.number, reached=True)
        elif attempt is not None and peer in attempt.relays:
            attempt.silent -= {peer}
            if ack.reached:
                self._reached(ack.number)

    def _run_errand(self, asker: PeerId, number: int, target: PeerId, now: float) -> None:
        """Probe for another. A second one for the same asker and number is answered twice, as it was asked."""
        if target not in self.neighbours or len(self._errands) >= limits.ERRANDS_MAX:
            self._answer(asker, number, reached=False)
            return
        mine = next(self._numbers)
        # The answer has to be back before the asker's own time is over (memberlist: 80 % of its timeout).
        self._errands[mine] = _Errand(asker, number, target, now + 0.8 * self.config.timeout_s)
        self._send_probe(target, mine)

    # -- suspicion ----------------------------------------------------------------------------------------------------

    def _suspect(self, peer: PeerId, by: tuple[PeerId, ...], now: float) -> bool:
        """Doubt a living member; whether that is new."""
        begins = self._lives.suspect(peer, by, self._suspicion(now, mine=by == (self._lives.me,)))
        if begins:
            self._effects.append(Suspected(peer))
        return begins

    def _suspicion(self, now: float, *, mine: bool) -> Suspicion:
        config = self.config
        least_s = config.suspicion_s + config.round_s * self._lives.scale
        if mine:
            least_s *= self.health.slowness  # who is slow itself gives others more time
        confirmations = max(min(config.confirmations, self._lives.count - 2), 0)
        return Suspicion(now, least_s, config.suspicion_most * least_s, confirmations)

    def _judge(self, peer: PeerId, suspicion: Suspicion, now: float) -> None:
        """Its time is over. Of a neighbour this node wants to know for itself."""
        if peer in self.neighbours and not suspicion.unheard:
            self._probe(peer, now)
            suspicion.not_before = max(self._attempts[number].end for number in self._attempts_at(peer))
        else:
            self._lives.bury(peer)
            self._effects.append(Died(peer))

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, peer: PeerId, message: Message) -> None:
        self._effects.append(Send(peer, message))

    def _send_probe(self, peer: PeerId, number: int) -> None:
        self._send(peer, Probe(number=number, **self._word(peer)))

    def _answer(self, peer: PeerId, number: int, *, reached: bool) -> None:
        if peer in self.neighbours:
            self._send(peer, Ack(number=number, reached=reached, **self._word(peer)))

    def _word(self, peer: PeerId) -> dict[str, Any]:
        config, lives = self.config, self._lives
        spare = config.spare if self._large else 0
        times_max = math.ceil(config.retransmissions * lives.scale) if lives.news else 0
        return lives.word_for(peer, rumours=config.rumours, times_max=times_max, spare=spare)
