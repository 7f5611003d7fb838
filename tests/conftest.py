"""For all tests: one thread for each process's arithmetic, or two on busy cores wait for each other.

Measured with other work on both cores: a step of a small model takes 7 ms of CPU on two threads and 0.16 ms on one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in processes of tests
