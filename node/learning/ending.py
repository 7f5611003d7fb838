"""When a task ends: each node applies the same rules to what it knows, and all follow whoever's end comes first.

A node that sees a rule fulfilled names the task's last round, far enough ahead that everybody hears of it in time, and
says so in its record; all others end there too. So nobody leaves the others in the middle of a round. Whoever hears of
it too late, or had named a later one, ends after the round that it is in: the others then finished without it.

Invariant: the round that one node names never changes, and what all follow never rises.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator

from .settings import Budget, Stop

LEAD_S = 2.0  # records are sent at once, and reach every node of a mesh well within this
LEAD_ROUNDS_MIN = 2  # where a round takes longer than that
_ROUNDS_KEPT = 16  # that a round's time and bytes are worked out from
_BETTER = 1e-4  # a mean score counts as better by this at least: less is one sample in thousands


class Ending:
    """One node's view of when its task ends. Rounds are counted: ``rounds`` of 5 are those numbered 0 to 4."""

    def __init__(self, budget: Budget, stop: Stop) -> None:
        self.rounds = budget.rounds
        """After so many rounds it is over, as far as is known."""
        self.named: int | None = None
        """The number that this node has named to the others."""
        self.why = ""
        self._budget, self._stop = budget, stop
        self._best, self._no_better = -math.inf, 0
        self._first: int | None = None
        self._used: deque[tuple[int, float, float]] = deque(maxlen=_ROUNDS_KEPT)  # rounds, seconds, bytes

    def evaluated(self, scores: Iterable[float | None]) -> None:
        """Take in everybody's newest score (accuracy or R2), one's own among them, after an evaluation of one's own."""
        known = [score for score in scores if score is not None]
        if not known:
            return
        mean = sum(known) / len(known)
        self._no_better = 0 if mean > self._best + _BETTER else self._no_better + 1
        self._best = max(self._best, mean)

    def decide(self, rounds: int, *, seconds: float, bytes_sent: int, scores: Iterable[float | None]) -> bool:
        """Name the last round if a rule asks for it; true if that is news. ``rounds`` are over.

        ``seconds`` and ``bytes_sent`` are what this node has used so far.
        """
        if self._first is None:  # the first round waits for everybody's slow start: it says nothing of the others
            self._first = rounds
        if rounds > self._first:
            self._used.append((rounds, seconds, float(bytes_sent)))
        if not self._used or self.named is not None or not self._may_end_early:
            return False
        ends = [(end, why) for end, why in self._ends(rounds, seconds, bytes_sent, list(scores)) if why]
        if not ends:
            return False
        end, why = min(ends)
        if end >= self.rounds or end > rounds + self._lead:
            return False
        self.named, self.why = max(end, rounds + 1), why
        self.follow([self.named], rounds)
        return True

    def _ends(
        self, rounds: int, seconds: float, bytes_sent: int, scores: list[float | None]
    ) -> Iterator[tuple[int, str]]:
        budget, stop, enough = self._budget, self._stop, rounds + self._lead
        if budget.seconds is not None:
            left = (budget.seconds - seconds) / self._a_round(1)
            yield rounds + max(0, math.floor(left)), f"its {budget.seconds:g} seconds are used up"
        if budget.bytes is not None and bytes_sent:
            left = (budget.bytes - bytes_sent) / self._a_round(2)
            yield rounds + max(0, math.floor(left)), f"its {budget.bytes:,} bytes are used up"
        least = stop.accuracy if stop.r2 is None else stop.r2
        if least is not None and scores and all(said is not None and said >= least for said in scores):
            yield enough, f"everybody has reached {f'{least:.1%}' if stop.r2 is None else f'R2 {least:g}'}"
        if stop.no_better is not None and self._no_better >= stop.no_better:
            yield enough, f"{stop.no_better} evaluations were no better"

    @property
    def _lead(self) -> int:
        return max(LEAD_ROUNDS_MIN, math.ceil(LEAD_S / self._a_round(1)))

    def _a_round(self, what: int) -> float:
        """Return what a round took lately, in seconds (1) or bytes (2); before there were two, as good as nothing."""
        first, last = self._used[0], self._used[-1]
        return max(1e-6, (last[what] - first[what]) / max(1, last[0] - first[0]))

    def follow(self, named: Iterable[int | None], rounds: int) -> None:
        """End where somebody has named an end, though never before the ``rounds`` that are over here."""
        if not self._may_end_early:
            return  # nobody can end a task that has no such rule
        for last in named:
            if last is not None:
                self.rounds = min(self.rounds, max(last, rounds))

    @property
    def _may_end_early(self) -> bool:
        budget, stop = self._budget, self._stop
        return any(rule is not None for rule in (budget.seconds, budget.bytes, stop.accuracy, stop.r2, stop.no_better))
