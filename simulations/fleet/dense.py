"""Layers of weights and biases for n models at once, forward and backward written out in batched products.

With a_0 = x, z_l = W_l a_(l-1) + b_l, a_l = f(z_l), and s_l = d loss / d z_l (Rumelhart et al. 1986):
dW_l = s_l a_(l-1)^T, db_l = the sum of s_l, s_(l-1) = W_l^T s_l * f'(z_(l-1)).
"""

from typing import Final

import torch
from torch import Tensor

from ...node.objective import Objective
from .networks import Parts
from .slopes import slopes_of

_threshold_backward: Final = torch.ops.aten.threshold_backward  # the ReLU's own way back, in one pass
_sigmoid_backward: Final = torch.ops.aten.sigmoid_backward


class DenseNetwork:
    """Linear models and multi-layer perceptrons."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], objective: Objective, *, sigmoid: bool) -> None:
        self.shapes = shapes  # W_1, b_1, W_2, ...
        self._sigmoid = sigmoid
        self._objective = objective

    def descend(
        self, parts: Parts, x: Tensor, y: Tensor, share: Tensor, *, into: Parts, keep: float, scale: float
    ) -> None:
        inputs, outputs = self._forward(parts, x.flatten(2))
        slopes = slopes_of(self._objective, outputs, y, share)  # (n, K, B)
        for layer in range(len(inputs) - 1, -1, -1):
            weight, bias = into[2 * layer], into[2 * layer + 1]
            back = torch.bmm(slopes.transpose(1, 2), parts[2 * layer]) if layer else slopes  # (n, B, inputs)
            weight.baddbmm_(slopes, inputs[layer], beta=keep, alpha=scale)
            total = slopes.sum(dim=2)
            bias.mul_(keep).add_(total, alpha=scale) if keep != 1 else bias.add_(total, alpha=scale)
            if layer:
                slopes = self._through(back, inputs[layer]).transpose(1, 2)

    def outputs(self, parts: Parts, x: Tensor) -> Tensor:
        a = x.flatten(1).t()  # (F, T)
        for layer in range(0, len(parts), 2):
            weight, bias = parts[layer], parts[layer + 1][:, :, None]
            if layer == 0:  # the samples are the same for all: one product for all models
                n, rows, columns = weight.shape
                z = torch.mm(weight.reshape(n * rows, columns), a).view(n, rows, -1).add_(bias)
            else:
                z = torch.baddbmm(bias, weight, a)
            a = self._activate(z) if layer + 2 < len(parts) else z
        return a

    def _forward(self, parts: Parts, a: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return every layer's inputs, (n, B, inputs) each, and the last one's outputs (n, K, B)."""
        inputs = [a]
        for layer in range(0, len(parts) - 2, 2):
            z = torch.baddbmm(parts[layer + 1][:, None, :], a, parts[layer].transpose(1, 2))
            a = self._activate(z)
            inputs.append(a)
        return inputs, torch.baddbmm(parts[-1][:, :, None], parts[-2], a.transpose(1, 2))

    def _activate(self, z: Tensor) -> Tensor:
        return z.sigmoid_() if self._sigmoid else z.relu_()

    def _through(self, back: Tensor, a: Tensor) -> Tensor:
        out: Tensor = _sigmoid_backward(back, a) if self._sigmoid else _threshold_backward(back, a, 0)
        return out
