"""How one that comes late learns who is here: it asks a neighbour that knows of clearly more, page by page.

Every word says how many members its sender knows of. Rumours are passed on for some seconds only, so a late comer to a
large mesh has missed most; it asks one neighbour at a time for the statements of those whose names come after the last
one that it was told. The late comer sets the pace and keeps the place; who teaches keeps nothing, and sends a bounded
page for each question. A lesson that leaves much unknown is followed by one of another neighbour.

Invariants: one question is under way at most; the place only moves on, and a lesson has at most ``limits`` pages. One
that lies can waste a lesson now and then, and invent nobody: statements are their members' own.
"""

import math
from dataclasses import dataclass

from . import limits
from .identity import PeerId
from .pace import Config as Pace
from .rumours import Ack

# In a small mesh everybody meets everybody, and in any mesh some are always held for dead by a part of it only.
_SMALL = Pace().whole_most
_CLEARLY = 8
_CLEARLY_SHARE = 32  # of what is known here
_TRIES = 3  # of one question: a link that loses every twentieth message either way loses three in a row once in 1,000
_TIMEOUT_S = 1.0  # for one page, as for a probe that others help with
_AGAIN_S = 10.0  # between two lessons: who does not know yet that these are members passes their statements over


@dataclass(slots=True)
class Lesson:
    """What this node is being taught."""

    deadline: float = math.inf  # when the question counts as lost
    teacher: PeerId | None = None
    after: str = ""  # the name up to which it was told
    _number: int = 0
    _pages: int = 0
    _tries: int = 0
    _again_at: float = 0.0
    _last: PeerId | None = None

    def wants(self, peer: PeerId, *, theirs: int, mine: int, alone: bool, now: float) -> bool:
        """Whether to take a lesson of a neighbour that knows of so many; not of the same again if there are others."""
        if theirs <= mine + _CLEARLY or self.teacher is not None or now < self._again_at:
            return False
        return theirs > _SMALL and theirs > mine + mine // _CLEARLY_SHARE and (alone or peer != self._last)

    def begin(self, peer: PeerId) -> None:
        self.teacher, self._last, self.after, self._pages, self._tries = peer, peer, "", 0, 0

    def asked(self, number: int, now: float) -> None:
        """Note that the next page was asked for."""
        self._number, self.deadline = number, now + _TIMEOUT_S
        self._tries += 1

    def answered(self, peer: PeerId, ack: Ack, now: float) -> bool:
        """Take a page, if it is one; whether to ask for the next."""
        if peer != self.teacher or ack.number != self._number:
            return False
        told = [statement.peer for statement in ack.statements]
        self._pages += 1
        if not told or max(told) <= self.after or self._pages >= limits.LESSON_PAGES_MAX:
            self.end(now)
            return False
        self.after, self._tries = max(told), 0
        return True

    def lost(self, now: float) -> bool:
        """No answer came; whether to ask once more."""
        if self._tries < _TRIES:
            return True
        self.end(now)
        return False

    def end(self, now: float) -> None:
        self.teacher, self.deadline, self._again_at = None, math.inf, now + _AGAIN_S
