"""One private exchange: keys, masked values, receipts, signatures over who is in the sum, reveals, sums.

The protocol is that of Bonawitz et al. 2017 (Practical Secure Aggregation), turned into a reduce-scatter among equals
and without secret shares: nobody's mask is ever recovered by others, the round is skipped instead.

Invariants:
- a member reveals its own mask only for an attempt that it has signed, only after identical signatures of everyone in
  the sum, and it signs at most one set of survivors in a round. So two different sums of one round never both come out
  (any two quorums share an honest member): their difference would be somebody's values;
- it never reveals a seed that it shares with a member who is in the sum;
- after its signature there is no other attempt: whatever fails then, the round is skipped and the old values stay.

A program that starts again after a crash must not take part once more in a round that it had begun: it might sign
twice. Single weights stay secret too: a report gives every survivor the average one.

Covers members that follow the protocol and pool what they saw, up to t of them (`colluders_max`), and members that stop
anywhere. Does not cover members that lie about their values, nor what the sums of many rounds tell together.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..codecs import Floats
from ..errors import BadContribution, BadSetup
from ..events import Absence, Expired, Finished, PeerDown, Received, Refusal, Report, Run, Send
from ..gate import check_vector
from ..terms import Terms
from . import masking
from .attempt import KINDS, Attempt, Phase, Verify
from .messages import Agreed, Hello, Masked, Message, Receipts, Reveal, Sum
from .survivors import Receipt, survivors, survivors_min

ATTEMPTS_MAX = 2  # the second is for who died early in the first; a third would cost more than to skip the round

Event = Received | PeerDown | Expired
Effect = Send | Finished


class PrivateRound:
    """One member's side of one exchange: `start` once, `handle` each event and each `deadline`."""

    def __init__(
        self,
        me: str,
        terms: Terms,
        vector: Floats,
        weight: float,
        *,
        secret: Callable[[], bytes],
        sign: Callable[[bytes], bytes],
        verify: Verify,
        wait_s: float,
        reference: bytes = b"",
    ) -> None:
        """Prepare to exchange `vector`, float32 (D,), with a weight within (0, 1].

        ``secret`` gives 32 fresh random bytes at every call, ``wait_s`` is each phase's deadline, ``reference`` names
        the model from which the vector counts.

        Raises:
            BadSetup: the group is too small or too large for a private sum, or this node is not in it.
            BadContribution: a value or the weight is one that cannot travel.
        """
        if not survivors_min(len(terms.members)) <= len(terms.members) <= masking.MEMBERS_MAX:
            raise BadSetup(
                f"a private round takes 3 to {masking.MEMBERS_MAX} members; this group has {len(terms.members)}"
            )
        check_vector(me, vector, terms.dimension)
        self.terms, self.deadline = terms, math.inf
        self._me, self._reference = me, reference
        self._words = [masking.to_words(vector[part], weight) for part in terms.parts]
        self._part = terms.part_of(me)
        self._secret, self._sign, self._verify, self._wait_s = secret, sign, verify, wait_s
        self._attempt = self._new_attempt(0)
        self._gone: dict[str, str] = {}
        self._refused: list[Refusal] = []
        self._later: dict[tuple[str, Phase], Message] = {}
        self._vector = vector
        self._ignored = self._bytes_sent = self._bytes_received = 0
        self._started_s = self._agreed_s = 0.0
        self._signed = False
        self._why_skipped = ""

    def _new_attempt(self, number: int) -> Attempt:
        return Attempt(self._me, self.terms, number, self._secret(), reference=self._reference, verify=self._verify)

    @property
    def phase(self) -> Phase:
        return self._attempt.phase

    def start(self, now: float) -> list[Effect]:
        """Tell the others this node's key."""
        self._started_s = now
        return self._begin(now) + self._advance(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; every call also does what has become due."""
        if self.phase is Phase.FINISHED:
            return []
        if isinstance(event, Received):
            self._receive(event.peer, event.message)  # type: ignore[arg-type]
        elif isinstance(event, PeerDown):
            self._gone.setdefault(event.peer, "the peer went down")
        return self._advance(now)

    def wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Do without what `peer` has not sent: it is in a later round."""
        self._gone.setdefault(peer, "the peer is in a later round")
        return [] if self.phase is Phase.FINISHED else self._advance(now)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, peer: str, message: Message) -> None:
        self._bytes_received += memoryview(message.payload).nbytes
        known = peer in self.terms.members and peer != self._me
        number = self._attempt.number
        if not known or (message.task, message.round) != (self.terms.task, self.terms.round):
            self._ignored += 1
        elif message.context != self.terms.context:
            self._gone.setdefault(peer, "the peer sees another group")
        elif number < message.attempt < ATTEMPTS_MAX and not self._signed:
            self._later.setdefault((peer, KINDS[type(message)]), message)
        elif message.attempt != number or not self._attempt.is_first(peer, message):
            self._ignored += 1
        elif self._attempt.is_early(peer, message):
            self._attempt.put_off(peer, message)
        else:
            self._take(peer, message)
            self._take_ripe()

    def _take_ripe(self) -> None:
        for peer, message in self._attempt.ripe():
            self._take(peer, message)

    def _take(self, peer: str, message: Message) -> None:
        try:
            self._attempt.take(peer, message)
        except BadContribution as error:
            self._refused.append(Refusal(peer, KINDS[type(message)].name.lower(), str(error)))

    # -- phases -------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self.phase is not Phase.FINISHED and (self._settled() or now >= self.deadline):
            effects += self._next(now)
            self._take_ripe()
        return effects

    def _settled(self) -> bool:
        """Whether there is nobody left to wait for."""
        refused = {refusal.peer for refusal in self._refused if refusal.what == self.phase.name.lower()}
        return self._attempt.waits_for(self.terms.members) <= set(self._gone) | refused

    def _next(self, now: float) -> list[Effect]:
        match self.phase:
            case Phase.KEYS:
                return self._send_masked(now)
            case Phase.MASKED:
                return self._send_receipts(now)
            case Phase.RECEIPTS:
                return self._settle(now)
            case Phase.SIGNATURES:
                return self._reveal(now)
            case Phase.REVEALS:
                return self._sum(now)
            case _:
                return [self._finish(now)]

    def _enter(self, phase: Phase, now: float) -> None:
        self._attempt.phase, self.deadline = phase, now + self._wait_s

    def _begin(self, now: float) -> list[Effect]:
        self._enter(Phase.KEYS, now)
        key = masking.public_key(self._attempt.secret)
        hellos = self._to(self._others(), Hello(**self._common(), key=key, reference=self._reference))
        later, self._later = self._later, {}
        for (peer, _), message in sorted(later.items(), key=lambda item: item[0][1]):
            self._receive(peer, message)
        return hellos

    def _send_masked(self, now: float) -> list[Effect]:
        self._enter(Phase.MASKED, now)
        self._attempt.masked[self._me] = self._masked(self._part)
        effects: list[Effect] = []
        for peer in self._heard():
            part = self.terms.part_of(peer)
            payload = self._masked(part).tobytes()
            effects += self._to([peer], Masked(**self._common(), part=part, payload=payload))
        return effects

    def _masked(self, part: int) -> masking.Words:
        return masking.masked(self._words[part], part, self._attempt.own_seed, self._attempt.pairs, self._me)

    def _send_receipts(self, now: float) -> list[Effect]:
        self._enter(Phase.RECEIPTS, now)
        mine = Receipt(frozenset(self._attempt.pairs) | {self._me}, frozenset(self._attempt.masked))
        self._attempt.receipts[self._me] = mine
        heard, received = tuple(sorted(mine.heard)), tuple(sorted(mine.received))
        return self._to(self._heard(), Receipts(**self._common(), heard=heard, received=received))

    def _settle(self, now: float) -> list[Effect]:
        """Agree on who is in the sum, and sign it: the one signature of this round."""
        found = survivors(self._attempt.receipts)
        if self._me not in found or len(found) < survivors_min(len(self.terms.members)):
            return self._again(f"only {len(found)} members could be in the sum", now)
        self._attempt.survivors, self._signed, self._agreed_s = found, True, now
        self._enter(Phase.SIGNATURES, now)
        signature = self._sign(self._attempt.to_sign)
        return self._to(self._inside(), Agreed(**self._common(), survivors=found, signature=signature))

    def _again(self, why: str, now: float) -> list[Effect]:
        """Try once more under new keys. Only before a signature: see the invariants."""
        if self._signed:
            raise AssertionError("a private round was about to be repeated after a signature")
        if self._attempt.number + 1 >= ATTEMPTS_MAX:
            return self._skip(why, now)
        self._attempt = self._new_attempt(self._attempt.number + 1)
        return self._begin(now)

    def _reveal(self, now: float) -> list[Effect]:
        attempt = self._attempt
        if not set(attempt.survivors) <= attempt.agreed | {self._me}:
            return self._skip("not everyone in the sum has signed it", now)
        self._enter(Phase.REVEALS, now)
        lost = {peer: seed for peer, seed in attempt.pairs.items() if peer not in attempt.survivors}
        mine = Reveal(**self._common(), own=attempt.own_seed, lost=lost)
        attempt.reveals[self._me] = mine
        return self._to(self._inside(), mine)

    def _sum(self, now: float) -> list[Effect]:
        """Unmask the part that this node owns and give it to all."""
        self._enter(Phase.SUMS, now)
        if not set(self._attempt.survivors) <= set(self._attempt.reveals):
            return []  # somebody stopped between its signature and its reveal: this part stays masked for ever
        clear = self._attempt.unmasked(self._part)
        try:
            self._attempt.add_sum(self._me, clear)
        except BadContribution as error:
            self._refused.append(Refusal(self._me, "sums", str(error)))
            return []
        return self._to(self._inside(), Sum(**self._common(), part=self._part, payload=clear.tobytes()))

    def _skip(self, why: str, now: float) -> list[Effect]:
        self._why_skipped = why
        return [self._finish(now)]

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self, now: float) -> Finished:
        attempt, vector = self._attempt, self._vector.copy()
        for owner, words in attempt.sums.items():
            vector[self.terms.parts[self.terms.part_of(owner)]], _ = masking.mean_of(words, len(attempt.survivors))
        report = self._report(now)
        attempt.close()
        self.deadline, self._words, self._vector = math.inf, [], np.empty(0, dtype=np.float32)
        return Finished(self.terms.round, vector, report)

    def _report(self, now: float) -> Report:
        agreed_s = self._agreed_s or now
        parts = tuple(map(self._runs, self.terms.members))
        return Report(
            task=self.terms.task,
            round=self.terms.round,
            members=self.terms.members,
            agreed=False,  # a sum may not reach all: its members are then as far apart as before
            reference=b"",
            base=b"",
            parts=parts,
            missing=tuple(self._absences()),
            refused=tuple(self._refused),
            ignored=self._ignored,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            opening_s=0.0,
            exchange_s=agreed_s - self._started_s,
            agreement_s=now - agreed_s,
            complete=all(runs and len(runs[0].contributors) == len(self.terms.members) for runs in parts),
        )

    def _runs(self, owner: str) -> tuple[Run, ...]:
        place, contributors = self.terms.parts[self.terms.part_of(owner)], self._contributors(owner)
        return (Run(place.start, place.stop, contributors),) if contributors else ()

    def _contributors(self, owner: str) -> tuple[tuple[str, float], ...]:
        attempt = self._attempt
        if owner not in attempt.sums:
            return ()
        _, weight = masking.mean_of(attempt.sums[owner], len(attempt.survivors))
        return tuple((name, weight / len(attempt.survivors)) for name in attempt.survivors)

    def _absences(self) -> Iterable[Absence]:
        for member in self.terms.members:
            why = self._gone.get(member, self._why_skipped or "it did not come by the deadline")
            if member not in self._attempt.survivors:
                yield Absence(member, "contribution", why)
            if member not in self._attempt.sums:
                yield Absence(member, "mean", why)

    # -- small things -------------------------------------------------------------------------------------------------

    def _common(self) -> dict[str, Any]:
        terms = self.terms
        return {"task": terms.task, "round": terms.round, "context": terms.context, "attempt": self._attempt.number}

    def _others(self) -> tuple[str, ...]:
        """The other members, from the one after this one on: so that not all send to the same one first."""
        return self.terms.members[self._part + 1 :] + self.terms.members[: self._part]

    def _heard(self) -> list[str]:
        return [peer for peer in self._others() if peer in self._attempt.pairs]

    def _inside(self) -> list[str]:
        return [peer for peer in self._others() if peer in self._attempt.survivors]

    def _to(self, peers: Iterable[str], message: Message) -> list[Effect]:
        sends: list[Effect] = [Send(peer, message) for peer in peers]  # type: ignore[arg-type]
        self._bytes_sent += len(sends) * memoryview(message.payload).nbytes
        return sends
