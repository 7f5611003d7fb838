"""Lifeguard's two rules (Dadgar, Phillips, Currey 2018): how far to trust oneself, and how long to suspect another.

*Local health*: who gets no answers where it should, is told that it is suspected, or finds that its own clock jumped,
is likely the slow one; it asks less often and waits longer. *Suspicion*: the first doubt about a member gives it a long
time to speak up, which each doubt from somebody else shortens, down to a least time.
"""

import math
from dataclasses import dataclass, field

from .identity import PeerId

HEALTH_MAX = 7  # memberlist's AwarenessMaxMultiplier of 8: at worst everything takes eight times as long


@dataclass(slots=True)
class LocalHealth:
    """0 is well, 7 at worst."""

    score: int = 0

    @property
    def slowness(self) -> int:
        """What a pause or a wait for an answer is multiplied with."""
        return 1 + self.score

    def note(self, change: int) -> None:
        self.score = min(max(self.score + change, 0), HEALTH_MAX)


@dataclass(slots=True)
class Suspicion:
    """One member's time to speak up. Times are monotonic seconds."""

    began: float
    least_s: float
    most_s: float
    confirmations_max: int  # as many independent ones bring it down to the least
    by: set[PeerId] = field(default_factory=set)  # who doubts
    unheard: bool = False  # whether this node has tried for itself since, in vain
    not_before: float = -math.inf
    _share: float = 0.0  # of the way from the most to the least

    def __post_init__(self) -> None:
        self._weigh()

    @property
    def deadline(self) -> float:
        """When the member counts as dead (Lifeguard, section IV-B)."""
        return max(self.began + self.most_s - self._share * (self.most_s - self.least_s), self.not_before)

    def _weigh(self) -> None:
        self._share = 1.0
        if self.confirmations_max:
            self._share = min(math.log(max(len(self.by), 1)) / math.log(self.confirmations_max + 1), 1.0)

    def confirm(self, by: PeerId) -> bool:
        """Count a doubt; whether it is a new one and shortens the time."""
        if by in self.by or len(self.by) > self.confirmations_max:
            return False
        self.by.add(by)
        self._weigh()
        return True

    def excuse(self, late_s: float) -> None:
        """Leave out a time in which this node could not have heard anything."""
        self.began += late_s
        self.not_before += late_s
