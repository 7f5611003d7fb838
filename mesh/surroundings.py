"""What changes around a node without a word: its own addresses, and time that passed while the machine slept.

Both are looked for every few seconds: a laptop that moves has a new address within seconds, and no two systems tell of
it in the same way.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

CHECK_S: Final = 3.0  # reading the addresses takes a millisecond; a user who opens a laptop waits about as long
SLEPT_S: Final = 5.0  # by which two clocks differ that differed less before; no machine's clocks drift so far in 3 s


def since_boot() -> float:
    """Return seconds of a clock that goes on while the machine sleeps; where there is none, of the calendar."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if boottime is None else time.clock_gettime(boottime)


async def watch(
    changed: Callable[[str], None], addresses: Callable[[], tuple[str, ...]], clock: Callable[[], float] = since_boot
) -> None:
    """Say what changed, in words for people, for as long as this runs. The addresses are read on a thread.

    trio's own clock stands still while a machine sleeps, so ``clock`` is then further ahead of it than before.
    """
    known, lead_s = set(await trio.to_thread.run_sync(addresses)), clock() - trio.current_time()
    while True:
        await trio.sleep(CHECK_S)
        found, before_s = set(await trio.to_thread.run_sync(addresses)), lead_s
        lead_s = clock() - trio.current_time()
        if found != known:
            known = found
            changed(f"its addresses are now {', '.join(sorted(found)) or 'none'}")
        elif abs(lead_s - before_s) > SLEPT_S:
            changed(f"the machine slept for {lead_s - before_s:.0f} s")
