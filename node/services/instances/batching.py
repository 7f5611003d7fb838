"""Which calls of a method run together, as a machine: calls and time in, batches out.

Invariants, tested with random calls: a call is in at most one batch; calls start in the order in which they came;
at most ``concurrency`` batches run; no call waits longer than ``wait_s`` while a place is free. A method that is not
batched is the same with batches of one.
"""

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")
NEVER = float("inf")


class Batching(Generic[C]):
    """The calls of one method that have not begun."""

    def __init__(self, *, size_max: int = 1, wait_s: float = 0.0, concurrency: int = 1) -> None:
        self._size_max = size_max
        self._wait_s = wait_s if size_max > 1 else 0.0
        self._free = concurrency
        self._waiting: deque[tuple[float, C]] = deque()  # with the time at which each has waited long enough

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def deadline(self) -> float:
        """When ``tick`` wants to be called."""
        return self._waiting[0][0] if self._waiting and self._free else NEVER

    def add(self, call: C, now: float) -> list[list[C]]:
        """A call came. Returns the batches to begin."""
        self._waiting.append((now + self._wait_s, call))
        return self.tick(now)

    def done(self, now: float) -> list[list[C]]:
        """A batch has ended."""
        self._free += 1
        return self.tick(now)

    def drop(self, call: C) -> bool:
        """Nobody waits for a call any more. Returns whether it had not begun."""
        before = len(self._waiting)
        self._waiting = deque(each for each in self._waiting if each[1] is not call)
        return len(self._waiting) < before

    def tick(self, now: float) -> list[list[C]]:
        """Time has passed."""
        begun = []
        while self._free and self._waiting and self._is_due(now):
            size = min(self._size_max, len(self._waiting))
            begun.append([self._waiting.popleft()[1] for _ in range(size)])
            self._free -= 1
        return begun

    def _is_due(self, now: float) -> bool:
        return len(self._waiting) >= self._size_max or self._waiting[0][0] <= now
