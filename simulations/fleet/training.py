"""The local steps of all nodes between two exchanges: a block of them at a time, so that it stays in the cache.

The steps are those of the deployed trainer, plain SGD with momentum (`node/learning/trainer.py`): with gradient g of
the batch's mean loss, g += decay x w; m = beta x m + g; w -= rate x m. Nodes with the most steps come first in a
block, so those that are done leave it at the end, and nothing is computed in vain.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...node.objective import Objective, is_of_classes, is_of_values
from .batches import Batches, Ints, Stretches
from .networks import Network, Parts, split
from .population import Population
from .scenario import Train

# Bytes of a block's models: what a core's second cache holds beside their batches.
_BLOCK_BYTES: Final = 768 * 1024
_PLANNED: Final = 4096  # nodes whose batches are looked up at once: bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """All nodes' training samples, where the training runs."""

    inputs: Tensor  # (S, ...)
    labels: Tensor  # (S, ...), and once more (2 S, ...) as liars have them, if there are any
    shift: Ints  # (N,): 0, or S for a liar's labels

    def batch(self, places: Ints, nodes: Ints) -> tuple[Tensor, Tensor]:
        """Return x (n, B, ...) and y (n, B, ...) of samples (n, B) that these nodes hold."""
        device = self.inputs.device
        index = torch.from_numpy(places.ravel()).to(device)
        labels = torch.from_numpy((places + self.shift[nodes][:, None]).ravel()).to(device)
        x, y = self.inputs.index_select(0, index), self.labels.index_select(0, labels)
        return x.unflatten(0, places.shape), y.unflatten(0, places.shape)


def samples_of(
    population: Population, objective: Objective, liars: npt.NDArray[np.bool_], device: torch.device
) -> Samples:
    """Return a population's training samples; ``liars`` (N,) turn their labels around."""
    labels = population.labels
    shift = np.where(liars, len(labels), 0)
    if liars.any():
        labels = torch.cat([labels, _turned(labels, objective, population.classes)])
    return Samples(inputs=population.inputs.to(device), labels=labels.to(device), shift=shift)


class Training:
    """What all nodes do between two exchanges."""

    def __init__(self, network: Network, said: Train, samples: Samples, batches: Batches) -> None:
        self._network, self._said = network, said
        self._samples, self._batches = samples, batches
        size_bytes = 4 * sum(math.prod(shape) for shape in network.shapes)
        self._block = max(1, _BLOCK_BYTES // size_bytes)

    def run(self, before: Tensor, after: Tensor, momentum: Tensor | None, nodes: Ints, done: Ints, todo: Ints) -> None:
        """Take ``todo`` (n,) steps with ``nodes`` (n,), which took ``done`` before; leave the others as they are.

        ``before`` and ``after`` are models, ``momentum`` what the optimiser remembers, float32 (N, D) each.
        """
        after.copy_(before)
        order = np.lexsort((nodes, -self._batches.counts[nodes], -todo))
        for start in range(0, len(order), _PLANNED):
            chosen = order[start : start + _PLANNED]
            stretches = self._batches.of_round(nodes[chosen], done[chosen], todo[chosen])
            for first in range(0, len(chosen), self._block):
                rows = slice(first, first + self._block)
                self._run_block(after, momentum, nodes[chosen[rows]], todo[chosen[rows]], stretches, rows)

    def _run_block(
        self, models: Tensor, momentum: Tensor | None, nodes: Ints, todo: Ints, stretches: Stretches, rows: slice
    ) -> None:
        """Train one block, whose nodes are sorted by their steps, most first."""
        index = torch.from_numpy(nodes).to(models.device)
        parts = _taken(models, index, self._network)
        remembered = _taken(momentum, index, self._network) if momentum is not None else None
        for step in range(int(todo[0])):
            active = int(np.count_nonzero(todo > step))
            places, sizes = stretches.step(slice(rows.start, rows.start + active), step)
            x, y = self._samples.batch(places, nodes[:active])
            share = (np.arange(places.shape[1]) < sizes[:, None]) / sizes[:, None].astype(np.float32)
            self._step(
                [part[:active] for part in parts],
                None if remembered is None else [part[:active] for part in remembered],
                x, y, torch.from_numpy(share.astype(np.float32)).to(x.device),
            )  # fmt: skip
        _put_back(models, index, parts, self._network)
        if momentum is not None and remembered is not None:
            _put_back(momentum, index, remembered, self._network)

    def _step(self, parts: list[Tensor], momentum: list[Tensor] | None, x: Tensor, y: Tensor, share: Tensor) -> None:
        rate, decay = self._said.learning_rate, self._said.weight_decay
        if momentum is None:
            self._network.descend(parts, x, y, share, into=parts, keep=1 - rate * decay, scale=-rate)
            return
        self._network.descend(parts, x, y, share, into=momentum, keep=self._said.momentum, scale=1.0)
        for part, remembered in zip(parts, momentum, strict=True):
            if decay:
                remembered.add_(part, alpha=decay)
            part.sub_(remembered, alpha=rate)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Cut 0 to ``count`` - 1 into blocks of at most ``size``."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _taken(models: Tensor, index: Tensor, network: Network) -> list[Tensor]:
    """Copy the models of some nodes, each parameter by itself: products run along memory without gaps."""
    return [part.index_select(0, index) for part in split(models, network.shapes)]


def _put_back(models: Tensor, index: Tensor, parts: Parts, network: Network) -> None:
    for whole, part in zip(split(models, network.shapes), parts, strict=True):
        whole.index_copy_(0, index, part)


def _turned(labels: Tensor, objective: Objective, classes: int) -> Tensor:
    """Return what those say who flip labels: the last class for the first, no for yes, minus for plus."""
    if is_of_classes(objective):
        return classes - 1 - labels
    return -labels if is_of_values(objective) else 1 - labels
