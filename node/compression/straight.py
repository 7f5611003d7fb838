"""Training against rounded weights, so that a model does not mind being rounded (Jacob et al. 2018, section 3).

While a batch goes forth and back each matrix is what its integers would stand for, to the nearest and with a scale for
each 32 columns (``kernels/grouping.py``); its gradient then moves the float weights, straight through the rounding
(Bengio et al. 2013). The invariant: **to round what was rounded changes nothing**, so that `quantise` makes of a module
that was settled here exactly the numbers that it was trained with. So a scale is the nearest that bfloat16 holds: the
largest weight is then 127 scales, or 8, and gives the same scale again; with scales rounded up it may become 126.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...mesh.errors import LeptonError
from ..kernels.grouping import GROUP
from . import fitting
from .calibration import matrices
from .fitting import Fit
from .folding import fold_norms
from .manifest import Bits, Trained
from .scales import rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Aware:
    """A module whose matrices hold only what integers stand for, and what was done."""

    module: nn.Module
    step: Trained
    losses: Sequence[float]  # of each step, with rounded weights


def quantise_aware(
    module: nn.Module,
    data: Sequence[Tensor],
    loss: fitting.Loss,
    bits: Bits,
    fit: Fit | None = None,
    *,
    after: fitting.After | None = None,
) -> Aware:
    """Train a copy of a module against its own rounding; `fitting.fit` says what ``data``, ``loss``, ``after`` are.

    Batch norms behind convolutions are folded first, as `quantise` does. The copy answers as the rounded module will:
    what is measured of it holds for that. Raises what `fitting.fit` does.
    """
    work = deepcopy(module)
    was_training = work.training
    fold_norms(work.eval())
    work.train(was_training)
    straight, said = Straight(work, bits), fit or Fit()
    losses = fitting.fit(work, data, loss, said, after=after, around=straight.rounded)
    straight.settle()
    return Aware(module=work.eval(), step=Trained(bits=bits, fitted_steps=said.steps), losses=losses)


class Straight:
    """The matrices of a module that `quantise` rounds, seen as rounded for a while."""

    def __init__(self, module: nn.Module, bits: int) -> None:
        self._parameters = [parameter for _, _, parameter in matrices(module)]
        self._bits = bits

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Have the module be the rounded one; gradients that are taken meanwhile stay. LeptonError for NaN."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(self._parameters, kept, strict=True):
                    parameter.copy_(before)

    def settle(self) -> None:
        """Make the module the rounded one for good."""
        with torch.no_grad():
            for parameter in self._parameters:
                if not torch.isfinite(parameter).all():
                    raise LeptonError("training diverged: weights became NaN or infinite; lower the rate")
                parameter.copy_(nearest(parameter, self._bits))


def nearest(values: Tensor, bits: int) -> Tensor:
    """Return the numbers, of the same shape (n, ...), that integers of so many bits would stand for."""
    matrix = values.flatten(1)
    groups = F.pad(matrix, (0, -matrix.shape[1] % GROUP)).unflatten(1, (-1, GROUP))  # (n, G, 32)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # (n, G, 1), signed
    scale = (largest.abs() / 127 if bits == 8 else largest / -8).to(torch.bfloat16).to(torch.float32)
    numbers = (rounded(groups, scale, bits) * scale).flatten(1)
    found: Tensor = numbers[:, : matrix.shape[1]].reshape(values.shape)
    return found
