"""Cells in processes of this machine. A process that dies takes down no cell but, if it was its own doing, its own.

When a worker dies, Python breaks the whole pool and does not say whose fault it was. So what was being played is played
again, each cell in a process for itself; one that brings that down twice is given up, and all others go on.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from .cells import Cell, Played, arguments, obey, play

_TRIES: Final = 2  # alone: the system may have killed a process once for want of memory while others ran
_METHOD: Final = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# Loaded by the server that processes are forked from: seconds that not each of them has to spend.
_LOADED_ONCE: Final = [f"{__package__}.learn", "sklearn.datasets"]

Result = Future[tuple[bytes, str]]


class Pool:
    """A pool of processes, each with one thread."""

    def __init__(self, jobs: int | None = None) -> None:
        """``jobs`` are as many as this machine has cores, if nothing is said."""
        self._jobs = jobs or os.cpu_count() or 1

    def play(self, cells: Sequence[Cell], folder: Path | None) -> Generator[Played, None, None]:
        waiting, again = deque(cells), deque[Cell]()
        while waiting:
            with _processes(min(self._jobs, len(waiting))) as executor:
                yield from self._together(executor, waiting, again, folder)
        for cell in again:
            yield self._alone(cell, folder)

    def _together(
        self, executor: ProcessPoolExecutor, waiting: deque[Cell], again: deque[Cell], folder: Path | None
    ) -> Iterator[Played]:
        """Play what waits, until nothing does or a process dies; then what was being played is in ``again``."""
        running: dict[Result, Cell] = {}
        broken = False
        while running or (waiting and not broken):
            while waiting and not broken and len(running) < self._jobs:
                try:
                    running[executor.submit(play, *arguments(waiting[0], folder))] = waiting[0]
                except BrokenProcessPool:
                    broken = True
                else:
                    waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    outcome, failed = future.result()
                except BrokenProcessPool:
                    broken = True
                    again.append(cell)
                else:
                    yield Played(cell, outcome, failed)

    def _alone(self, cell: Cell, folder: Path | None) -> Played:
        for _ in range(_TRIES):
            with _processes(1) as executor:
                try:
                    return Played(cell, *executor.submit(play, *arguments(cell, folder)).result())
                except BrokenProcessPool:
                    continue
        return Played(cell, failed=f"its process died {_TRIES} times with nothing beside it: it may lack memory")


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Run processes that end with the block; what they play when it is left early ends with its round."""
    context = multiprocessing.get_context(_METHOD)
    context.set_forkserver_preload(_LOADED_ONCE)
    stopped = context.Event()
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(stopped,))
    try:
        yield executor
    finally:
        stopped.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(stopped: Event) -> None:
    """Begin a process: the interrupt of a terminal is its parent's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    obey(stopped.is_set)
