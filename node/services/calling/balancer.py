"""Which replica takes a call of one service: a pure machine of one caller. Time, records and outcomes in, a choice out.

A replica is what one device runs of one release; which of its instances takes the call its host decides. Of a handful
the one of the least expected time is taken (`estimate.py`), of more the best of a handful drawn at random. Two are
enough where all callers read the same old news, and would otherwise run to the same replica (Mitzenmacher 2001); here
each knows its own calls exactly and others' from its own answers, and in simulation more were better (`HANDFUL`).

Invariants, tested with any history:

- Nothing is chosen that is not in the picture, is to be avoided, rests, or has its breaker open.
- While what is ready stays the same, each release gets its share of calls, never two off at any moment.
- A replica that nobody has measured gets one call, then one more with each answer: a new one is not run down.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal, NamedTuple

from ....mesh.identity import PeerId
from ..messages import Load
from ..spec import MethodBrief
from .breaker import OPEN_S, Breaker
from .estimate import Estimate
from .hedging import Hedging
from .sticky import favourite, ranked

# Replicas that are compared. Simulated p99 of 32 uneven ones at 80 % load, 16 callers, in ms: 202 with two at random,
# 140 with four, 152 with eight, 108 with all; 64 callers: 370, 210, 141, 128.
HANDFUL: Final = 8
RAMP: Final = 16  # answers, after which a new replica is one like all
REST_S: Final = 0.5  # for a replica that did not take a call: the time in which its record comes round
SERVICE_S: Final = 0.01  # a call's work as long as nobody has told any: decides only whether queues are looked at

# "outrun": a second replica was quicker, and the first was given up.
Outcome = Literal["answered", "outrun", "turned_away", "busy", "failed", "given_up"]


class Replica(NamedTuple):
    """What one device has ready of one release."""

    peer: PeerId
    version: str
    instances: tuple[str, ...]

    @property
    def key(self) -> tuple[PeerId, str]:
        return self.peer, self.version


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One call that is under way to one replica."""

    replica: Replica
    method: str
    at: float
    before: float  # calls that were in front of it
    slots: int


@dataclass(slots=True)
class _Known:
    """What this caller knows of one replica."""

    estimate: Estimate = field(default_factory=Estimate)
    breaker: Breaker = field(default_factory=Breaker)
    rests_until: float = 0.0
    is_busy: bool = False  # why it rests: it has the session's instance all the same


class Balancer:
    """The replicas of one service, as one caller knows them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._replicas: dict[tuple[PeerId, str], Replica] = {}
        self._shares: Mapping[str, float] = {}
        self._known: dict[tuple[PeerId, str], _Known] = {}
        self._credit: dict[str, float] = {}
        self._hedging: dict[str, Hedging] = {}
        self._answers = 0

    def see(self, replicas: Iterable[Replica], shares: Mapping[str, float]) -> None:
        """Take the picture: what is ready, and each version's share of the calls."""
        self._replicas = {replica.key: replica for replica in replicas if replica.instances}
        self._shares = dict(shares)
        gone = [key for key, known in self._known.items() if key not in self._replicas and not known.estimate.own]
        for key in gone:
            del self._known[key]
        self._credit = {version: self._credit.get(version, 0.0) for version in self._shares}
        for key, replica in self._replicas.items():
            told = self._knows(key).estimate.told
            for instance in set(told) - set(replica.instances):
                del told[instance]

    @property
    def replicas(self) -> Sequence[Replica]:
        return list(self._replicas.values())

    # -- choosing -----------------------------------------------------------------------------------------------------

    def choose(
        self,
        method: MethodBrief,
        now: float,
        *,
        version: str = "",
        session: str = "",
        avoid: Collection[Replica] = (),
        again: bool = False,
    ) -> Replica | None:
        """Return who takes a call now; None when nobody can: look again ``at``, or when the picture has changed.

        With ``again`` it is a call that was counted in its release's share before. A session whose replica is busy
        waits for it; when it is gone or fails, the session moves to its next.
        """
        avoided = {replica.key for replica in avoid}
        able = [
            replica
            for key, replica in self._replicas.items()
            if key not in avoided and version in {"", replica.version} and self._may(key, now, waits=bool(session))
        ]
        if not able:
            return None
        if session:
            home = self._sticky(session, able)
            return home if self._may(home.key, now) else None
        of_release = self._released(able, counts=not again)
        return self._least(of_release, method, now)

    def at(self, now: float, *, avoid: Collection[Replica] = ()) -> float:
        """Return when somebody who cannot now may be able, by time alone."""
        avoided = {replica.key for replica in avoid}
        times = [self._until(key) for key in self._replicas if key not in avoided]
        return min((at for at in times if at > now), default=float("inf"))

    def _may(self, key: tuple[PeerId, str], now: float, *, waits: bool = False) -> bool:
        """Whether a call may go there now; one that ``waits`` also when it is only busy."""
        known = self._known.get(key)
        if known is None:
            return True
        return (now >= known.rests_until or (waits and known.is_busy)) and known.breaker.allows(now)

    def _until(self, key: tuple[PeerId, str]) -> float:
        known = self._knows(key)
        return max(known.rests_until, known.breaker.open_until if known.breaker.is_open else 0.0)

    def _sticky(self, session: str, able: Sequence[Replica]) -> Replica:
        versions = {replica.version for replica in able}
        shares = {version: self._shares.get(version, 0.0) for version in versions}
        version = favourite(session, shares if any(shares.values()) else dict.fromkeys(versions, 1.0))
        held = {name: replica for replica in able if replica.version == version for name in replica.instances}
        return held[ranked(session, held)[0]]

    def _released(self, able: Sequence[Replica], *, counts: bool) -> Sequence[Replica]:
        """Return those of the release whose turn it is: smooth weighted round robin. Second attempts do not count."""
        shares = {replica.version: self._shares.get(replica.version, 0.0) for replica in able}
        if not any(shares.values()):
            shares = dict.fromkeys(shares, 1.0)
        if len(shares) == 1:
            return able
        credit = {version: self._credit.get(version, 0.0) + share for version, share in shares.items()}
        turn = max(sorted(credit), key=credit.__getitem__)
        if counts:
            self._credit |= credit
            self._credit[turn] -= sum(shares.values())
        return [replica for replica in able if replica.version == turn]

    def _least(self, able: Sequence[Replica], method: MethodBrief, now: float) -> Replica:
        ready = [replica for replica in able if not self._ramps(replica)] or able
        drawn = self._rng.sample(ready, min(len(ready), HANDFUL))
        service_s = self._typical("service_s", SERVICE_S)
        overhead_s = self._typical("overhead_s", 0.0)

        def expected_s(replica: Replica) -> float:
            estimate, places = self._knows(replica.key).estimate, slots(replica, method)
            return estimate.expected_s(places, now, self._answers, service_s=service_s, overhead_s=overhead_s)

        return min(drawn, key=expected_s)  # of equals the first drawn

    def _ramps(self, replica: Replica) -> bool:
        """Whether a replica that is new has as many calls as it is trusted with."""
        estimate = self._knows(replica.key).estimate
        return estimate.answers < RAMP and estimate.own > estimate.answers

    def _typical(self, what: Literal["service_s", "overhead_s"], otherwise: float) -> float:
        known = (self._known[key].estimate for key in self._replicas if key in self._known)
        values = [one.service_s if what == "service_s" else one.overhead_s for one in known]
        return median([value for value in values if value is not None] or [otherwise])

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def begin(self, replica: Replica, method: MethodBrief, now: float, *, extra: bool = False) -> Attempt:
        """Note that a call goes to a replica; ``extra`` are attempts of a call behind its first."""
        known = self._knows(replica.key)
        before = known.estimate.before(now)
        known.estimate.own += 1
        known.breaker.begin()
        if not extra:
            self._hedges(method.name).called()
        return Attempt(replica, method.name, now, before, slots(replica, method))

    def end(
        self, attempt: Attempt, outcome: Outcome, now: float, *, load: Load | None = None, rest_s: float = REST_S
    ) -> None:
        """Note what became of it; ``rest_s`` is for how long one that did not take it is left alone."""
        known = self._knows(attempt.replica.key)
        known.estimate.own -= 1
        if load is not None and load.instance in attempt.replica.instances:
            known.estimate.hears(load, len(attempt.replica.instances), now)
        match outcome:
            case "answered":
                self._answers += 1
                known.estimate.took(now - attempt.at, attempt.before, attempt.slots, self._answers)
                known.breaker.succeeded()
                self._hedges(attempt.method).took(now - attempt.at)
            case "outrun":
                self._answers += 1
                known.estimate.took(now - attempt.at, attempt.before, attempt.slots, self._answers)
                known.breaker.let_go()
            case "turned_away" | "busy":
                known.breaker.let_go()
                known.rests_until, known.is_busy = now + rest_s, outcome == "busy"
            case "failed":
                known.breaker.failed(now)
            case "given_up":
                known.breaker.let_go()
        if attempt.replica.key not in self._replicas and not known.estimate.own:
            del self._known[attempt.replica.key]

    def suspect(self, replica: Replica, now: float) -> None:
        """Note that a call was lost on its way to a replica, and is sent to it again: let others look elsewhere."""
        known = self._known.get(replica.key)
        if known is not None:
            known.rests_until, known.is_busy = max(known.rests_until, now + OPEN_S), False

    # -- hedging ------------------------------------------------------------------------------------------------------

    def hedge_after_s(self, method: MethodBrief) -> float | None:
        """Return when a second replica is to be asked as well, from the first attempt on; None: not at all."""
        if not method.idempotent or method.kind != "unary" or len(self._replicas) < 2:
            return None
        return self._hedges(method.name).delay_s

    def may_hedge(self, method: MethodBrief) -> bool:
        """Whether a second question may be asked now; it is then counted."""
        return self._hedges(method.name).spend()

    def _hedges(self, method: str) -> Hedging:
        return self._hedging.setdefault(method, Hedging())

    def _knows(self, key: tuple[PeerId, str]) -> _Known:
        return self._known.setdefault(key, _Known())


def slots(replica: Replica, method: MethodBrief) -> int:
    """Return how many calls a replica works on at once."""
    return len(replica.instances) * method.concurrency * method.batch_size_max
