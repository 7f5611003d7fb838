"""What one node knows of each member's life, from what the member says and from what others say of it.

Invariants: an incarnation comes from its member's own signed statements alone, and only grows; a statement outdoes
every doubt about an earlier incarnation; a stranger is never kept; memory is bounded by ``limits``.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import limits
from .identity import PeerId
from .lifeguard import Suspicion
from .rumours import Doubt, Rumours, Statement, Words


@dataclass(slots=True)
class Life:
    """What is known of one member."""

    incarnation: int = 0
    signature: bytes = b""  # of its statement; empty until one was heard
    statement: Statement | None = None  # the same, as it is told
    doubted: int = -1  # the last incarnation that somebody doubted, to tell it when it is met
    forgetful: bool = False  # it states less than it once did: it lost its memory and has to be told
    suspicion: Suspicion | None = None
    buried_by: tuple[PeerId, ...] = ()  # who doubted it in the end
    dead: bool = False

    @property
    def tellable(self) -> bool:
        """Whether others should hear that it lives."""
        return self.statement is not None and not self.dead and self.suspicion is None


class Lives:
    """All members that this node has heard of, and its own statement."""

    def __init__(
        self, me: PeerId, rng: random.Random, words: Words, knows: Callable[[PeerId], bool], incarnation: int
    ) -> None:
        self.me = me
        self.own = words.state(incarnation)
        self.suspects: dict[PeerId, Suspicion] = {}
        self._rng = rng
        self._words = words
        self._knows = knows
        self._known: dict[PeerId, Life] = {}
        self._names: list[PeerId] = []  # the same, to draw from
        self._dead: dict[PeerId, None] = {}  # who died first comes first
        self._rumours = Rumours()

    def __getitem__(self, peer: PeerId) -> Life:
        return self._known[peer]

    def get(self, peer: PeerId) -> Life | None:
        return self._known.get(peer)

    @property
    def alive(self) -> frozenset[PeerId]:
        return frozenset(self._known.keys() - self._dead.keys())

    @property
    def news(self) -> bool:
        """Whether there is anything to pass on."""
        return len(self._rumours) > 0

    @property
    def count(self) -> int:
        """Members that live, with this one."""
        return len(self._known) - len(self._dead) + 1

    @property
    def scale(self) -> float:
        """The power of ten of that: rumours take so many rounds to reach all, give or take a factor."""
        return max(math.log10(self.count), 1.0)

    def meet(self, peer: PeerId) -> None:
        """A member is connected: whoever it is, it was let in, and is kept track of."""
        if peer not in self._known:
            self._room_for_one()
            self._add(peer)

    def _hear_of(self, peer: PeerId) -> Life | None:
        """Return what is known of a member; None of a stranger, or when there are too many."""
        if peer not in self._known and peer != self.me and self._knows(peer) and self._room_for_one():
            self._add(peer)
        return self._known.get(peer)

    def forget(self, peer: PeerId) -> None:
        """Whoever this was is no member any more."""
        if self._known.pop(peer, None) is not None:
            self._names.remove(peer)
        self.suspects.pop(peer, None)
        self._dead.pop(peer, None)
        self._rumours.forget(peer)

    def _add(self, peer: PeerId) -> None:
        self._known[peer] = Life()
        self._names.append(peer)

    def _room_for_one(self) -> bool:
        if len(self._known) < limits.LIVES_MAX:
            return True
        if not self._dead:
            return False
        self.forget(next(iter(self._dead)))
        return True

    def recall(self, statement: Statement) -> None:
        """Know a member by what it stated long ago. Raises PeerError when it is not the member's own."""
        life = self._hear_of(statement.peer)
        if life is not None and (statement.incarnation > life.incarnation or not life.signature):
            self._words.check(statement)
            self._note(life, statement)

    # -- what is said -------------------------------------------------------------------------------------------------

    def hear_statement(self, statement: Statement) -> bool:
        """Take in a member's own word; whether it is the first, or clears the member of a doubt.

        Raises PeerError when it is not the member's own.
        """
        life = self._known.get(statement.peer) or self._hear_of(statement.peer)
        if life is None:
            return False
        if statement.incarnation == life.incarnation and life.signature and not life.dead:
            return False  # most are
        if statement.incarnation < life.incarnation or (life.signature and statement.incarnation == life.incarnation):
            if life.dead:  # whoever repeats it has missed the doubt
                by = life.buried_by or (self.me,)
                self._rumours.add(Doubt(peer=statement.peer, incarnation=life.incarnation, by=by))
            return False
        self._words.check(statement)
        first, outdone = not life.signature, statement.incarnation > life.incarnation
        self._note(life, statement)
        self._rumours.add(statement)
        return (outdone and self.clear(statement.peer)) or (first and not life.dead)

    def _note(self, life: Life, statement: Statement) -> None:
        life.incarnation, life.signature, life.statement = statement.incarnation, statement.signature, statement

    def hear_word(self, peer: PeerId, incarnation: int, signature: bytes) -> bool:
        """Take in what a neighbour says of itself, which shows whether it remembers its latest statement."""
        life = self._known.get(peer)
        if life is not None and incarnation == life.incarnation and life.signature and not life.dead:
            life.forgetful = False
            return False  # nothing new, as mostly
        outdone = self.hear_statement(Statement(peer=peer, incarnation=incarnation, signature=signature))
        if (life := self._known.get(peer)) is not None:
            life.forgetful = incarnation < life.incarnation and bool(life.signature)
        return outdone

    def hear_oneself(self, statement: Statement) -> None:
        """Outdo what this node stated before it lost its memory. Raises PeerError when it never did."""
        if statement.incarnation > self.own.incarnation:
            self._words.check(statement)
            self._state(statement.incarnation + 1)

    def answer_doubt(self, doubt: Doubt) -> bool:
        """Outdo a doubt about this node itself; whether that was needed."""
        if doubt.incarnation < self.own.incarnation:
            return False
        self._state(self.own.incarnation + 1)  # never as high as somebody made up
        return True

    def may_be(self, doubt: Doubt) -> bool:
        """Whether a doubt is about a member that is held for alive, and not outdone."""
        life = self._known.get(doubt.peer)
        if life is None or doubt.incarnation < life.incarnation:
            return False
        if len(doubt.by) < len(life.buried_by):  # who is late with it need not wait for others to doubt with it
            self._rumours.add(Doubt(peer=doubt.peer, incarnation=life.incarnation, by=life.buried_by))
        return not life.dead

    def _state(self, incarnation: int) -> None:
        self.own = self._words.state(incarnation)
        self._rumours.add(self.own)

    # -- what follows -------------------------------------------------------------------------------------------------

    def suspect(self, peer: PeerId, by: Iterable[PeerId], suspicion: Suspicion) -> bool:
        """Doubt a member, or doubt it more; what is new is passed on, with the incarnation that is known here.

        ``suspicion`` is that which begins with this doubt; whether it does.
        """
        life = self._known[peer]
        begins = life.suspicion is None
        if life.suspicion is None:
            life.suspicion = self.suspects[peer] = suspicion
        news = [life.suspicion.confirm(doubter) for doubter in by if self._knows(doubter)]
        if begins or any(news):
            by = tuple(sorted(life.suspicion.by)) or (self.me,)
            self._rumours.add(Doubt(peer=peer, incarnation=life.incarnation, by=by))
        life.doubted = life.incarnation
        return begins

    def doubt_anew(self) -> None:
        """Tell once more whom this node suspects: while it was cut off nobody heard, and the others may know more."""
        for peer, suspicion in self.suspects.items():
            by = tuple(sorted(suspicion.by)) or (self.me,)
            self._rumours.add(Doubt(peer=peer, incarnation=self._known[peer].incarnation, by=by))

    def clear(self, peer: PeerId) -> bool:
        """A member lives; whether it was suspected or dead."""
        life = self._known.get(peer)
        if life is None or not (life.suspicion or life.dead):
            return False
        life.suspicion, life.dead, life.buried_by = None, False, ()
        self.suspects.pop(peer, None)
        self._dead.pop(peer, None)
        return True

    def bury(self, peer: PeerId) -> None:
        """A suspect's time is over."""
        life = self._known[peer]
        life.suspicion, life.dead, life.buried_by = None, True, tuple(sorted(self.suspects.pop(peer).by))
        self._dead[peer] = None

    # -- what to tell -------------------------------------------------------------------------------------------------

    def word_for(self, peer: PeerId, *, rumours: int, times_max: int, spare: int) -> dict[str, Any]:
        """Return the fields of a ``Word`` to this peer: first what concerns itself, then news, then what there is."""
        life = self._known.get(peer)
        if not self._rumours and (life is None or not (life.doubted >= life.incarnation or life.forgetful)):
            return {
                "incarnation": self.own.incarnation,
                "signature": self.own.signature,
                "known": self.count,
                "statements": tuple(self._some(spare)) if spare else (),
            }
        said: list[Statement | Doubt] = []
        if life is not None:
            if life.doubted >= life.incarnation:  # Lifeguard's buddy system: who is suspected hears it first
                said.append(Doubt(peer=peer, incarnation=life.incarnation, by=(self.me,)))
            if life.forgetful:
                said.append(Statement(peer=peer, incarnation=life.incarnation, signature=life.signature))
        said += self._rumours.next(rumours, times_max)
        said += self._some(spare)
        return {
            "incarnation": self.own.incarnation,
            "signature": self.own.signature,
            "known": self.count,
            "statements": tuple(rumour for rumour in said if isinstance(rumour, Statement)),
            "doubts": tuple(rumour for rumour in said if isinstance(rumour, Doubt)),
        }

    def page_after(self, name: str) -> dict[str, Any]:
        """Return the fields of a ``Word`` that tells of the next members by name, as many as one may."""
        later = (peer for peer in self._known if peer > name and self._known[peer].tellable)
        told = (self._known[peer].statement for peer in heapq.nsmallest(limits.RUMOURS_MAX, later))
        return {
            "incarnation": self.own.incarnation,
            "signature": self.own.signature,
            "known": self.count,
            "statements": tuple(statement for statement in told if statement is not None),
        }

    def _some(self, count: int) -> list[Statement]:
        """Statements of members drawn by lot: who has missed a rumour learns of them in the end."""
        some = []
        for _ in range(count if self._names else 0):
            life = self._known[self._names[int(self._rng.random() * len(self._names))]]
            if life.statement is not None and life.tellable:
                some.append(life.statement)
        return some
