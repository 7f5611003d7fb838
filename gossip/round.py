"""One exchange within one group: a reduce-scatter, an all-gather, and an end by the deadline whatever happens.

Member j owns part j of the vector. Phase 1: everyone sends every owner its own values of that part; an owner averages
what has arrived by its deadline. Phase 2: the owners send their means; everyone puts the vector together, and keeps
its own values of a part whose mean did not come. (Patarasuk and Yuan 2009, with star instead of ring, since the loss
of a member must cost no more than that member.)

Invariants:
- whoever adopts the mean of a part holds the same bytes as all others who do, the owner included, and it is the exact
  mean, to the codec's error, of the contributors named in the report;
- the vector handed in is never written to, and the one handed out is whole;
- a round finishes at `finish_s_max` after its start at the latest, provided that someone calls `handle` then.
"""

import math
from enum import Enum, auto
from typing import cast

import numpy as np

from .codecs import Floats, codec
from .config import Config
from .errors import BadContribution
from .events import Absence, Expired, Finished, PeerDown, Received, Refusal, Report, Send
from .gate import Gate, check_vector, check_weight, norm, norm_scale
from .messages import Contribution, Mean, Message, payload_size_bytes
from .mixing import clip_weights, weighted_mean
from .terms import Terms

Event = Received | PeerDown | Expired
Effect = Send | Finished


class Phase(Enum):
    """What a round waits for; each phase follows the one above it."""

    NEW = auto()
    CONTRIBUTIONS = auto()
    MEANS = auto()
    FINISHED = auto()


class Round:
    """One member's side of one exchange: `start` once, `handle` each event (early ones too) and each `deadline`."""

    def __init__(
        self,
        me: str,
        terms: Terms,
        vector: Floats,
        weight: float,
        *,
        gate: Gate,
        rng: np.random.Generator,
        config: Config,
        contribution_wait_s: float,
        mean_wait_s: float,
    ) -> None:
        """Prepare to exchange `vector`, float32 (D,), which must not change until the round has finished.

        Raises:
            BadSetup: this node is not one of the members.
            BadContribution: its own vector or weight is one that nobody would accept; the message names this node.
        """
        check_vector(me, vector, terms.dimension)
        check_weight(me, weight, config.weight_max)
        self.terms, self.context, self.phase = terms, terms.context, Phase.NEW
        self.deadline = math.inf
        self.started_s = self.averaged_s = self._last_arrival_s = 0.0
        self._me, self._own, self._weight = me, vector, weight
        self._part, self._parts, self._codec = terms.part_of(me), terms.parts, codec(terms.codec)
        self._gate, self._rng, self._config = gate, rng, config
        self._contribution_wait_s, self._mean_wait_s = contribution_wait_s, mean_wait_s
        self._rms = norm(vector) / math.sqrt(max(vector.size, 1))
        self._result = vector.copy()
        self._contributors: list[tuple[tuple[str, float], ...]] = [()] * len(terms.members)
        self._arrived: dict[str, tuple[float, Floats]] = {}  # weight and values of my part, mine included
        self._answered: dict[str, set[str]] = {"contribution": set(), "mean": set()}  # also by what was refused
        self._down: set[str] = set()
        self._elsewhere: set[str] = set()  # members whose messages show that they see another group
        self._gone_on: set[str] = set()  # members whose messages show that they are in a later round
        self._refused: list[Refusal] = []
        self._ignored = self._bytes_sent = self._bytes_received = 0

    @property
    def finish_s_max(self) -> float:
        """How long after its start this round finishes at the latest."""
        return 2 * self._contribution_wait_s + self._mean_wait_s

    def start(self, now: float) -> list[Effect]:
        """Send each owner my values of its part."""
        self.phase, self.started_s, self._last_arrival_s = Phase.CONTRIBUTIONS, now, now
        self.deadline = now + self._contribution_wait_s
        self._accept_contribution(self._me, self._weight, self._own[self._parts[self._part]])
        return [self._send(owner, self._contribution_to(owner)) for owner in self._others()] + self._advance(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; every call also does what has become due, so a flood of messages delays nothing."""
        if self.phase is Phase.FINISHED:
            return []
        match event:
            case Received(peer, message):
                self._receive(peer, message, now)
            case PeerDown(peer):
                self._down.add(peer)
            case _:
                pass  # Expired: what has become due is done below, as after every event
        return self._advance(now)

    def wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Do without what `peer` has not sent: it is in a later round, so that was lost, or is about to come."""
        if self.phase is Phase.FINISHED:
            return []
        self._gone_on.add(peer)
        return self._advance(now)

    def expects(self, peer: str, message: Message) -> bool:
        """Whether this is the first message of its kind for this round from another member with the same view."""
        known = message.context == self.context and peer in self.terms.members and peer != self._me
        return known and peer not in self._answered[_kind(message)]

    # Messages

    def _receive(self, peer: str, message: Message, now: float) -> None:
        self._bytes_received += payload_size_bytes(message)
        same_round = (message.task, message.round) == (self.terms.task, self.terms.round)
        if same_round and message.context != self.context:
            self._elsewhere.add(peer)
        late = isinstance(message, Contribution) and self.phase is Phase.MEANS
        if late or not self.expects(peer, message):
            self._ignored += 1
            return
        self._elsewhere.discard(peer)
        self._answered[_kind(message)].add(peer)  # the first one counts, even if it is refused: one a peer and round
        try:
            self._take(peer, message)
        except BadContribution as error:
            self._refused.append(Refusal(peer, _kind(message), str(error)))
        if isinstance(message, Contribution):
            self._last_arrival_s = now

    def _take(self, peer: str, message: Message) -> None:
        owner = self._me if isinstance(message, Contribution) else peer
        if message.part != self.terms.part_of(owner):
            raise BadContribution(f"it is for part {message.part}; {owner} owns {self.terms.part_of(owner)}", peer)
        try:
            values = self._codec.decode(message.payload, self._size(message.part))
        except BadContribution as error:
            raise error.of(peer) from None
        if isinstance(message, Contribution):
            self._accept_contribution(peer, message.weight, values)
        else:
            self._accept_mean(peer, message, values)

    def _accept_contribution(self, peer: str, weight: float, values: Floats) -> None:
        self._gate.admit(peer, values, self._size(self._part), weight, self._scale(self._part))
        self._arrived[peer] = weight, values

    def _accept_mean(self, peer: str, message: Mean, values: Floats) -> None:
        names = [name for name, _ in message.contributors]
        if peer not in names or names != sorted(set(names)) or not set(names) <= set(self.terms.members):
            raise BadContribution(f"its contributors are not members, sorted, each once, with itself: {names}", peer)
        for name, weight in message.contributors:
            check_weight(f"{peer} on {name}", weight, self._config.weight_max)
        self._gate.admit_mean(peer, values, self._size(message.part), self._scale(message.part))
        self._adopt(message.part, message.contributors, values)

    # Phases

    def _advance(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.phase is Phase.CONTRIBUTIONS and (self._settled("contribution") or now >= self.deadline):
            effects += self._average(now)
        if self.phase is Phase.MEANS and (self._settled("mean") or now >= self.deadline):
            effects.append(self._finish(now))
        return effects

    def _settled(self, kind: str) -> bool:
        """Whether there is nobody left to wait for."""
        return set(self._others()) <= self._answered[kind] | self._down | self._elsewhere | self._gone_on

    def _average(self, now: float) -> list[Effect]:
        """Average what has arrived, adopt it as everyone else will decode it, and send it."""
        self.phase, self.averaged_s = Phase.MEANS, now
        # An owner that started last waits as long for the missing as this one did: its mean is due a contribution's
        # wait after its contribution came.
        self.deadline = max(now, self._last_arrival_s + self._contribution_wait_s) + self._mean_wait_s
        if len(self.terms.members) == 1:
            self._adopt(self._part, ((self._me, self._weight),), self._own)  # no codec's error for nothing
            return []
        weights = clip_weights({p: w for p, (w, _) in self._arrived.items()}, self._config.weight_ratio_max)
        values = weighted_mean({p: v for p, (_, v) in self._arrived.items()}, weights)
        self._arrived.clear()
        contributors = tuple(sorted(weights.items()))
        payload = self._codec.encode(values, self._rng)
        self._adopt(self._part, contributors, self._codec.decode(payload, values.size))
        task, round_, part = self.terms.task, self.terms.round, self._part
        mean = Mean(
            task=task,
            round=round_,
            context=self.context,
            part=part,
            contributors=contributors,
            payload=cast("bytes", payload),
        )
        return [self._send(peer, mean) for peer in self._others() if peer not in self._down | self._elsewhere]

    def _finish(self, now: float) -> Finished:
        self.phase, self.deadline = Phase.FINISHED, math.inf
        self._gate.settle()
        vector = self._result
        self._own = self._result = np.empty(0, dtype=np.float32)  # a finished round holds no models
        return Finished(self.terms.round, vector, self._report(now))

    def _report(self, now: float) -> Report:
        everyone, parts = set(self.terms.members), tuple(self._contributors)
        return Report(
            task=self.terms.task,
            round=self.terms.round,
            members=self.terms.members,
            parts=parts,
            missing=self._absences("contribution") + self._absences("mean"),
            refused=tuple(self._refused),
            ignored=self._ignored,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            contributions_s=self.averaged_s - self.started_s,
            means_s=now - self.averaged_s,
            complete=all({name for name, _ in part} == everyone for part in parts),
        )

    def _absences(self, kind: str) -> tuple[Absence, ...]:
        refused = {refusal.peer for refusal in self._refused if refusal.what == kind}
        absent = [peer for peer in self.terms.members if peer in refused or not self._has(peer, kind)]
        return tuple(Absence(peer, kind, self._why(peer, refused)) for peer in absent)

    def _has(self, peer: str, kind: str) -> bool:
        return peer == self._me or peer in self._answered[kind]

    def _why(self, peer: str, refused: set[str]) -> str:
        if peer in refused:
            return "it was refused"
        if peer in self._down:
            return "the peer went down"
        if peer in self._elsewhere:
            return "the peer sees another group"
        if peer in self._gone_on:
            return "the peer is in a later round"
        return "it did not come by the deadline"

    # Small things

    def _others(self) -> tuple[str, ...]:
        """The other members, from the one after me on: so that not all send to the same one first."""
        return self.terms.members[self._part + 1 :] + self.terms.members[: self._part]

    def _size(self, part: int) -> int:
        size: int = self._parts[part].stop - self._parts[part].start
        return size

    def _scale(self, part: int) -> float:
        return norm_scale(self._own[self._parts[part]], self._rms)

    def _contribution_to(self, owner: str) -> Contribution:
        terms, part = self.terms, self.terms.part_of(owner)
        payload = self._codec.encode(self._own[self._parts[part]], self._rng)
        return Contribution(
            task=terms.task,
            round=terms.round,
            context=self.context,
            part=part,
            weight=self._weight,
            payload=cast("bytes", payload),
        )

    def _send(self, peer: str, message: Message) -> Send:
        self._bytes_sent += payload_size_bytes(message)
        return Send(peer, message)

    def _adopt(self, part: int, contributors: tuple[tuple[str, float], ...], values: Floats) -> None:
        self._result[self._parts[part]] = values
        self._contributors[part] = contributors


def _kind(message: Message) -> str:
    return "contribution" if isinstance(message, Contribution) else "mean"
