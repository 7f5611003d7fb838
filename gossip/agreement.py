"""What a round came to, agreed on by its members: single-decree Paxos (Lamport 1998), with a first ballot for free.

Ballot 0 proposes of itself that every mean is adopted: who holds them all accepts that. When some mean is nowhere to
be had, members go on to ballot 1, 2, ..., each with one member as its leader, who proposes what a quorum of members
can put together, and whose proposal is accepted by whoever holds all of it. An outcome is decided when a quorum has
accepted it in one ballot. A quorum is more than half of the members, or half of them with the first one.

Invariant: no two members ever decide on different outcomes, whoever crashes, freezes, wakes up late or is cut off, and
whatever is lost, doubled or overtaken, as long as nobody lies. That somebody decides needs a quorum that lives, and
time.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from .messages import Accepted, Outcome
from .plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What a member has said of itself: its ballot, the chunks it holds and of which lives, what it accepted."""

    ballot: int = 0
    held: tuple[int, ...]
    instances: tuple[int, ...]
    reference: bytes
    accepted: Accepted | None = None

    def updated(self, newer: "Voice") -> "Voice":
        """Take in another saying of the same member. It may be older: nothing is ever unsaid."""
        accepted = self.accepted
        if accepted is None or (newer.accepted is not None and newer.accepted.ballot > accepted.ballot):
            accepted = newer.accepted
        return replace(
            newer,
            ballot=max(self.ballot, newer.ballot),
            held=tuple(one | other for one, other in zip(self.held, newer.held, strict=True)),
            instances=tuple(max(pair) for pair in zip(self.instances, newer.instances, strict=True)),
            accepted=accepted,
        )


class Agreement:
    """One member's side. `hear` the others, `join` ballots, `accept`; `decided` is the outcome as soon as there is."""

    def __init__(self, me: str, members: tuple[str, ...], plan: Plan) -> None:
        self.ballot = 0
        self.accepted: Accepted | None = None
        self.proposed: Outcome | None = None
        """By the leader of this ballot."""
        self.decided: Outcome | None = None
        self.voices: dict[str, Voice] = {}
        self._me, self._members, self._plan = me, members, plan

    def leader(self, ballot: int) -> str:
        """Return who may propose in this ballot, from 1 on."""
        return self._members[(ballot - 1) % len(self._members)]

    def is_quorum(self, peers: Collection[str]) -> bool:
        """Whether any other quorum shares a member with these."""
        twice, count = 2 * len(peers), len(self._members)
        return twice > count or (twice == count and self._members[0] in peers)

    def hear(self, peer: str, voice: Voice, *, decided: bool) -> None:
        """Take in what another member says of itself; of one that has `decided`, its outcome."""
        known = self.voices.get(peer)
        self.voices[peer] = voice if known is None else known.updated(voice)
        if decided and voice.accepted is not None:
            self.decided = self.decided or voice.accepted.outcome
        self._count()

    def join(self, ballot: int) -> None:
        """Promise to accept nothing in earlier ballots any more."""
        if ballot > self.ballot:
            self.ballot, self.proposed = ballot, None

    def accept(self, outcome: Outcome) -> None:
        """Stand for an outcome in the present ballot, all of which this member holds."""
        self.accepted = Accepted(ballot=self.ballot, outcome=outcome)
        self._count()

    def _count(self) -> None:
        votes: dict[Accepted, set[str]] = {}
        for peer, accepted in [*((p, v.accepted) for p, v in self.voices.items()), (self._me, self.accepted)]:
            if accepted is not None:
                votes.setdefault(accepted, set()).add(peer)
        for accepted, peers in votes.items():
            if self.decided is None and self.is_quorum(peers):
                self.decided = accepted.outcome

    def proposal(self, mine: Voice, waited_for: Collection[str]) -> Outcome | None:
        """Return what this member, if it leads the present ballot, has to propose now: once, and to everyone.

        `mine` is its own voice, `waited_for` are the others without whose word it would rather not begin.
        """
        if self.ballot == 0 or self.leader(self.ballot) != self._me or self.proposed is not None:
            return None
        promised = {peer: voice for peer, voice in self.voices.items() if voice.ballot == self.ballot}
        promised[self._me] = mine
        if not self.is_quorum(promised) or not set(waited_for) <= set(promised):
            return None
        accepted = {voice.accepted for voice in promised.values() if voice.accepted is not None}
        if not accepted:
            return self._union(mine, list(promised.values()))
        last = max(each.ballot for each in accepted)
        outcomes = {each.outcome for each in accepted if each.ballot == last}
        # Two in ballot 0: an owner died, came back and averaged anew. Either may have been decided.
        return outcomes.pop() if len(outcomes) == 1 else None

    def _union(self, mine: Voice, voices: list[Voice]) -> Outcome:
        """Put together what these members hold; of an owner's several lives, the one that the leader knows."""
        held, instances = [], []
        for part in range(len(self._members)):
            lives = {voice.instances[part] for voice in voices if voice.held[part]}
            life = mine.instances[part] if mine.held[part] else max(lives, default=0)
            mask = 0
            for voice in voices:
                mask |= voice.held[part] if voice.instances[part] == life else 0
            held.append(mask)
            instances.append(life if mask else 0)
        references = {voice.reference for voice in voices}
        common = references.pop() if len(references) == 1 else b""
        whole = tuple(held) == self._plan.full
        return Outcome(
            held=self._plan.to_bytes(tuple(held)), instances=tuple(instances), reference=b"" if whole else common
        )
