"""How busy a device is: coarse, so that what is said of it seldom changes. A passing record of each node.

What is coarse has a memory: from what was said a value has to move by most of a step before another is said, so an idle
node says one thing when it starts and nothing more.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from ...mesh.messages import Message, Natural

LOAD: Final = "load"
INTERVAL_S: Final = 10.0
_CROWD: Final = 50  # members present from which on it is looked at less often: everybody hears of every change
_MIB: Final = 1024 * 1024
_CPU_STEP: Final = 10  # per cent
_MEMORY_STEP: Final = 5
_PROCESS_STEP: Final = 64  # MiB
_MOVED: Final = 0.8  # of a step

Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


class LoadRecord(Message, frozen=True, kw_only=True):
    """How busy a device is (record name: 'self'); None: its system does not say."""

    cpu: Percent | None = None  # of all cores, over the last interval
    memory: Percent | None = None  # of the device's, by all that runs there
    process_mib: Natural | None = None  # what the node itself takes
    sessions: Natural = 0  # of language models, on stages here


@dataclass(slots=True)
class Gauge:
    """Reads the system's counters. ``proc`` is where Linux has them; elsewhere nothing is known."""

    proc: Path = Path("/proc")
    _before: tuple[int, int] | None = field(default=None, init=False)

    def cpu(self) -> float | None:
        """Return how busy all cores were since the last call, in per cent."""
        try:
            ticks = [int(word) for word in (self.proc / "stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
            idle, total = ticks[3] + ticks[4], sum(ticks)
        except (OSError, ValueError, IndexError):
            return None
        before, self._before = self._before, (idle, total)
        if before is None or total <= before[1]:
            return None
        return 100 * (1 - max(0, idle - before[0]) / (total - before[1]))

    def memory(self) -> float | None:
        """Return how much of the device's memory is taken, in per cent."""
        try:
            lines = (self.proc / "meminfo").read_text("ascii").splitlines()
            found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
            return 100 * (1 - found["MemAvailable"] / found["MemTotal"])
        except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
            return None

    def process_bytes(self) -> int | None:
        """Return what this process takes."""
        try:
            return int((self.proc / "self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return None

    def look(self, said: LoadRecord, sessions: int) -> LoadRecord:
        """Return what there is to say now; ``said`` is what was said before."""
        process_bytes = self.process_bytes()
        return LoadRecord(
            cpu=_percent(self.cpu(), said.cpu, _CPU_STEP),
            memory=_percent(self.memory(), said.memory, _MEMORY_STEP),
            process_mib=None
            if process_bytes is None
            else stepped(process_bytes / _MIB, said.process_mib, _PROCESS_STEP),
            sessions=sessions,
        )


def _percent(value: float | None, said: int | None, step: int) -> int | None:
    return None if value is None else min(100, max(0, stepped(value, said, step)))


def stepped(value: float, said: int | None, step: int) -> int:
    """Return the nearest step, or what was said as long as the value is not far from it."""
    if said is not None and abs(value - said) < _MOVED * step:
        return said
    return round(value / step) * step


def interval_s(present: int) -> float:
    """How long to wait before the next look: in a large mesh longer, so that all together say no more."""
    return INTERVAL_S * max(1.0, present / _CROWD)
