"""For all tests: one thread for arithmetic, processes that can be interrupted, and the same examples in every run.

Two threads on busy cores wait for each other: measured with other work on both cores, a step of a small model takes
7 ms of CPU on two threads and 0.16 ms on one.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, here and in processes of tests
# The device's speed is measured once for all nodes of the suite, and nothing is written into anybody's own cache.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "user")

# Some machines set it for everybody: each of the hundred processes of tests would compile all our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while tests are collected, nor ever after in what that made: it is there to stay.

    Collecting makes millions of objects that live, and the search through them took a third of its time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _seed(seed: int) -> None:
    """Seed torch's own generator; who has not imported torch draws nothing from it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test's fixtures, and then the test, draw the same weights whatever ran before them."""
    _seed(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Not the numbers of its fixtures again: weights that are equal to inputs would show nothing."""
    _seed(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits for processes and takes longest, so that no worker is alone with it at the end."""
    here = Path(__file__).parent
    items.sort(key=lambda item: not item.path.relative_to(here).as_posix().startswith(SLOW))
