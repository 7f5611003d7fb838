"""The hunt: one seed after another until an invariant breaks, then the least that still breaks it.

Seeds are played by a pool of processes; with one job they are played here. A clock is read to know when to stop, and
nothing else depends on it: which seeds break does not.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from .device import Machines
from .drawing import draw
from .run import Broken, simulate
from .scenario import Scenario
from .shrinking import Shrinker, kind_of


@dataclass(frozen=True, slots=True)
class Found:
    """A seed under which an invariant breaks, and the least of its scenario that breaks it too."""

    seed: int
    what: str
    """Which promise, in the words of the whole scenario's run."""

    scenario: Scenario
    """With all faults written out."""

    said: str
    """What the smallest run says."""


@dataclass(frozen=True, slots=True)
class Hunted:
    """How far a hunt got."""

    seeds: int
    virtual_s: float
    found: Found | None


@dataclass(slots=True)
class Hunt:
    """One hunt; ``tried`` counts the seeds that held."""

    scenario: Scenario
    tell: Callable[[str], None] = lambda _what: None
    machines: Machines | None = None  # of a test; runs in this process then
    tried: int = 0

    @property
    def progress(self) -> str:
        """How far it got, in words."""
        return f"{self.tried} seeds, {self.tried * self.scenario.duration_s / 3600:.1f} h of virtual time"

    def run(self, seeds: Iterable[int], *, until: float, jobs: int = 1) -> Hunted:
        """Play seeds until one breaks, none is left, or ``time.monotonic`` has reached ``until``."""
        played = self._here(seeds, until) if jobs == 1 else self._in_pool(seeds, until, jobs)
        found = next((broken for broken in map(self._note, played) if broken is not None), None)
        virtual_s = self.tried * self.scenario.duration_s
        return Hunted(self.tried, virtual_s, None if found is None else self._shrunk(*found))

    def _note(self, played: tuple[int, str]) -> tuple[int, str] | None:
        seed, what = played
        self.tried += 1
        self.tell(f"seed {seed} breaks: {what}" if what else f"{self.progress}: all held")
        return (seed, what) if what else None

    def _here(self, seeds: Iterable[int], until: float) -> Iterator[tuple[int, str]]:
        for seed in seeds:
            if time.monotonic() >= until:
                return
            yield seed, play(self.scenario, seed, self.machines)

    def _in_pool(self, seeds: Iterable[int], until: float, jobs: int) -> Iterator[tuple[int, str]]:
        """Play several at once; of those that break at the same time the smallest seed comes first."""
        coming = iter(seeds)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_deaf) as pool:
            running = {pool.submit(play, self.scenario, seed): seed for seed in islice(coming, jobs)}
            try:
                while running:
                    yield from self._ended(running)
                    if time.monotonic() < until:
                        room = jobs - len(running)
                        running |= {pool.submit(play, self.scenario, seed): seed for seed in islice(coming, room)}
            finally:
                for future in running:
                    future.cancel()

    @staticmethod
    def _ended(running: dict[Future[str], int]) -> Iterator[tuple[int, str]]:
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        yield from sorted((running.pop(future), future.result()) for future in ended)

    def _shrunk(self, seed: int, what: str) -> Found:
        kind = kind_of(what)

        def breaks(scenario: Scenario) -> bool:
            return kind_of(play(scenario, seed, self.machines)) == kind

        scenario = Shrinker(breaks, self.tell).shrink(draw(self.scenario, seed))
        return Found(seed, what, scenario, play(scenario, seed, self.machines))


def play(scenario: Scenario, seed: int, machines: Machines | None = None) -> str:
    """Play one seed; return what broke, or nothing."""
    try:
        simulate(scenario, seed=seed, machines=machines)
    except Broken as broken:
        return broken.what
    return ""


def _deaf() -> None:
    """Leave an interrupt to the process that began the hunt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
