"""Calls of one method that wait at the node for a place in its instance, first come first served.

The instance is handed only what it can begin at once, so that when it dies all others are known not to have run.
"""

from collections import Counter, deque
from typing import Final

import trio

from ....mesh.errors import Busy
from ..errors import NotHere

WAITING_MAX: Final = 256  # of one method at one instance: beyond that another replica, or later, is better
WAITING_OF_CALLER_MAX: Final = WAITING_MAX // 2  # so that nobody takes all places of those who wait
_WEIGHT: Final = 0.2  # of the newest value in a smoothed one
_HALF_LIFE_S: Final = 5.0  # of the time that calls waited: with no new ones nobody waits


class Queueing:
    """How long calls lately waited, smoothed."""

    def __init__(self) -> None:
        self._ms = 0.0
        self._at = 0.0

    def note(self, waited_s: float, now: float) -> None:
        self._ms = (1 - _WEIGHT) * self.ms(now) + _WEIGHT * waited_s * 1000
        self._at = now

    def ms(self, now: float) -> float:
        return float(self._ms * 0.5 ** ((now - self._at) / _HALF_LIFE_S)) if self._ms else 0.0


class Gate:
    """The places of one method."""

    def __init__(self, places: int, queueing: Queueing) -> None:
        self._free = places
        self._places = places
        self._queueing = queueing
        self._waiting: deque[tuple[float, trio.Event]] = deque()
        self._of: Counter[str] = Counter()  # how many of whom wait
        self._shut = ""

    @property
    def running(self) -> int:
        return self._places - self._free

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """When the first that waits came; infinite when none does."""
        return self._waiting[0][0] if self._waiting else float("inf")

    async def enter(self, caller: str = "") -> None:
        """Wait for a place; whoever has it must ``leave``. Raises NotHere when it is shut, Busy when too many wait."""
        came = trio.current_time()
        if self._shut:
            raise NotHere(self._shut)
        if self._free and not self._waiting:
            self._free -= 1
            self._queueing.note(0.0, came)
            return
        if len(self._waiting) >= WAITING_MAX or self._of[caller] >= WAITING_OF_CALLER_MAX:
            raise Busy(f"{len(self._waiting)} calls wait already for their turn at this instance.")
        turn = (came, trio.Event())
        self._waiting.append(turn)
        self._of[caller] += 1
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not self._shut:  # the place came with the cancellation
                self.leave()
            raise
        finally:
            self._of[caller] -= 1
            if not self._of[caller]:
                del self._of[caller]
        if self._shut:
            raise NotHere(self._shut)
        now = trio.current_time()
        self._queueing.note(now - came, now)

    def leave(self) -> None:
        """A place is free."""
        if self._waiting:
            self._waiting.popleft()[1].set()
        else:
            self._free += 1

    def shut(self, why: str) -> None:
        """Nobody enters any more, nor do those who wait."""
        self._shut = why
        while self._waiting:
            self._waiting.popleft()[1].set()
