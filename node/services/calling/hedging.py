"""When a second replica is asked the same: once an answer is later than nearly all before it. Pure.

Only methods that their author called idempotent are asked twice. The delay is the 95th percentile of late, so about one
call in twenty is; what that costs is bounded besides (Dean & Barroso 2013, The Tail at Scale).
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

QUANTILE: Final = 0.95
KNOWN_MIN: Final = 20  # answers: of fewer the quantile would be the largest
KEPT: Final = 128  # some seconds of a busy method
EXTRA_SHARE: Final = 0.05  # of calls: more would make an overload worse
EXTRA_MAX: Final = 10.0  # that were saved up in quiet times


@dataclass(slots=True)
class Hedging:
    """The answers' times of one method, and how many second questions may still be asked."""

    budget: float = 1.0
    _took_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _delay_s: float | None = None

    def took(self, took_s: float) -> None:
        self._took_s.append(took_s)
        self._delay_s = None

    def called(self) -> None:
        """A call begins: it earns a part of a second question."""
        self.budget = min(self.budget + EXTRA_SHARE, EXTRA_MAX)

    @property
    def delay_s(self) -> float | None:
        """How late an answer has to be for a second question; None while too few are known."""
        if len(self._took_s) < KNOWN_MIN:
            return None
        if self._delay_s is None:
            self._delay_s = sorted(self._took_s)[int(QUANTILE * len(self._took_s))]
        return self._delay_s

    def spend(self) -> bool:
        """Take one second question out of what may be asked, if there is one."""
        if self.budget < 1.0:
            return False
        self.budget -= 1.0
        return True
