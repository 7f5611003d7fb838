"""When an instance that ended is started again, as a machine: starts, successes and deaths in, times out.

The pause doubles with each death and is forgotten once an instance has worked for a while. What never became ready in
some attempts is given up: its code, its bundle or its environment is wrong, and trying again changes nothing. What did
work is tried for ever, a minute apart: what killed it, a call or a device that was lost, may be gone by then.
"""

from dataclasses import dataclass
from typing import Final

FIRST_PAUSE_S: Final = 0.25  # a crash by one bad call costs its replica little
PAUSE_S_MAX: Final = 60.0  # a crash in a circle costs a process a minute
WORKED_S: Final = 60.0  # ready for so long: the next death is one of its own
STARTS_MAX: Final = 3  # in a row, none of which became ready


@dataclass(slots=True)
class Restarts:
    """The life of one instance over several processes."""

    deaths: int = 0  # in a row
    restarts: int = 0  # in all
    has_worked: bool = False
    _ready_at: float | None = None

    def ready(self, now: float) -> None:
        """A process was set up."""
        self._ready_at = now
        self.has_worked = True

    def died(self, now: float) -> float | None:
        """A process ended, or could not be set up. Returns when to start the next, None: never."""
        if self._ready_at is not None and now - self._ready_at >= WORKED_S:
            self.deaths = 0
        self._ready_at = None
        self.deaths += 1
        if not self.has_worked and self.deaths >= STARTS_MAX:
            return None
        self.restarts += 1
        return now + min(FIRST_PAUSE_S * 2.0 ** min(self.deaths - 1, 20), PAUSE_S_MAX)
