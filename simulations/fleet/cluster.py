"""Cells on Dask distributed, which the extra `lepton-node[cluster]` installs: on this machine, or on others' cores.

Dask's scheduler gives what a dead worker had to another one. Whoever reaches a Dask scheduler runs code on its workers:
keep it to a network of your own, or give it TLS.
"""

import importlib.util
import logging
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...mesh.errors import LinkError, UsageError
from .cells import Cell, Played, arguments, play

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

_CONNECT_S: Final = 20.0  # a scheduler in another building answers in less
_HERE: Final = "127.0.0.1"


class Cluster:
    """A Dask cluster, started here for as long as it is needed, or one that is there."""

    def __init__(self, address: str | None = None, jobs: int | None = None) -> None:
        """``address`` is an existing scheduler's; without it, ``jobs`` workers are started here. Raises UsageError."""
        if importlib.util.find_spec("distributed") is None:
            raise UsageError("Clusters are run by Dask; install it with: pip install 'lepton-node[cluster]'")
        self._address, self._jobs = address, jobs

    def play(self, cells: Sequence[Cell], folder: Path | None) -> Generator[Played, None, None]:
        from distributed import as_completed

        with self.client() as client, client.as_current():
            futures = {
                client.submit(play, *arguments(cell, folder), key=f"lepton-{cell.key}", pure=False): cell
                for cell in cells
            }
            for future in as_completed(futures):
                cell, error = futures.pop(future), future.exception()
                yield (
                    Played(cell, failed=f"{type(error).__name__}: {error}") if error else Played(cell, *future.result())
                )

    @contextmanager
    def client(self) -> "Iterator[Client]":
        """Connect for the length of a block. Raises LinkError when nobody answers."""
        from distributed import Client

        with ExitStack() as stack:
            address = self._address or stack.enter_context(self.started()).scheduler_address
            try:
                client = Client(address, timeout=_CONNECT_S, set_as_default=False)
            except (OSError, ValueError) as error:
                raise LinkError(f"No Dask scheduler answers at {address}: {error}.") from error
            stack.enter_context(client)
            try:
                client.wait_for_workers(1, timeout=_CONNECT_S)
            except TimeoutError as error:
                raise LinkError(f"The Dask scheduler at {address} has no workers: start some.") from error
            yield client

    def started(self) -> "LocalCluster":
        """Start workers on this machine, one thread each, that listen to nobody else."""
        import dask
        from distributed import LocalCluster

        with _deaf(), dask.config.set({"distributed.scheduler.http.routes": []}):
            return LocalCluster(
                n_workers=self._jobs, threads_per_worker=1, processes=True, memory_limit=0, host=_HERE,
                dashboard_address=f"{_HERE}:0", scheduler_kwargs={"dashboard": False}, silence_logs=logging.ERROR,
            )  # fmt: skip


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that pass over the interrupt of their terminal: it is this one's to hear."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
