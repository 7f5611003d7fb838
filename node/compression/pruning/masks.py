"""Which numbers stay: masks from scores, and how the share of what goes rises while a model is trained on.

A score says how much a number matters; the least go. Exactly as many go as were asked for, of equal ones the first, so
that equal scores give equal masks on every machine.
"""

from collections.abc import Container, Mapping
from typing import Final, Literal

import torch
from torch import Tensor

Kind = Literal["global", "layer", "n:m"]
Masks = Mapping[str, Tensor]  # bool of a parameter's shape under its name: what stays

RISING: Final = 0.5  # of all steps: behind them the masks stay, and what is left mends
UPDATES: Final = 20  # of the masks, while the share rises


def share_at(done: float, share: float) -> float:
    """Return the share that is gone when ``done`` of the rise, 0 to 1, is over: fast at first, then ever slower.

    Zhu and Gupta 2017, with none gone at the start: s (1 - (1 - t)^3).
    """
    return share * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3)


def of_all(scores: Masks, share: float) -> dict[str, Tensor]:
    """Keep the best of all numbers together."""
    together = torch.cat([each.flatten() for each in scores.values()])
    kept = best(together.unsqueeze(0), round(share * together.numel()))[0]
    parts = kept.split([each.numel() for each in scores.values()])
    return {name: part.view_as(each) for part, (name, each) in zip(parts, scores.items(), strict=True)}


def of_each(scores: Masks, share: float, *, rows: Container[str]) -> dict[str, Tensor]:
    """Keep the best of each parameter, or, of those named in ``rows``, of each output of theirs."""
    found = {}
    for name, each in scores.items():
        table = each.flatten(1) if name in rows else each.reshape(1, -1)
        found[name] = best(table, round(share * table.shape[1])).view_as(each)
    return found


def of_runs(scores: Masks, pattern: tuple[int, int]) -> dict[str, Tensor]:
    """Keep the best n of each m inputs that follow each other; a shorter rest of a row stays."""
    n, m = pattern
    found = {}
    for name, each in scores.items():
        table = each.flatten(1)
        whole = table.shape[1] // m * m
        kept = torch.ones_like(table, dtype=torch.bool)
        kept[:, :whole] = best(table[:, :whole].reshape(-1, m), m - n).view(len(table), whole)
        found[name] = kept.view_as(each)
    return found


def best(scores: Tensor, gone: int) -> Tensor:
    """Mark all but the ``gone`` least of each row of (R, C); of equal ones the first go."""
    if gone <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.kthvalue(min(gone, scores.shape[1]), dim=1, keepdim=True).values
    below, equal = scores < least, scores == least
    room = gone - below.sum(dim=1, keepdim=True)
    return ~(below | (equal & (equal.cumsum(dim=1) <= room)))


def zeroed(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    """Put zeros, in place, where a mask says so."""
    with torch.no_grad():
        for name, kept in masks.items():
            parameters[name].masked_fill_(~kept, 0.0)  # times 0 a negative number is -0, which is other bytes
