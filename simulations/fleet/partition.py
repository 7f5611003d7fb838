"""Who holds what: samples given out to nodes evenly, by label, by size, or as they came.

**Invariant**: every sample is held exactly once, and every node holds one at least. Where there are fewer samples than
nodes need, all samples are copied equally often first, and then every copy is held exactly once. Only `silo` leaves
samples over: those of silos that are no node. All is computed on the owners of all samples at once, (S,), so ten
thousand nodes take no longer than ten.
"""

import heapq

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from .scenario import Data

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def partition(
    data: Data, labels: Labels, nodes: int, rng: np.random.Generator, *, silos: Indices | None = None
) -> tuple[Indices, Indices]:
    """Return ``order`` and ``starts`` of a `Population`: node i holds the samples ``order[starts[i]:starts[i + 1]]``.

    ``labels`` are classes, int64 (S,), or values, float32 (S, K); ``silos`` says whose each sample was, (S,).

    Raises UsageError where the split makes no sense for these data.
    """
    if nodes == 1:  # all in one place, however it is split
        return np.arange(len(labels)), np.array([0, len(labels)])
    if data.split == "silo":
        return by_owner(_silos(silos, nodes), nodes)
    needed = nodes * (data.shards if data.split == "shards" else 1)
    copied = np.tile(np.arange(len(labels)), -(-needed // len(labels)))
    match data.split:
        case "even":
            owner = rng.permutation(np.arange(len(copied)) % nodes)
        case "dirichlet":
            owner = _by_label(labels[copied], nodes, data.alpha, rng)
        case "shards":
            owner = _by_shard(labels[copied], nodes, data.shards, rng)
        case "quantity":
            owner = _by_size(len(copied), nodes, data.alpha, rng)
    order, starts = by_owner(serve_all(owner, nodes, rng), nodes)
    return copied[order], starts


def by_owner(owner: Indices, nodes: int) -> tuple[Indices, Indices]:
    """Sort samples by owner; those of owner -1 are nobody's."""
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[owner >= 0], minlength=nodes))])
    return order[np.count_nonzero(owner < 0) :], starts.astype(np.int64)


def _by_label(labels: Labels, nodes: int, alpha: float, rng: np.random.Generator) -> Indices:
    """Draw every class's shares of the nodes (Hsu et al. 2019, section 3)."""
    if labels.ndim != 1:
        raise UsageError("data.split: 'dirichlet' goes by classes, and these data have values; take 'quantity'.")
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        owner[rng.permutation(members)] = _shared(len(members), rng.dirichlet(np.full(nodes, alpha)))
    return owner


def _by_size(samples: int, nodes: int, alpha: float, rng: np.random.Generator) -> Indices:
    """Draw the nodes' sizes; whichever samples."""
    return rng.permutation(_shared(samples, rng.dirichlet(np.full(nodes, alpha))))


def _shared(samples: int, shares: npt.NDArray[np.float64]) -> Indices:
    """Return an owner for each of so many samples, in the owners' order, by shares that sum to 1."""
    ends = np.rint(np.cumsum(shares) * samples).astype(np.int64)
    ends[-1] = samples
    return np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))


def _by_shard(labels: Labels, nodes: int, shards: int, rng: np.random.Generator) -> Indices:
    """Sort by label, cut into shards, deal them out (McMahan et al. 2017, section 3). Values are sorted as well."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise UsageError(f"data.split: 'shards' sorts samples, and these have {labels.shape[1]} values each.")
    order = np.argsort(labels.reshape(len(labels)), kind="stable")
    shard = np.arange(len(order)) * (nodes * shards) // len(order)
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = rng.permutation(np.arange(nodes * shards) % nodes)[shard]
    return owner


def _silos(silos: Indices | None, nodes: int) -> Indices:
    """Make the first silos nodes; samples of the others are nobody's, -1."""
    if silos is None:
        raise UsageError("data.split: these data have no silos of their own; take 'even', 'dirichlet' or 'quantity'.")
    if nodes > (found := int(silos.max()) + 1):
        raise UsageError(f"nodes: these data have {found} silos, so at most {found} nodes with the split 'silo'.")
    return np.where(silos < nodes, silos, -1)


def serve_all(owner: Indices, nodes: int, rng: np.random.Generator) -> Indices:
    """Give a random sample of whoever is richest, again and again, to each who has none; enough samples are there."""
    counts = np.bincount(owner, minlength=nodes)
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return owner
    shuffled = rng.permutation(len(owner))
    order = shuffled[np.argsort(owner[shuffled], kind="stable")]  # by owner, each one's in random order
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    given = order[place < np.repeat(_given(counts, len(empty)), counts)]
    owner = owner.copy()
    owner[given] = empty
    return owner


def _given(counts: Indices, wanted: int) -> Indices:
    """How many samples each gives, (N,), where the richest gives the next one."""
    richest = [(-int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(richest)
    given = np.zeros(len(counts), dtype=np.int64)
    for _ in range(wanted):
        size, node = heapq.heappop(richest)
        given[node] += 1
        heapq.heappush(richest, (size + 1, node))
    return given
