"""Dividing one data set among nodes as unevenly as life does: Dirichlet shares of each class (Hsu 2019, section 3)."""

import heapq

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from .formats.checks import Targets

Indices = npt.NDArray[np.int64]


def partition_dirichlet(
    y: Targets, nodes: int, alpha: float, rng: np.random.Generator, *, least: int = 10
) -> list[Indices]:
    """Give every sample to exactly one of ``nodes``: a list of sorted index arrays into ``y`` (n,), int64 labels.

    A small ``alpha`` (0.1) gives nodes one or two classes each, a large one (100) gives all nodes the same mix. A node
    that drew fewer than ``least`` samples takes random ones from the richest node: nobody can learn from nothing, and
    drawing again until all are served, as is usual, may never end with many nodes.

    Raises UsageError when there are fewer than ``nodes * least`` samples.
    """
    if nodes < 1 or not alpha > 0 or least < 0:
        raise UsageError(f"nodes={nodes}, alpha={alpha}, least={least}: give 1 node or more, alpha > 0, least >= 0")
    if y.ndim != 1:
        raise UsageError(f"data are divided by their labels (n,), not by values {y.shape}")
    if len(y) < nodes * least:
        raise UsageError(f"{len(y)} samples cannot give {nodes} nodes {least} each; use fewer nodes")
    parts: list[list[int]] = [[] for _ in range(nodes)]
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        ends = (np.cumsum(rng.dirichlet(np.full(nodes, alpha)))[:-1] * len(members)).astype(np.int64)
        for part, share in zip(parts, np.split(members, ends), strict=True):
            part.extend(share.tolist())
    _raise_to(least, parts, rng)
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _raise_to(least: int, parts: list[list[int]], rng: np.random.Generator) -> None:
    # Those that take end at `least` and, while anyone is below it, someone who never took has more: the top is true.
    richest = [(-len(part), node) for node, part in enumerate(parts)]
    heapq.heapify(richest)
    for poor in parts:
        while len(poor) < least:
            size, node = heapq.heappop(richest)
            poor.append(parts[node].pop(int(rng.integers(len(parts[node])))))
            heapq.heappush(richest, (size + 1, node))
