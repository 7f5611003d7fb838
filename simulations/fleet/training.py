"""The local steps of all nodes between two exchanges: a block of them at a time, so that it stays in the cache.

The steps are those of the deployed trainer, plain SGD with momentum (`node/learning/trainer.py`): with gradient g of
the batch's mean loss, g += decay x w; m = beta x m + g; w -= rate x m. Nodes with the most steps come first in a
block, so those that are done leave it at the end, and nothing is computed in vain.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...node.objective import Objective, is_of_classes, is_of_values
from .batches import Batches, Ints, Plan
from .networks import Network, Parts, split
from .population import Population
from .scenario import Train

# Bytes of a block's models: what a core's second cache holds beside their batches.
_BLOCK_BYTES: Final = 768 * 1024
_PLANNED: Final = 1 << 20  # samples that batches are looked up of at once: bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """All nodes' training samples, where the training runs."""

    inputs: Tensor  # (S, ...)
    labels: Tensor  # (S, ...), and once more (2 S, ...) as liars have them, if there are any
    shift: Ints  # (N,): 0, or S for a liar's labels

    def take(self, places: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (n, B, ...) and y (n, B, ...) of samples (n, B)."""
        x, y = self.inputs.index_select(0, places.reshape(-1)), self.labels.index_select(0, labels.reshape(-1))
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


class Trainer(Protocol):
    """Where the nodes' steps are computed."""

    def run(self, before: Tensor, after: Tensor, momentum: Tensor | None, nodes: Ints, done: Ints, todo: Ints) -> None:
        """Take steps as `Training.run` does."""
        ...


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
        resting = np.ones(len(before), dtype=np.bool_)
        resting[nodes] = False
        if resting.any():
            index = torch.from_numpy(np.flatnonzero(resting)).to(before.device)
            _put_back([after], index, [before.index_select(0, index)])
        self._run(before, after, momentum, nodes, nodes, done, todo)

    def run_share(self, models: Tensor, momentum: Tensor | None, nodes: Ints, done: Ints, todo: Ints) -> None:
        """Take the steps of one of `shares`: ``models`` and ``momentum`` (n, D) are of its nodes alone, and change."""
        self._run(models, models, momentum, np.arange(len(nodes)), nodes, done, todo)

    def shares(self, nodes: Ints, todo: Ints, count: int) -> list[Ints]:
        """Cut nodes into at most ``count`` shares of whole blocks, as places in ``nodes``.

        Trained each by itself, the shares come out as they do all together, to the bit.
        """
        order = self._order(nodes, todo)
        blocks_each = -(-len(order) // (self._block * count))
        return [order[rows] for rows in blocks(len(order), self._block * max(1, blocks_each))]

    def _order(self, nodes: Ints, todo: Ints) -> Ints:
        return np.lexsort((nodes, -self._batches.counts[nodes], -todo))

    def _run(
        self, before: Tensor, after: Tensor, momentum: Tensor | None, rows: Ints, nodes: Ints, done: Ints, todo: Ints
    ) -> None:
        """Train nodes whose models are these rows."""
        order = self._order(nodes, todo)
        rows, nodes, done, todo = rows[order], nodes[order], done[order], todo[order]
        begun, ended = split(before, self._network.shapes), split(after, self._network.shapes)
        kept = None if momentum is None else split(momentum, self._network.shapes)
        start = 0
        while start < len(nodes):
            blocks_planned = _PLANNED // (int(todo[start]) * self._batches.batch_size * self._block)
            planned = slice(start, start + self._block * max(1, blocks_planned))
            plan = self._batches.of_round(nodes[planned], done[planned], todo[planned])
            self._run_planned(begun, ended, kept, rows[planned], nodes[planned], plan)
            start = planned.stop

    def _run_planned(
        self, before: Parts, after: Parts, momentum: Parts | None, at: Ints, nodes: Ints, plan: Plan
    ) -> None:
        """Train nodes that are sorted by their steps, most first, and then by the sizes of their batches."""
        device = before[0].device
        index, places = (torch.from_numpy(one).to(device) for one in (at, plan.places))
        shift = self._samples.shift[nodes]
        labels = places if not shift.any() else places + torch.from_numpy(shift).to(device)[:, None]
        share = (np.arange(plan.places.shape[2]) < plan.sizes[..., None]) / np.maximum(plan.sizes, 1)[..., None]
        shares = torch.from_numpy(share.astype(np.float32)).to(device)  # (steps, n, B)
        active = np.count_nonzero(plan.sizes, axis=1).tolist()  # (steps,): the first so many
        for rows in blocks(len(nodes), self._block):
            parts = _taken(before, index[rows])
            remembered = _taken(momentum, index[rows]) if momentum is not None else None
            for step, (count, widths) in enumerate(zip(active, plan.sizes, strict=True)):
                if (n := min(rows.stop, count) - rows.start) <= 0:
                    break
                now, width = slice(rows.start, rows.start + n), int(widths[rows].max())
                x, y = self._samples.take(places[step, now, :width], labels[step, now, :width])
                self._step(
                    [part[:n] for part in parts],
                    None if remembered is None else [part[:n] for part in remembered],
                    x, y, shares[step, now, :width],
                )  # fmt: skip
            _put_back(after, index[rows], parts)
            if momentum is not None and remembered is not None:
                _put_back(momentum, index[rows], remembered)

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


def _taken(models: Parts, index: Tensor) -> list[Tensor]:
    """Copy the models of some nodes, each parameter by itself: products run along memory without gaps."""
    return [part.index_select(0, index) for part in models]


def _put_back(models: Parts, index: Tensor, parts: Parts) -> None:
    for whole, part in zip(models, parts, strict=True):
        if whole.device.type == "cpu":
            whole.numpy()[index.numpy()] = part.numpy()  # four times as fast as index_copy_
        else:
            whole.index_copy_(0, index, part)


def _turned(labels: Tensor, objective: Objective, classes: int) -> Tensor:
    """Return what those say who flip labels: the last class for the first, no for yes, minus for plus."""
    if is_of_classes(objective):
        return classes - 1 - labels
    return -labels if is_of_values(objective) else 1 - labels
