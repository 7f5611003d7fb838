"""Scales of groups that leave the least error: a search, since the largest weight need not decide them.

The form is ``kernels/grouping.py``'s: 4 bits are -8 to 7 with a signed scale, 8 bits -127 to 127. Half-quadratic
quantisation (Badri and Shaji 2023) searches zero points in this place; this form has none, so the scale is searched on
a grid around the largest weight's, as AWQ (Lin et al. 2023) searches how much to cut off.
"""

from typing import Final

import torch
from torch import Tensor

from ..kernels.grouping import away_from_zero

# Of the largest weight's scale. A negative one gives the -8 to the other sign. A scale below 1 cuts the largest off.
_TRIED: Final = (*(0.6 + 0.025 * step for step in range(24)), *(-0.95 - 0.05 * step for step in range(5)))
LIMITS: Final = {8: (-127, 127), 4: (-8, 7)}


def best_scales(groups: Tensor, bits: int, weights: Tensor | None = None) -> Tensor:
    """Return signed scales float32 (n, G), each one that bfloat16 holds, for float32 groups (n, G, 32).

    The squared error is the least among those tried, each column counted by ``weights`` (G, 32) if they are given.
    """
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # (n, G, 1), signed
    plain = away_from_zero(largest.abs() / 127 if bits == 8 else largest / -8)
    if bits == 8:  # a finer search changes nothing that can be measured
        return plain.squeeze(2)
    best, least = plain, torch.full_like(plain, torch.inf)
    for factor in _TRIED:
        scale = (plain * factor).to(torch.bfloat16).to(torch.float32)
        missed = (rounded(groups, scale, bits) * scale - groups).square_()
        error = (missed if weights is None else missed * weights).sum(dim=2, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(2)


def rounded(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the nearest integers that these bits hold, as floats; 0 where a scale is 0."""
    low, high = LIMITS[bits]
    return (values / torch.where(scales == 0, torch.ones_like(scales), scales)).round_().clamp_(low, high)
