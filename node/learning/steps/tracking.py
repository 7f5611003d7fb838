"""Leaky gradient tracking: each node corrects its gradients by how much its own rounds differ from the mesh's.

SCAFFOLD's control variates (Karimireddy et al. 2020, option II) without a server, in the manner of K-GT (Liu et al.
2024): what a node did over a round is compared with what the average did, and the difference is taken off the next
round's gradients. It needs no bytes beyond the model, because the average itself says what the others did. That is
exact where all nodes began the round with one model, as in one group; with several groups it is an estimate, and with
lost messages it drifts: so it leaks.
"""

import torch
from torch import Tensor

LEAK = 0.9  # of the correction that is kept each round: an error of one round is gone after some thirty


class Tracking:
    """The correction of one node, float32 (P,). Invariant: over nodes with equal weights the corrections sum to 0."""

    def __init__(self, size: int, *, strength: float) -> None:
        """``strength`` 1 corrects wholly, 0 not at all."""
        self.correction = torch.zeros(size)
        self._strength = strength

    def apply(self, gradient: Tensor) -> None:
        """Correct a gradient in place."""
        if self._strength:
            gradient.add_(self.correction)

    def round_ended(self, own: Tensor, average: Tensor, way: float) -> None:
        """Hear where this node stood at the end of its steps and what the average is, and the sum of its step sizes.

        ``way`` is to count what momentum makes of a step: else the correction is as many times too large, and diverges.
        """
        if self._strength and way > 0:
            self.correction.mul_(LEAK).add_(own - average, alpha=self._strength / way)
