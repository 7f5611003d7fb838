"""Integers and scales made better in turns, each the best there is while the others stay.

Of a rounded layer the error (W - Q) H (W - Q)^T is a square in every single weight, so its best integer is known in
closed form while all others stay: coordinate descent (QuantEase, Behdin et al. 2023). It is one in all scales of a row
together too: a small linear system. The invariant: **neither step makes the error larger**, apart from the rounding of
scales to bfloat16. A weight that is 0 stays 0.
"""

from typing import Final

import torch
from torch import Tensor

from ..kernels.grouping import GROUP
from .scales import rounded

# On the TinyStories model the first 3 bring most, and behind 10 nothing moves.
SWEEPS: Final = 10
_NUMBERS_MAX: Final = 2**24  # of the linear systems that are solved at once: 128 MiB


def refined(weight: Tensor, integers: Tensor, scales: Tensor, h: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return better integers (n, G, 32) and scales (n, G) for float64 (n, 32 G) and moments (32 G, 32 G).

    ``integers`` and ``scales`` are float64 here; the scales that are returned are numbers that bfloat16 holds.
    """
    for _ in range(SWEEPS):
        integers = _integers(weight, integers, scales, h, bits)
        scales = _scales(weight, integers, scales, h)
    return integers, scales


def _integers(weight: Tensor, integers: Tensor, scales: Tensor, h: Tensor, bits: int) -> Tensor:
    integers, stays = integers.clone(), weight.unflatten(1, (-1, GROUP)) != 0
    slope = ((integers * scales.unsqueeze(2)).flatten(1) - weight) @ h  # half the error's, by each weight
    for group, step in enumerate(scales.unbind(1)):
        at = slice(group * GROUP, (group + 1) * GROUP)
        moved, block, own = torch.zeros_like(slope[:, at]), h[at, at], slope[:, at].clone()
        for column in range(GROUP):
            before = integers[:, group, column]
            best = before * step - own[:, column] / block[column, column]
            after = rounded(best, step, bits) * stays[:, group, column]
            moved[:, column] = (after - before) * step
            own += moved[:, column, None] * block[column]
            integers[:, group, column] = after
        slope += moved @ h[at]
    return integers


def _scales(weight: Tensor, integers: Tensor, scales: Tensor, h: Tensor) -> Tensor:
    """Solve for the scales of each row; where a row's integers say nothing of some, those stay."""
    groups = integers.shape[1]
    rows = max(_NUMBERS_MAX // groups**2, 1)
    parts = zip(weight.split(rows), integers.split(rows), scales.split(rows), strict=True)
    return torch.cat([_solved(*part, h) for part in parts])


def _solved(weight: Tensor, integers: Tensor, scales: Tensor, h: Tensor) -> Tensor:
    groups = integers.shape[1]
    system = torch.empty(len(weight), groups, groups, dtype=torch.float64)
    for group in range(groups):
        pushed = integers[:, group] @ h[group * GROUP : (group + 1) * GROUP]  # (n, 32 G)
        system[:, group] = (pushed.unflatten(1, (groups, GROUP)) * integers).sum(2)
    wanted = ((weight @ h).unflatten(1, (groups, GROUP)) * integers).sum(2)
    empty = system.diagonal(dim1=1, dim2=2) <= 0  # a group of zeros: its row and column are 0
    system.diagonal(dim1=1, dim2=2).add_(empty.to(torch.float64))
    solved, wrong = torch.linalg.solve_ex(system, wanted)
    keep = empty | (wrong > 0).unsqueeze(1) | ~torch.isfinite(solved)
    return torch.where(keep, scales, solved.to(torch.bfloat16).to(torch.float64))
