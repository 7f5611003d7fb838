"""A breaker: who failed several times running is left alone for a while, then tried with one call. A pure machine.

Closed it lets everything through. ``FAILURES`` in a row open it; after ``OPEN_S`` one call may try (half open): its
success closes the breaker, its failure opens it again for twice as long. (Nygard 2007, Release It!, ch. 5.)
"""

from dataclasses import dataclass
from typing import Final

FAILURES: Final = 5  # in a row: one lost connection fails all calls under way at once, some of them by bad luck
OPEN_S: Final = 1.0  # a process that crashed is started again in about this
OPEN_S_MAX: Final = 30.0  # a host that is gone for longer leaves the picture in this time


@dataclass(slots=True)
class Breaker:
    """The recent failures of one replica."""

    failures: int = 0
    open_s: float = OPEN_S
    open_until: float = 0.0
    probing: bool = False  # one call is on its way to find out

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES

    def allows(self, now: float) -> bool:
        """Whether a call may go there."""
        return not self.is_open or (now >= self.open_until and not self.probing)

    def begin(self) -> None:
        """A call goes there."""
        self.probing = self.is_open

    def succeeded(self) -> None:
        self.failures, self.open_s, self.probing = 0, OPEN_S, False

    def failed(self, now: float) -> None:
        """One call failed, by whatever is the replica's fault."""
        was_probe, was_open = self.probing, self.is_open
        self.failures += 1
        self.probing = False
        if not was_open and self.is_open:
            self.open_until = now + self.open_s
        elif was_probe:
            self.open_s = min(2 * self.open_s, OPEN_S_MAX)
            self.open_until = now + self.open_s

    def let_go(self) -> None:
        """A call ended that says nothing about the replica: its caller gave it up."""
        self.probing = False
