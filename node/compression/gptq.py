"""Rounding that makes up for itself: what one column's rounding spoils, the columns behind it mend.

Frantar, Ashkboos, Hoefler and Alistarh 2022 (GPTQ), after optimal brain surgeon (Hassibi and Stork 1993): of a layer
y = W x the error (W - Q) H (W - Q)^T is made small, H = E[x x^T] the second moments of its inputs. Columns are rounded
in order; the rest of a row then moves by what the inverse of H says. Scales are searched (``scales.py``) when a group's
turn comes, on the moved weights. The invariant: **a weight that is 0 stays 0**, so that what was pruned stays pruned.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ...mesh.errors import UsageError
from ..kernels import Rounded
from ..kernels.grouping import GROUP, grouped
from .refining import refined
from .scales import best_scales, rounded

# Of the mean moment, added to each. GPTQ has 0.01; with few texts more of it keeps to the weights. Chosen by what the
# TinyStories model says of other texts of its own: divergence 0.057 with 0.1, 0.056 with 0.3, not refined 0.062.
_DAMPING: Final = 0.3


def round_nearest(weight: Tensor, bits: int) -> Rounded:
    """Round float (n, K), each weight to the nearest: what a deployment does of itself."""
    return Rounded.of(*grouped(_whole(weight), bits), bits, weight.shape[1])


def round_searched(weight: Tensor, bits: int) -> Rounded:
    """Round float (n, K) to the nearest with the best scales; needs no data."""
    groups = _whole(weight).unflatten(1, (-1, GROUP))
    scales = best_scales(groups, bits)
    integers = rounded(groups, scales.unsqueeze(2), bits).to(torch.int8)
    return Rounded.of(integers, scales.to(torch.bfloat16), bits, weight.shape[1])


def round_compensated(weight: Tensor, bits: int, moments: Tensor, *, damping: float = _DAMPING) -> Rounded:
    """Round float (n, K) so that outputs stay, by the inputs' second moments (K, K). Raises UsageError for NaN."""
    h = _damped(moments, damping)  # (K', K'), K' = K in whole groups
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    whole = _whole(weight).to(torch.float64)
    integers, scales = refined(whole, *_compensated(whole.clone(), bits, inverse), h, bits)
    return Rounded.of(integers.to(torch.int8), scales.to(torch.bfloat16), bits, weight.shape[1])


def _compensated(left: Tensor, bits: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Round the columns of (n, K') one by one, in place; ``inverse`` is upper triangular U with U^T U = H^-1."""
    stays = left != 0
    integers = torch.empty(len(left), len(inverse) // GROUP, GROUP, dtype=torch.float64)
    scales = integers.new_empty(integers.shape[:2])
    for group in range(scales.shape[1]):
        at = slice(group * GROUP, (group + 1) * GROUP)
        factor, own = inverse[at, at], left[:, at]
        cost = factor.diagonal().pow(-2).to(torch.float32)  # of an error in this column, the later ones mended
        step = best_scales(own.to(torch.float32).unsqueeze(1), bits, cost).squeeze(1).to(torch.float64)
        errors = torch.empty_like(own)
        for column in range(GROUP):
            nearest = rounded(own[:, column], step, bits) * stays[:, at.start + column]
            integers[:, group, column] = nearest
            errors[:, column] = (own[:, column] - nearest * step) / factor[column, column]
            own[:, column:] -= errors[:, column, None] * factor[column, column:]
        left[:, at.stop :] -= errors @ inverse[at, at.stop :]
        scales[:, group] = step
    return integers, scales


def _whole(weight: Tensor) -> Tensor:
    if not torch.isfinite(weight).all():
        raise UsageError("these weights hold NaN or infinity, which no integer stands for")
    return F.pad(weight.detach().to("cpu", torch.float32), (0, -weight.shape[1] % GROUP))


def _damped(moments: Tensor, damping: float) -> Tensor:
    missing = -len(moments) % GROUP
    h = F.pad(moments.to("cpu", torch.float64), (0, missing, 0, missing))
    if not torch.isfinite(h).all():
        raise UsageError("the calibration data make inputs of a layer NaN or infinite")
    mean = float(h.diagonal().sum()) / len(moments)
    h.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return h
