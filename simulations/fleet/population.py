"""Everybody's data in three tensors: all samples once, and which of them are whose."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# A model's raw outputs (t, K) for some of the test samples, and which these are (t,), to how good they are in the
# data's own measure and unit, as in {"MAE at 15 min, mph": 3.4}.
Measure = Callable[[npt.NDArray[np.float32], npt.NDArray[np.int64]], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """S training samples of N nodes, and a test set that is nobody's.

    ``order`` lists all nodes' samples one node after the other; those of node i are
    ``order[starts[i]:starts[i + 1]]``. Every node has one sample at least.
    """

    inputs: torch.Tensor  # (S, ...) float32, or int64 where the model embeds them
    labels: torch.Tensor  # (S,) int64 of classes; (S, K) float32 of values
    order: npt.NDArray[np.int64]  # (S',): indices into the samples
    starts: npt.NDArray[np.int64]  # (N + 1,)
    test_inputs: torch.Tensor  # (T, ...)
    test_labels: torch.Tensor  # (T,) or (T, K)
    classes: int  # outputs of the model: classes, or K
    names: tuple[str, ...] = ()  # of the silos, where nodes have names of their own
    own_tests: tuple[npt.NDArray[np.int64], ...] = ()  # by node, the test samples on which alone it is tested; or none
    measure: Measure | None = None  # called for each node that is looked at, with its outputs on its test samples

    @property
    def nodes(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Samples of each node, (N,)."""
        return np.diff(self.starts)
