"""Adam (Kingma and Ba 2015), and AdamW with decay apart from the gradient (Loshchilov and Hutter 2019).

In a mesh each node keeps its own moments: an average moves the model and leaves them. DiLoCo (Douillard et al. 2023)
trains so, and found no gain in sending the moments too, at three times the bytes. Where nodes' data differ much this
has a limit: each node scales its steps by its own second moments, and Chen, Li and Li (2020) show a case in which nodes
with second moments of their own do not come to where all gradients together vanish. There take `sgd`.
"""

import torch
from torch import Tensor


class Adam:
    """The direction of a step, float32 (P,), from gradients. ``buffer`` (2 P,) holds both moments, the first first."""

    gain = 1.0  # a gradient moves the model by no more than one step's size in the end

    def __init__(self, size: int, *, beta1: float, beta2: float, eps: float) -> None:
        self.buffer = torch.zeros(2 * size)
        self._first, self._second = self.buffer.split(size)
        self._beta1, self._beta2, self._eps = beta1, beta2, eps

    def direction(self, gradient: Tensor, step: int) -> Tensor:
        """Take the gradient of step number ``step`` (from 0) in; return a new tensor to step along."""
        self._first.mul_(self._beta1).add_(gradient, alpha=1 - self._beta1)
        self._second.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        first = self._first / (1 - self._beta1 ** (step + 1))
        second = self._second / (1 - self._beta2 ** (step + 1))
        direction: Tensor = first.div_(second.sqrt_().add_(self._eps))
        return direction

    def round_ended(self, moved: Tensor, way: float) -> None:
        """Hear of an average: the moments stay this node's own."""
