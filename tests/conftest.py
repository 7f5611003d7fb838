"""For all tests: one thread for arithmetic, processes that can be interrupted, and the same examples in every run.

Two threads on busy cores wait for each other: measured with other work on both cores, a step of a small model takes
7 ms of CPU on two threads and 0.16 ms on one.
"""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in processes of tests
# The device's speed is measured once for all nodes of the suite, and nothing is written into anybody's own cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "user")

# A suite in the background of a script was told to ignore interrupts, and all that it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = ("node/processes", "net", "node/together", "house/test_readme.py", "simulations", "gossip/test_round.py")

# `make explore`: what no run has tried yet.
settings.register_profile(
    "explore", max_examples=int(os.environ.get("EXAMPLES", "1000")), derandomize=False, deadline=None, database=None
)


def pytest_configure(config: pytest.Config) -> None:
    """Let Hypothesis's profile for CI keep its word: a test's examples follow from the test alone.

    It seeds each test by its source, yet draws one value in twenty from the constants of all our modules that happen to
    be loaded. So any change anywhere, and any other order of files, gave all tests other examples.
    """
    if config.getoption("--hypothesis-profile") == "ci":
        providers._get_local_constants = Constants


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits for processes and takes longest, so that no worker is alone with it at the end."""
    here = Path(__file__).parent
    items.sort(key=lambda item: not item.path.relative_to(here).as_posix().startswith(SLOW))
