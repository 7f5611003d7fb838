"""How much of something each may take in a while, and all together. A machine without I/O."""

from dataclasses import dataclass, field

from ...mesh.identity import PeerId


@dataclass(slots=True)
class Allowance:
    """Counts in windows of time: simple, and at a window's edge one may take twice as much at once."""

    each_max: float
    all_max: float
    window_s: float
    _began: float = 0.0
    _taken: dict[PeerId, float] = field(default_factory=dict)

    def take(self, peer: PeerId, amount: float, now: float) -> float:
        """Count an amount and return 0, or return in how many seconds to ask again."""
        if now - self._began >= self.window_s:
            self._began, self._taken = now, {}
        taken = self._taken.get(peer, 0.0)
        if taken + amount > self.each_max or sum(self._taken.values()) + amount > self.all_max:
            return max(self._began + self.window_s - now, 1.0)
        self._taken[peer] = taken + amount
        return 0.0
