"""Virtual time for millions of events: a queue of calls with their arguments, and one seed for all chance.

Invariant: what happens is a function of the seed and of what was scheduled; things due at the same moment happen in the
order in which they were scheduled.
"""

import heapq
import math
import random
from collections.abc import Callable
from typing import Any, Protocol

_LEAST_S = 1e-3  # until a machine is called again: a deadline that stays in the past would stop time


class Clock:
    """The time that all members share."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0  # virtual seconds
        self.events = 0  # how many things have happened
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._scheduled = 0

    def dice(self, purpose: str) -> random.Random:
        """Return a generator of its own for one purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{purpose}")  # a text is hashed with SHA-512, the same in every process

    def at(self, due_s: float, action: Callable[..., object], *given: Any) -> None:  # noqa: ANN401 - what it takes
        """Let something happen. The arguments are kept beside it: a closure would cost as much as the event."""
        self._scheduled += 1
        heapq.heappush(self._queue, (due_s, self._scheduled, action, given))

    def after(self, delay_s: float, action: Callable[..., object], *given: Any) -> None:  # noqa: ANN401
        self._scheduled += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._scheduled, action, given))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due by then."""
        queue, pop, done = self._queue, heapq.heappop, 0
        while queue and queue[0][0] <= until_s:
            self.now, _, action, given = pop(queue)
            action(*given)
            done += 1
        self.events += done
        self.now = until_s


class Due(Protocol):
    """A machine that wants to be called at its deadline."""

    @property
    def deadline(self) -> float: ...


class Alarm:
    """Calls one machine at its deadline, which may move either way meanwhile."""

    def __init__(self, clock: Clock, machine: Due, expire: Callable[[], object]) -> None:
        self.due_s = math.inf  # when it rings: its user compares, and sets it when the machine wants it sooner
        self._clock, self._machine, self._expire = clock, machine, expire

    def set(self, due_s: float) -> None:
        self.due_s = due_s = max(due_s, self._clock.now + _LEAST_S)
        self._clock.at(due_s, self._ring, due_s)

    def _ring(self, due_s: float) -> None:
        if due_s != self.due_s:
            return  # it was set to ring sooner
        self.due_s = math.inf
        if self._machine.deadline > due_s:
            self.set(self._machine.deadline)
        else:
            self._expire()
