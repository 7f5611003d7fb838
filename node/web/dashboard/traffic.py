"""How much goes over each link, from counters that are looked at now and then. Pure.

Nobody sends anything to measure: the most that a link has carried is what it can carry at least.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_LEAST_S: Final = 0.5  # between two looks: over less a burst of buffers is taken for a rate
_TELLING: Final = 1_000_000  # bytes a second, below which a best says nothing of what a link could do


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes a second of one link."""

    sent: float = 0.0
    received: float = 0.0
    best: float = 0.0  # either way, since this node has looked


class Traffic:
    """The links of one node."""

    def __init__(self) -> None:
        self.rates: dict[str, Rate] = {}
        self._before: dict[str, tuple[int, int]] = {}
        self._at: float | None = None

    def look(self, counters: Mapping[str, tuple[int, int]], now: float) -> None:
        """Take in bytes sent and received by peer, counted since each connection began."""
        if self._at is not None and now - self._at < _LEAST_S:
            return
        seconds = None if self._at is None else now - self._at
        rates = {}
        for peer, (sent, received) in counters.items():
            old = self._before.get(peer)
            best = self.rates[peer].best if peer in self.rates else 0.0
            if seconds is None or old is None or sent < old[0] or received < old[1]:  # a new connection
                rates[peer] = Rate(best=best)
                continue
            each = (sent - old[0]) / seconds, (received - old[1]) / seconds
            rates[peer] = Rate(*each, best=max(best, *each) if max(each) >= _TELLING else best)
        self.rates, self._before, self._at = rates, dict(counters), now
