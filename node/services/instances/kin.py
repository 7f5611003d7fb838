"""All processes that an instance started, as Linux tells it: also those that left its process group and their parent.

Each instance has a mark in its environment, which whatever it starts inherits. So what makes itself a daemon is found
and ended with its instance; code that takes the mark off on purpose is not. Elsewhere than on Linux nothing is told.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "LEPTON_INSTANCE"  # the name of the environment variable
PROCESSES_MAX: Final = 256  # of one instance: a program with a pool for every core of a large machine has fewer
_PROC: Final = Path("/proc")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_ROUNDS: Final = 8  # of ending what starts others meanwhile


def family(process: int) -> set[int]:
    """Return a process and its descendants that still have their parents; of too many some."""
    found, waiting = set[int](), [process]
    while waiting and len(found) <= PROCESSES_MAX:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += _children(current)
    return found


def marked(mark: str) -> list[int]:
    """Return all processes of this user with a mark that begins so."""
    wanted = f"{MARK}={mark}".encode()
    return [number for number in _all() if _has(number, wanted)]


def memory_bytes(processes: set[int]) -> int:
    """Return what processes have in resident memory, shared pages counted for each."""
    total = 0
    for process in processes:
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            total += int((_PROC / str(process) / "statm").read_bytes().split()[1]) * _PAGE_BYTES
    return total


def end_marked(mark: str) -> int:
    """Kill all processes of this user with a mark that begins so, and what they start meanwhile. Returns how many."""
    ended = 0
    for _ in range(_ROUNDS):
        found = marked(mark)
        if not found:
            break
        ended += sum(_end(process, mark) for process in found)
    return ended


def _end(process: int, mark: str) -> bool:
    """Kill a process, if its number is still its own."""
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        handle = os.pidfd_open(process)
        try:
            if _has(process, f"{MARK}={mark}".encode()):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False


def _all() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208 - names are all that is wanted
    return []


def _has(process: int, wanted: bytes) -> bool:
    with suppress(OSError):  # another user's, or it has just ended
        return any(word.startswith(wanted) for word in (_PROC / str(process) / "environ").read_bytes().split(b"\0"))
    return False


def _children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError, ValueError):
        for thread in os.listdir(_PROC / str(process) / "task"):  # noqa: PTH208 - names are all that is wanted
            found += map(int, (_PROC / str(process) / "task" / thread / "children").read_bytes().split())
    return found
