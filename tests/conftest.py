"""For all tests: one thread for each process's arithmetic, and processes that can be interrupted.

Two threads on busy cores wait for each other: measured with other work on both cores, a step of a small model takes
7 ms of CPU on two threads and 0.16 ms on one.
"""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in processes of tests
# The device's speed is measured once for all nodes of the suite, and nothing is written into anybody's own cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "user")

# A suite in the background of a script was told to ignore interrupts, and all that it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
