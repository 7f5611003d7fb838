"""One exchange within one group: values stream to the owners of parts, means stream back, and all agree on the end.

Member j owns part j of the vector. Opening: everyone says what it weighs and which model it knows. Exchange: everyone
sends every owner its own values chunk by chunk, a few ahead of the means that come back; an owner averages a chunk as
soon as all who are still in have sent it (`part.py`). Agreement: who holds all means says so, and with a quorum of such
the round is decided; means that an owner could not send to all any more are relayed by those who have them, and of
those that nobody has, everyone takes the values of the last model that all agreed on (`agreement.py`); who does not
know that one, or where there is none, keeps its own there and says that it did not agree. (Reduce-scatter
and all-gather as in Patarasuk and Yuan 2009, with star instead of ring: who dies costs no more than itself.)

Invariants:
- all members that report `agreed` hold the same bytes: the exact mean, to the codec's error, of those whom the report
  names for each run of elements; this holds whoever crashes or freezes, and when, as long as nobody lies;
- the vector handed in is never written to, and the one handed out is whole: the outcome, or one's own values;
- a round finishes at `finish_s_max` after its start at the latest, provided that someone calls `handle` then.
"""

import math
from enum import Enum, auto
from itertools import groupby
from typing import TypedDict

import numpy as np

from .agreement import Agreement, Voice
from .codecs import Floats, codec
from .config import Config
from .errors import BadContribution, BadSetup
from .events import Absence, Expired, Finished, PeerDown, Received, Refusal, Report, Run, Send
from .gate import Gate, check_vector, check_weight, norm_scale
from .hashing import digest
from .members import Member
from .messages import (
    Accepted,
    Contribution,
    Contributors,
    Mean,
    Message,
    Outcome,
    Proposal,
    Status,
    View,
    Want,
    payload_size_bytes,
)
from .part import Averaged, OwnPart, Reference
from .plan import bits, leading, to_bytes
from .terms import Terms

Event = Received | PeerDown | Expired
Effect = Send | Finished

ANSWER_NUDGES = 2.25  # how often those who have gone on are asked, and time to answer
EXCHANGE_STALLS = 3  # an exchange that only ever crawls is ended after so many waits
OWNER_STALLS = 2.5  # an owner may have waited for somebody else first, whom it leaves out then
AGREEMENT_STALLS = 3  # ballots with a leader that says nothing, before a member gives up


class Phase(Enum):
    """What a round does; each phase follows the one above it."""

    NEW = auto()
    OPENING = auto()
    EXCHANGE = auto()
    AGREEMENT = auto()
    FINISHED = auto()


class Head(TypedDict):
    """What every message of a round begins with."""

    task: str
    round: int
    context: bytes
    instance: int


class Round:
    """One member's side of one exchange: `start` once, `handle` each event (early ones too) and each `deadline`.

    When it has finished it still answers members that have not, until `release`.
    """

    def __init__(
        self,
        me: str,
        terms: Terms,
        vector: Floats,
        weight: float,
        *,
        instance: int,
        reference: Reference | None,
        gate: Gate,
        rng: np.random.Generator,
        config: Config,
        opening_wait_s: float,
        stall_s: float,
        into: Floats | None = None,
    ) -> None:
        """Prepare to exchange `vector`, float32 (D,), which nobody may write to any more; the result goes `into`.

        `instance` differs from that of an earlier process of this node; `stall_s` is how long a member that is waited
        for may send nothing.

        Raises:
            BadSetup: this node is not one of the members.
            BadContribution: its own vector or weight is one that nobody would accept; the message names this node.
        """
        size = check_vector(me, vector, terms.dimension)
        check_weight(me, weight, config.weight_max)
        if into is not None and (into.shape, into.dtype) != (vector.shape, vector.dtype):
            raise BadSetup(f"the buffer for the result is {into.dtype} {into.shape}; float32 {vector.shape} is due")
        self.terms, self.context, self.phase, self.deadline = terms, terms.context, Phase.NEW, math.inf
        self.started_s = self.opened_s = self.exchanged_s = 0.0
        self._me, self._own, self._weight, self._reference = me, vector, weight, reference
        self._number, self._plan, self._codec = terms.part_of(me), terms.plan, codec(terms.codec)
        self._gate, self._config = gate, config
        self._rng = rng
        self._opening_wait_s, self._stall_s = opening_wait_s, stall_s
        self._rms = size / math.sqrt(max(vector.size, 1))
        self._scales: dict[tuple[int, int], float] = {}
        self._result = np.empty_like(vector) if into is None else into
        self._members = {peer: Member(terms.part_of(peer)) for peer in terms.members if peer != me}
        self._held = [0] * len(terms.members)
        self._instances = [0] * len(terms.members)
        self._instances[self._number] = instance
        self._contributors: dict[tuple[int, int], Contributors] = {}  # by part and chunk
        alone = not self._members  # then there is no codec's error for nothing
        self._part = OwnPart(
            me,
            self._plan.chunks[self._number],
            codec("float32") if alone else self._codec,
            vector,
            self._result,
            reference,
            gate=gate,
            scale=lambda chunk: self._scale(self._number, chunk),
            rng=rng,
            config=config,
        )
        self._agreement = Agreement(me, terms.members, self._plan)
        self._moved_s = self._mean_s = self._ballot_s = 0.0
        self._outcome: Outcome | None = None
        self._agreed = False
        self._refused: list[Refusal] = []
        self._ignored = self._bytes_sent = self._bytes_received = 0
        self._effects: list[Effect] = []
        self._released = self._held_open = False

    @property
    def finish_s_max(self) -> float:
        """How long after its start this round finishes at the latest."""
        return self._opening_wait_s + (EXCHANGE_STALLS + AGREEMENT_STALLS) * self._stall_s

    @property
    def name(self) -> bytes:
        """What the model is called that the members agreed on; empty where they did not."""
        outcome = self._outcome
        if outcome is None or not self._agreed:
            return b""
        instances = b"".join(instance.to_bytes(8, "big") for instance in outcome.instances)
        return digest("lepton-model", self.context, outcome.reference, instances, *outcome.held)

    def start(self, now: float) -> list[Effect]:
        """Tell the others that I am here."""
        self.phase = Phase.OPENING
        self.started_s = self._moved_s = now
        self._say_all(list(self._members))
        return self._advance(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; every call also does what has become due, so a flood of messages delays nothing."""
        if self._released:
            return []
        match event:
            case Received(peer, message):
                self._receive(peer, message, now)
            case PeerDown(peer) if peer in self._members:
                self._members[peer].leave("the peer went down", down=True)
            case _:
                pass  # Expired: what has become due is done below, as after every event
        return self._advance(now)

    def wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Do without what `peer` has not sent: it is in a later round, so that was lost, or is about to come."""
        if peer in self._members:
            self._members[peer].leave("the peer is in a later round", for_good=True)
        return self._advance(now)

    @property
    def opening(self) -> bool:
        """Whether no values have been exchanged yet."""
        return self.phase in {Phase.NEW, Phase.OPENING}

    def hold_open(self, now: float, *, held: bool) -> list[Effect]:
        """Exchange nothing while members look for a group (`forming.py`), or no longer so."""
        self._held_open = held
        return self._advance(now)

    def is_late(self, peer: str, message: Message) -> bool:
        """Whether a member opens the round for which nobody waits with that any more."""
        known = isinstance(message, Status) and message.context == self.context and peer in self._members
        return known and not self._members[peer].opened and self.phase not in {Phase.NEW, Phase.OPENING}

    def release(self) -> None:
        """Hold no models any more, and answer nobody."""
        self._own = self._result = np.empty(0, dtype=np.float32)
        self._released = True

    # Messages

    def _receive(self, peer: str, message: Message, now: float) -> None:
        self._bytes_received += payload_size_bytes(message)
        member = self._members.get(peer)
        same_round = (message.task, message.round) == (self.terms.task, self.terms.round)
        if member is None or not same_round or message.context != self.context:
            self._ignored += 1
            if member is not None and same_round and isinstance(message, View) and not message.free:
                member.leave("the peer is in another group", for_good=True)
            elif member is not None and same_round and not member.opened:
                member.leave("the peer sees another group")
            return
        if not isinstance(message, Mean) and not self._is_of_life(member.number, message.instance):
            self._ignored += 1
            member.leave("the peer started again in the middle of the round", for_good=True)
            return
        match message:
            case Status():
                self._hear(peer, member, message, now)
            case Contribution():
                self._take_contribution(peer, member, message, now)
            case Mean():
                self._take_mean(peer, message, now)
            case Want():
                self._relay(peer, message.part, int.from_bytes(message.chunks, "little"))
            case Proposal():
                self._take_proposal(peer, message, now)

    def _is_of_life(self, part: int, instance: int) -> bool:
        """Whether this comes from the same life of a member as all before; the first one is the one that counts."""
        self._instances[part] = self._instances[part] or instance
        return self._instances[part] == instance

    def _hear(self, peer: str, member: Member, said: Status, now: float) -> None:
        held = self._plan.to_masks(said.held)
        if held is None or len(said.instances) != len(held):
            self._refuse(peer, "status", "what it says that it holds is not of this round's plan")
            return
        if not member.opened:
            self._open(peer, member, said, now)
        member.come_back(now)
        member.held = tuple(old | new for old, new in zip(member.held or held, held, strict=True))
        voice = Voice(
            ballot=said.ballot, held=held, instances=said.instances, reference=said.reference, accepted=said.accepted
        )
        self._agreement.hear(peer, voice, decided=said.decided)
        if said.again:
            self._help(peer, member, int.from_bytes(said.received, "little"), now)
        elif self._outcome is not None and not said.decided and held != self._plan.full:
            self._say(peer)

    def _open(self, peer: str, member: Member, said: Status, now: float) -> None:
        member.opened, member.weight, member.reference = True, said.weight, said.reference
        member.sent_s = member.mean_s = self._moved_s = now
        if self.phase not in {Phase.NEW, Phase.OPENING}:
            member.out = member.out or "it did not come by the deadline"
        try:
            check_weight(peer, said.weight, self._config.weight_max)
        except BadContribution as error:
            self._refuse(peer, "contribution", str(error))

    def _help(self, peer: str, member: Member, received: int, now: float) -> None:
        """Give a member that asks again what it misses: my word, and what cannot be on its way any more."""
        self._say(peer)
        if now < member.given_s + self._config.resend_s:
            return
        member.given_s = now
        window = self._config.window_chunks
        if self.phase is not Phase.FINISHED:
            for chunk in bits(((1 << member.turn) - 1) & ~received & ~member.held[member.number])[:window]:
                self._contribute(peer, member, chunk)
        lacking = bits(self._held[self._number] & ~member.held[self._number])[:window]
        self._relay(peer, self._number, sum(1 << chunk for chunk in lacking))

    def _take_contribution(self, peer: str, member: Member, message: Contribution, now: float) -> None:
        if member.out or self.phase is Phase.FINISHED:
            self._ignored += 1
        elif message.part != self._number:
            self._refuse(peer, "contribution", f"{peer}: it is for part {message.part}; {self._me} owns {self._number}")
        elif self._part.take(peer, message):
            member.sent_s = self._moved_s = now
            member.come_back(now)
        else:
            self._ignored += 1

    def _take_mean(self, peer: str, message: Mean, now: float) -> None:
        part, chunk = message.part, message.chunk
        known = part < len(self._plan.chunks) and chunk < len(self._plan.chunks[part]) and part != self._number
        wanted = known and not self._held[part] >> chunk & 1 and self.phase is not Phase.FINISHED
        from_owner = known and peer == self.terms.members[part]
        if wanted and message.relayed and not self._held[part]:
            self._instances[part] = message.instance  # others have the means of an earlier life of the owner
        if not wanted or not (from_owner or message.relayed) or not self._is_of_life(part, message.instance):
            self._ignored += 1
            return
        try:
            self._adopt(peer, message)
        except BadContribution as error:
            self._refuse(peer, "mean", str(error))
            return
        self._moved_s = self._mean_s = now
        owner = self._members[self.terms.members[part]]
        owner.mean_s = now
        if from_owner:
            owner.come_back(now)

    def _adopt(self, peer: str, message: Mean) -> None:
        names = [name for name, _ in message.contributors]
        owner = self.terms.members[message.part]
        if owner not in names or names != sorted(set(names)) or not set(names) <= set(self.terms.members):
            raise BadContribution(f"its contributors are not members, sorted, each once, with itself: {names}", peer)
        for name, weight in message.contributors:
            check_weight(f"{peer} on {name}", weight, self._config.weight_max)
        place = self._plan.chunks[message.part][message.chunk]
        size = place.stop - place.start
        result = self._result[place]
        try:
            values = (codec("float32") if message.relayed else self._codec).decode(message.payload, size, result)
        except BadContribution as error:
            raise error.of(peer) from None
        self._gate.admit_mean(peer, values, size, self._scale(message.part, message.chunk))
        if not message.reference:
            if values is not result:
                np.copyto(result, values)
        elif self._reference is not None and message.reference == self._reference.name:
            np.add(self._reference.vector[place], values, out=result)
        else:
            raise BadContribution("it is a difference to a model that is not known here: adopt one", peer)
        self._hold(message.part, message.chunk, message.contributors)

    def _hold(self, part: int, chunk: int, contributors: Contributors) -> None:
        self._held[part] |= 1 << chunk
        self._contributors[part, chunk] = contributors

    def _take_proposal(self, peer: str, message: Proposal, now: float) -> None:
        agreement, outcome = self._agreement, message.outcome
        held = self._plan.to_masks(outcome.held)
        if held is None or len(outcome.instances) != len(held) or message.ballot < 1:
            self._refuse(peer, "proposal", "it is not of this round's plan")
        elif peer != agreement.leader(message.ballot) or message.ballot < agreement.ballot or self._outcome is not None:
            self._ignored += 1
        elif self.phase in {Phase.EXCHANGE, Phase.AGREEMENT}:
            self._enter_agreement(now)
            if message.ballot > agreement.ballot:
                self._join(message.ballot, now)
            agreement.proposed = agreement.proposed or outcome
            self._moved_s = now

    def _relay(self, peer: str, part: int, chunks: int) -> None:
        """Give somebody means that it misses, as the numbers that everybody decoded."""
        if part >= len(self._held):
            return
        for chunk in bits(chunks & self._held[part]):
            values = self._result[self._plan.chunks[part][chunk]]
            contributors, life = self._contributors[part, chunk], self._instances[part]
            payload = codec("float32").encode(values, self._rng)
            self._send(peer, Mean(
                **self._head(instance=life), part=part, chunk=chunk, contributors=contributors, reference=b"",
                relayed=True, payload=payload,  # type: ignore[arg-type]
            ))  # fmt: skip

    # What is due

    def _advance(self, now: float) -> list[Effect]:
        if self.phase is Phase.OPENING and not self._held_open and self._is_opened(now):
            self._begin_exchange(now)
        if self.phase in {Phase.EXCHANGE, Phase.AGREEMENT}:
            self._give_up_on_the_silent(now)
            self._stream(now)
        if self.phase is Phase.EXCHANGE and self._has_exchanged(now):
            self._enter_agreement(now)
        if self.phase is Phase.AGREEMENT:
            self._agree(now)
        if self.phase not in {Phase.NEW, Phase.FINISHED} and now >= self._moved_s + self._config.nudge_s:
            self._moved_s = now
            self._say_all(self._waited_for(), again=True)
            if self.phase is Phase.AGREEMENT or now >= max(self.opened_s, self._mean_s) + self._config.resend_s:
                self._fetch()
        self.deadline = self._next_deadline(now)
        effects, self._effects = self._effects, []
        return effects

    def _is_opened(self, now: float) -> bool:
        come = all(member.opened or member.gone for member in self._members.values())
        return come or now >= self.started_s + self._opening_wait_s

    def _begin_exchange(self, now: float) -> None:
        self.phase, self.opened_s = Phase.EXCHANGE, now
        for member in self._members.values():
            member.sent_s = member.mean_s = now
            if not member.opened:
                member.leave("it did not come by the deadline")

    def _give_up_on_the_silent(self, now: float) -> None:
        for member in self._members.values():
            if self._blocks(member) and now >= member.sent_s + self._stall_s:
                member.leave("it sent nothing for too long")
            if self._owes(member) and now >= member.mean_s + OWNER_STALLS * self._stall_s:
                member.leave("it sent nothing for too long")

    def _blocks(self, member: Member) -> bool:
        """Whether the next chunk of my part waits for this member's values."""
        peer = self.terms.members[member.number]
        return not (self._part.done or member.out or member.gone) and self._part.lacks(peer)

    def _owes(self, member: Member) -> bool:
        """Whether means of this member's part may still come from it."""
        return not member.gone and self._held[member.number] != self._plan.full[member.number]

    def _stream(self, now: float) -> None:
        """Average what is complete, and send my values as far ahead of the means as the window allows."""
        while not self._part.done and not any(map(self._blocks, self._members.values())):
            self._average_next(now)
        window, chunks = self._config.window_chunks, self._plan.chunks
        for peer in self._others():
            member = self._members[peer]
            end = min(leading(self._held[member.number]) + window, len(chunks[member.number]))
            while member.opened and not member.gone and member.turn < end:
                self._contribute(peer, member, member.turn)
                member.turn += 1
                member.given_s = now

    def _contribute(self, owner: str, member: Member, chunk: int) -> None:
        place = self._plan.chunks[member.number][chunk]
        values, name = self._own[place], b""
        if self._reference is not None and not self._codec.exact and member.reference == self._reference.name:
            values, name = values - self._reference.vector[place], self._reference.name
        payload = self._codec.encode(values, self._rng)
        self._send(owner, Contribution(
            **self._head(), part=member.number, chunk=chunk, reference=name, payload=payload,  # type: ignore[arg-type]
        ))  # fmt: skip

    def _average_next(self, now: float) -> None:
        weights = {self._me: self._weight}
        for peer, member in self._members.items():
            if not member.out and self._part.lacks(peer):  # it is gone, and stays out
                member.out = member.gone
                self._part.drop(peer)
            if not member.out:
                weights[peer] = member.weight
        everyone = [peer for peer, member in self._members.items() if member.opened and not member.gone]
        name = b"" if self._reference is None else self._reference.name
        shared = all(self._members[peer].reference == name for peer in everyone)
        averaged = self._part.average(weights, shared=shared)
        for error in averaged.refused:
            self._refuse(error.peer or "", "contribution", str(error))
        self._hold(self._number, averaged.chunk, averaged.contributors)
        for member in self._members.values():
            member.sent_s = now
        self._moved_s = now
        for peer in self._others():
            if peer in everyone:
                self._send(peer, self._mean(averaged))
                self._members[peer].given_s = now

    def _mean(self, averaged: Averaged) -> Mean:
        return Mean(
            **self._head(), part=self._number, chunk=averaged.chunk, contributors=averaged.contributors,
            reference=averaged.reference, payload=averaged.payload,
        )  # fmt: skip

    def _has_exchanged(self, now: float) -> bool:
        waits = not self._part.done or any(map(self._owes, self._members.values()))
        return not waits or now >= self.opened_s + EXCHANGE_STALLS * self._stall_s

    # The end

    def _enter_agreement(self, now: float) -> None:
        if self.phase is not Phase.EXCHANGE:
            return
        self.phase, self.exchanged_s, self._ballot_s = Phase.AGREEMENT, now, now
        if self._is_whole():
            self._agreement.accept(self._whole())  # of itself, in ballot 0
            self._say_all(list(self._members))
        else:
            self._join(1, now)

    def _is_whole(self) -> bool:
        return tuple(self._held) == self._plan.full

    def _whole(self) -> Outcome:
        instances = tuple(life if mask else 0 for life, mask in zip(self._instances, self._held, strict=True))
        return Outcome(held=self._plan.to_bytes(tuple(self._held)), instances=instances, reference=b"")

    def _holds(self, outcome: Outcome) -> bool:
        return not any(self._missing(outcome))

    def _missing(self, outcome: Outcome) -> list[int]:
        """Return, for each part, the chunks of an outcome that I do not have; all of them if I know another life's."""
        wanted = self._plan.to_masks(outcome.held) or ()
        return [
            mask if held and life != mine else mask & ~held
            for mask, life, mine, held in zip(wanted, outcome.instances, self._instances, self._held, strict=True)
        ]

    def _join(self, ballot: int, now: float) -> None:
        self._agreement.join(ballot)
        self._ballot_s = now
        self._say_all(list(self._members))

    def _agree(self, now: float) -> None:
        agreement = self._agreement
        self._change_ballot(now)
        waited_for = [peer for peer, member in self._members.items() if not member.gone]
        patient = now < self._ballot_s + self._stall_s / 2
        proposal = agreement.proposal(self._voice(), waited_for if patient else ())
        if proposal is not None:
            agreement.proposed = proposal
            for peer in self._members:
                self._send(peer, Proposal(**self._head(), ballot=agreement.ballot, outcome=proposal))
        proposed = agreement.proposed
        if proposed is not None and self._holds(proposed) and not self._accepted(proposed):
            agreement.accept(proposed)
            self._say_all(list(self._members))
        if agreement.decided is not None and self._holds(agreement.decided):
            self._finish(now, agreement.decided)
        elif now >= self._gives_up_s:
            self._finish(now, None)
        else:
            self._fetch()

    def _accepted(self, outcome: Outcome) -> bool:
        accepted = self._agreement.accepted
        return accepted is not None and (accepted.ballot, accepted.outcome) == (self._agreement.ballot, outcome)

    def _change_ballot(self, now: float) -> None:
        agreement = self._agreement
        ballot = max([agreement.ballot, *(voice.ballot for voice in agreement.voices.values())])
        if ballot == agreement.ballot and now >= self._ballot_s + self._stall_s:
            ballot += 1
        for _ in self.terms.members:  # the next one whose leader is there, if any is
            leader = agreement.leader(ballot)
            if ballot == 0 or leader == self._me or not self._members[leader].gone:
                break
            ballot += 1
        if ballot > agreement.ballot:
            self._join(ballot, now)

    def _fetch(self) -> None:
        """Ask those who have them for means that I lack, each once between two times that nothing moved."""
        target = self._agreement.decided or self._agreement.proposed
        for part, full in enumerate(self._plan.full):
            lacking = (full & ~self._held[part]) if target is None else self._missing(target)[part]
            for peer in self._others():
                member, voice = self._members[peer], self._agreement.voices.get(peer)
                if not lacking or voice is None or member.down:
                    continue
                mine = not self._held[part] or voice.instances[part] == self._instances[part]
                found = lacking & voice.held[part] & ~member.wanted.get(part, 0) if mine else 0
                if found:
                    lacking &= ~found
                    member.wanted[part] = member.wanted.get(part, 0) | found
                    self._send(peer, Want(**self._head(), part=part, chunks=to_bytes(found, full)))

    def _finish(self, now: float, outcome: Outcome | None) -> None:
        """End with the outcome, whole, or with my own values, whole."""
        self._gate.settle()
        self.phase, self._outcome = Phase.FINISHED, outcome
        if outcome is None:
            np.copyto(self._result, self._own)
            self._held = [0] * len(self._held)  # what others ask for is not here any more
        else:
            self._fill(outcome)
        self._effects.append(Finished(self.terms.round, self._result, self._report(now)))
        self._own = np.empty(0, dtype=np.float32)

    def _fill(self, outcome: Outcome) -> None:
        """Take what nobody has a mean for from the last model that all had; if they had none, keep my own there."""
        known = self._reference is not None and outcome.reference == self._reference.name
        rest = self._reference.vector if self._reference is not None and known else self._own
        adopted = self._plan.to_masks(outcome.held) or ()
        for part, (full, mask) in enumerate(zip(self._plan.full, adopted, strict=True)):
            for chunk in bits(full & ~mask):
                place = self._plan.chunks[part][chunk]
                self._result[place] = rest[place]
                self._held[part] &= ~(1 << chunk)
                self._contributors[part, chunk] = ()
        self._agreed = known or adopted == self._plan.full

    def _report(self, now: float) -> Report:
        everyone = set(self.terms.members)
        parts = tuple(map(self._runs, range(len(self._plan.parts)))) if self._outcome else ((),) * len(everyone)
        named = [{name for name, _ in run.contributors} for runs in parts for run in runs]
        return Report(
            task=self.terms.task,
            round=self.terms.round,
            members=self.terms.members,
            agreed=self._agreed,
            reference=self.name,
            base=b"" if self._reference is None else self._reference.name,
            parts=parts,
            missing=self._absences(),
            refused=tuple(self._refused),
            ignored=self._ignored,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            opening_s=max(self.opened_s - self.started_s, 0.0),
            exchange_s=max(self.exchanged_s - self.opened_s, 0.0),
            agreement_s=now - self.exchanged_s,
            complete=self._outcome is not None and all(names == everyone for names in named),
        )

    def _runs(self, part: int) -> tuple[Run, ...]:
        chunks = [(self._contributors[part, i], place) for i, place in enumerate(self._plan.chunks[part])]
        runs = [(who, [place for _, place in group]) for who, group in groupby(chunks, key=lambda chunk: chunk[0])]
        return tuple(Run(places[0].start, places[-1].stop, who) for who, places in runs)

    def _absences(self) -> tuple[Absence, ...]:
        absences = [Absence(peer, "contribution", member.out) for peer, member in self._members.items() if member.out]
        for peer, member in self._members.items():
            adopted = self._plan.to_masks(self._outcome.held) if self._outcome else None
            mask = self._held[member.number] if adopted is None else adopted[member.number]
            if mask != self._plan.full[member.number]:
                why = member.refused or member.gone or "it did not come by the deadline"
                absences.append(Absence(peer, "mean", why))
        return tuple(absences)

    # Small things

    def _waited_for(self) -> list[str]:
        for member in self._members.values():
            member.wanted.clear()
        if self.phase is Phase.AGREEMENT:
            return [peer for peer, member in self._members.items() if not member.down]
        waits = {
            peer
            for peer, member in self._members.items()
            if not member.gone and (not member.opened or self._blocks(member) or self._owes(member))
        }
        return sorted(waits)

    @property
    def _gives_up_s(self) -> float:
        """When I give up; counted from the exchange's start, since others may be in it longer.

        Where those who are there are no quorum, it is soon: who is in a later round answers at once or never, and
        whoever waits for it falls behind further.
        """
        ends_s = self.opened_s + (EXCHANGE_STALLS + AGREEMENT_STALLS) * self._stall_s
        present = {peer for peer, member in self._members.items() if not member.gone} | {self._me}
        if self._agreement.is_quorum(present) or self._agreement.decided is not None:
            return ends_s
        alone = all(member.down for member in self._members.values())
        return min(ends_s, max(self.exchanged_s, self._mean_s) + (0 if alone else ANSWER_NUDGES * self._config.nudge_s))

    def _next_deadline(self, now: float) -> float:
        if self.phase in {Phase.NEW, Phase.FINISHED}:
            return math.inf
        times = [self._moved_s + self._config.nudge_s]
        if self.phase is Phase.OPENING and not self._held_open:
            times.append(self.started_s + self._opening_wait_s)
        if self.phase is Phase.EXCHANGE:
            times.append(self.opened_s + EXCHANGE_STALLS * self._stall_s)
        if self.phase is Phase.AGREEMENT:
            times += [self._gives_up_s, self._ballot_s + self._stall_s]
            half_s = self._ballot_s + self._stall_s / 2
            times += [half_s] if half_s > now else []
        if self.phase is not Phase.OPENING:
            members = self._members.values()
            times += [member.sent_s + self._stall_s for member in members if self._blocks(member)]
            times += [member.mean_s + OWNER_STALLS * self._stall_s for member in members if self._owes(member)]
        return min(times)

    def _others(self) -> tuple[str, ...]:
        """The other members, from the one after me on: so that not all send to the same one first."""
        return self.terms.members[self._number + 1 :] + self.terms.members[: self._number]

    def _scale(self, part: int, chunk: int) -> float:
        if (part, chunk) not in self._scales:
            self._scales[part, chunk] = norm_scale(self._own[self._plan.chunks[part][chunk]], self._rms)
        return self._scales[part, chunk]

    def _voice(self) -> Voice:
        agreement = self._agreement
        return Voice(
            ballot=agreement.ballot,
            held=tuple(self._held),
            instances=tuple(self._instances),
            reference=b"" if self._reference is None else self._reference.name,
            accepted=agreement.accepted,
        )

    def _say_all(self, peers: list[str], *, again: bool = False) -> None:
        for peer in peers:
            self._say(peer, again=again)

    def _say(self, peer: str, *, again: bool = False) -> None:
        voice, number = self._voice(), self._number
        accepted = voice.accepted
        if self._outcome is not None:  # who heard of the decision need not have accepted it itself
            accepted = Accepted(ballot=voice.ballot, outcome=self._outcome)
        self._send(peer, Status(
            **self._head(), weight=self._weight, reference=voice.reference,
            received=to_bytes(self._part.received.get(peer, 0), self._plan.full[number]),
            held=self._plan.to_bytes(voice.held), instances=voice.instances, ballot=voice.ballot,
            accepted=accepted, decided=self._outcome is not None, again=again,
        ))  # fmt: skip

    def _head(self, instance: int | None = None) -> "Head":
        life = self._instances[self._number] if instance is None else instance
        return {"task": self.terms.task, "round": self.terms.round, "context": self.context, "instance": life}

    def _refuse(self, peer: str, what: str, why: str) -> None:
        member = self._members[peer]
        self._refused.append(Refusal(peer, what, why))
        member.refused = "it was refused"
        if what == "contribution":
            member.out = member.refused
            self._part.drop(peer)
        elif what == "mean":
            member.leave(member.refused, for_good=True)

    def _send(self, peer: str, message: Message) -> None:
        self._bytes_sent += payload_size_bytes(message)
        self._effects.append(Send(peer, message))
