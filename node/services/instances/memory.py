"""How much memory a process and those that it started have in use, as Linux tells it.

Elsewhere nothing is told, and no limit holds but what the system sets: macOS ignores those that a process can have.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_DESCENDANTS_MAX: Final = 256  # are counted; who starts more is bounded by what these take
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def in_use_bytes(process: int) -> int:
    """Resident memory of a process and its descendants, shared pages counted for each; 0 where nothing is told."""
    total, waiting, seen = 0, [process], 0
    while waiting and seen < _DESCENDANTS_MAX:
        current = waiting.pop()
        seen += 1
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            total += int((_PROC / str(current) / "statm").read_bytes().split()[1]) * _PAGE_BYTES
        waiting += _children(current)
    return total


def _children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError, ValueError):
        for thread in os.listdir(_PROC / str(process) / "task"):  # noqa: PTH208 - names are all that is wanted
            found += map(int, (_PROC / str(process) / "task" / thread / "children").read_bytes().split())
    return found
