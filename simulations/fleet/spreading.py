"""A fleet that is too much for one machine: its nodes train on a cluster's workers, and their models are mixed here.

A share of the nodes is whole blocks of the engine's, so workers compute just what the engine would, to the bit. In each
round every model travels to a worker and back: it pays where nodes compute for long, with large networks or many steps.
"""

import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...mesh.errors import LeptonError, LinkError, UsageError
from .batches import Ints
from .cells import ours
from .checkpoint import digest_of
from .fleet import Fleet, training_for
from .reading import population_for
from .scenario import Scenario
from .training import Training

if TYPE_CHECKING:
    from distributed import Client

Floats = npt.NDArray[np.float32]
Job = tuple[bytes, str, str, tuple[str, ...]]  # the scenario as JSON, the folder of its data, their digest, versions

_SHARES_OF_A_THREAD: Final = 2  # so that nobody waits long for the slowest
_SHARE_BYTES_MAX: Final = 64 * 2**20  # of models: a message that any scheduler has room for
_ONE_AT_A_TIME: Final = threading.Lock()  # a worker with many threads has one torch


class Spread:
    """Trains a fleet's nodes on the workers of a Dask cluster."""

    def __init__(self, fleet: Fleet, client: "Client", folder: Path | None) -> None:
        """``folder`` holds data that Lepton does not carry, under the same path on all workers.

        Raises UsageError for a fleet whose model no worker can build.
        """
        if not fleet.described:
            raise UsageError("Workers build their model from the scenario: name it there as package.module:factory.")
        self._client, self._training = client, fleet.training
        if fleet.state.models.device.type != "cpu":
            raise UsageError("Workers train on their processors: leave the device out.")
        place = str(folder.resolve()) if folder else ""
        self.job: Job = (msgspec.json.encode(fleet.scenario), place, digest_of(fleet.population), ours())

    def run(self, before: Tensor, after: Tensor, momentum: Tensor | None, nodes: Ints, done: Ints, todo: Ints) -> None:
        """Take steps as `Training.run` does. Raises LinkError when too many workers died, LeptonError as they do."""
        import dask
        from distributed import as_completed

        after.copy_(before)
        shares = self._training.shares(nodes, todo, self._count(before, len(nodes)))
        quiet = {"distributed.admin.large-graph-warning-threshold": _SHARE_BYTES_MAX * len(shares) * 4}
        with self._client.as_current(), dask.config.set(quiet):
            futures = {
                self._client.submit(
                    train, self.job, before.numpy()[nodes[share]],
                    None if momentum is None else momentum.numpy()[nodes[share]],
                    nodes[share], done[share], todo[share], pure=False,
                ): nodes[share]
                for share in shares
            }  # fmt: skip
            for future in as_completed(list(futures)):
                rows = futures.pop(future)
                models, remembered = _result(future)
                after.numpy()[rows] = models
                if momentum is not None:
                    momentum.numpy()[rows] = remembered

    def _count(self, models: Tensor, nodes: int) -> int:
        threads = sum(map(int, self._client.nthreads().values()))
        size_bytes = nodes * models.shape[1] * models.element_size()
        return max(1, threads * _SHARES_OF_A_THREAD, -(-size_bytes // _SHARE_BYTES_MAX))


def train(
    job: Job, models: Floats, momentum: Floats | None, nodes: Ints, done: Ints, todo: Ints
) -> tuple[Floats, Floats | None]:
    """Train ``nodes`` (n,) in this process, on one thread: return their models (n, D) and what SGD remembers."""
    scenario, folder, digest, versions = job
    if versions != ours():
        raise UsageError(f"A worker has {' and '.join(ours())}, and not {' and '.join(versions)}: bits would differ.")
    with _ONE_AT_A_TIME:
        torch.set_num_threads(1)
        training = _training(scenario, folder, digest)
        begun = torch.from_numpy(models.copy())
        kept = None if momentum is None else torch.from_numpy(momentum.copy())
        training.run_share(begun, kept, nodes, done, todo)
    return begun.numpy(), None if kept is None else kept.numpy()


@lru_cache(maxsize=1)
def _training(text: bytes, folder: str, digest: str) -> Training:
    """Read a scenario's data and model once for all of its rounds."""
    scenario = msgspec.json.decode(text, type=Scenario)
    population = population_for(scenario, folder=Path(folder) if folder else None)
    if digest_of(population) != digest:
        raise UsageError("A worker has other data: put the same files under the same path on all of them.")
    return training_for(scenario, population)


def _result(future: object) -> tuple[Floats, Floats | None]:
    from distributed import Future

    assert isinstance(future, Future)
    try:
        found: tuple[Floats, Floats | None] = future.result()
    except LeptonError:
        raise
    except Exception as error:
        raise LinkError(f"The workers failed: {type(error).__name__}: {error}.") from error
    return found
