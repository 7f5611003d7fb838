"""Momentum: plain, or of what the whole mesh did (quasi-global).

Plain momentum remembers one's own gradients; where nodes' data differ it carries each of them off on its own way.
Quasi-global momentum (Lin, Karimireddy, Stich and Jaggi 2021) remembers how the model moved over whole rounds, averages
included, and costs no extra bytes.
"""

import torch
from torch import Tensor

from ..settings import MomentumKind


class Momentum:
    """The direction of a step, float32 (P,), from gradients."""

    def __init__(self, size: int, *, kind: MomentumKind, beta: float) -> None:
        self.buffer = torch.zeros(size)
        self._kind, self._beta = kind, beta

    @property
    def gain(self) -> float:
        """How far a gradient moves the model in the end, in step sizes: plain momentum repeats it again and again."""
        return 1 / (1 - self._beta) if self._kind == "plain" else 1.0

    def direction(self, gradient: Tensor, _step: int = 0) -> Tensor:
        """Return what to step along; plain momentum takes the gradient in."""
        if self._kind == "plain":
            return self.buffer.mul_(self._beta).add_(gradient)
        return gradient.add(self.buffer, alpha=self._beta)

    def round_ended(self, moved: Tensor, way: float) -> None:
        """Hear how far the model moved over a round (from its start to the average), and the sum of its step sizes."""
        if self._kind == "quasi_global" and way > 0:
            self.buffer.mul_(self._beta).add_(moved, alpha=-(1 - self._beta) / way)
