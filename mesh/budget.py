"""The memory that all peers together may make this node hold, and how fast each may send. Machines without I/O.

Memory is reserved before anything is read, and given back when it is let go. Invariants, tested with any history:

- What is reserved never exceeds ``total_bytes``, and no peer has more than ``share_bytes`` of it.
- The last ``kept_bytes`` go only to peers that hold little, so a few greedy ones cannot lock the others out.
- Comfort (windows wider than a stream needs to work) comes only out of the half that nobody needs.
"""

from typing import Final

from . import limits
from .errors import Busy
from .identity import PeerId, short


class Budget:
    """One node's memory for what peers send."""

    def __init__(
        self,
        *,
        total_bytes: int = limits.MEMORY_BYTES_MAX,
        share_bytes: int = limits.MEMORY_BYTES_PER_PEER_MAX,
        kept_bytes: int = limits.MEMORY_KEPT_BYTES,
        little_bytes: int = limits.MEMORY_LITTLE_BYTES,
    ) -> None:
        self._total_bytes = total_bytes
        self._share_bytes = share_bytes
        self._kept_bytes = kept_bytes
        self._little_bytes = little_bytes
        self._held: dict[PeerId, int] = {}
        self.held_bytes = 0

    def of(self, peer: PeerId) -> int:
        """What is reserved for one peer."""
        return self._held.get(peer, 0)

    def account(self, peer: PeerId) -> "Account":
        """One peer's part, as something to hand on. All accounts of one peer are the same."""
        return Account(self, peer)

    def reserve(self, peer: PeerId, size_bytes: int) -> None:
        """Take memory for what is about to be read. Raises Busy, and then takes nothing."""
        mine = self.of(peer) + size_bytes
        if mine > self._share_bytes:
            msg = f"This node holds {self.of(peer)} B for {short(peer)}; with {size_bytes} B more it would be too much."
            raise Busy(msg, limits.BUSY_RETRY_S)
        kept = 0 if mine <= self._little_bytes else self._kept_bytes
        if self.held_bytes + size_bytes > self._total_bytes - kept:
            msg = f"This node holds {self.held_bytes} B for its peers and has no room for {size_bytes} B more."
            raise Busy(msg, limits.BUSY_RETRY_S)
        self._add(peer, size_bytes)

    def widen(self, peer: PeerId, size_bytes: int) -> bool:
        """Take memory for comfort's sake, if there is plenty; whether it was taken."""
        plenty = (
            2 * (self.held_bytes + size_bytes) <= self._total_bytes
            and 2 * (self.of(peer) + size_bytes) <= self._share_bytes
        )
        if plenty:
            self._add(peer, size_bytes)
        return plenty

    def release(self, peer: PeerId, size_bytes: int) -> None:
        """Give back what was taken."""
        assert 0 <= size_bytes <= self.of(peer), "more is given back than was taken"
        self._add(peer, -size_bytes)
        if not self._held[peer]:
            del self._held[peer]

    def _add(self, peer: PeerId, size_bytes: int) -> None:
        self._held[peer] = self.of(peer) + size_bytes
        self.held_bytes += size_bytes


class Account:
    """One peer's part of a budget."""

    __slots__ = ("_budget", "_peer")

    def __init__(self, budget: Budget, peer: PeerId) -> None:
        self._budget = budget
        self._peer = peer

    def reserve(self, size_bytes: int) -> None:
        """As ``Budget.reserve``."""
        self._budget.reserve(self._peer, size_bytes)

    def widen(self, size_bytes: int) -> bool:
        """As ``Budget.widen``."""
        return self._budget.widen(self._peer, size_bytes)

    def release(self, size_bytes: int) -> None:
        """As ``Budget.release``."""
        if size_bytes:
            self._budget.release(self._peer, size_bytes)


class Bucket:
    """A token bucket: how long a peer is to be left alone, after so much of something was taken from it.

    It may go into debt, since what one wake-up brings is known only when it is here; the debt is paid by waiting.
    """

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, now: float, *, per_s: float, burst: float) -> None:
        self._per_s: Final = per_s
        self._burst: Final = burst
        self._level = burst
        self._at = now

    def spend(self, amount: float, now: float) -> float:
        """Count what was taken; returns the seconds until the next may be, 0.0 for at once."""
        level = self._level + (now - self._at) * self._per_s
        self._at = now
        self._level = level = min(level, self._burst) - amount
        return -level / self._per_s if level < 0 else 0.0
