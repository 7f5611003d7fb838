"""What the policy `trusted` lets into a mean, for all nodes at once: the limits and memories of `gossip/gate.py`."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.config import Config

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class Gates:
    """The gates of N nodes: each one's last norms of others' values, as multiples of its own."""

    def __init__(self, nodes: int, config: Config) -> None:
        self._ratio_max = config.norm_ratio_max
        self.history: Doubles = np.full((nodes, config.norm_history), np.inf)
        self.seen: Rows = np.zeros(nodes, dtype=np.int64)  # norms that each has ever noted

    def limits(self) -> Tensor:
        """Return the largest norm that each lets in as a multiple of its own, float32 (N,)."""
        held = np.minimum(self.seen, self.history.shape[1])
        middle = np.maximum(held - 1, 0) // 2  # the lower median; what is not held yet sorts behind
        ranked = np.partition(self.history, np.unique(middle), axis=1)
        medians = ranked[np.arange(len(held)), middle]
        limits = self._ratio_max * np.maximum(1.0, np.where(held > 0, medians, 1.0))
        return torch.from_numpy(limits.astype(np.float32))

    def settle(self, rows: Rows, ratios: Doubles) -> None:
        """End a round: ``ratios`` (R, K) are what the nodes ``rows`` saw of K others; they count from the next on."""
        length = self.history.shape[1]
        noted = np.sort(ratios, axis=1)[:, -length:]
        place = (self.seen[rows, None] + np.arange(noted.shape[1])) % length
        self.history[rows[:, None], place] = noted
        self.seen[rows] += noted.shape[1]


def clipped(weights: Tensor, admitted: Tensor, ratio_max: float) -> Tensor:
    """Return what each counts with in a mean: `clip_weights` of those who are let in, as shares of 1.

    ``weights`` and ``admitted`` are (..., K); of each K one at least is let in. float64 (..., K).
    """
    there = torch.where(admitted, weights, torch.inf).sort(-1).values
    middle = (admitted.sum(-1, keepdim=True) - 1) // 2
    limit = ratio_max * there.gather(-1, middle)
    heavy = torch.where(admitted, torch.minimum(weights, limit), 0.0)
    return heavy / heavy.sum(-1, keepdim=True)
