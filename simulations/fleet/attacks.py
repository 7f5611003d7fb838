"""What bad nodes send instead of their models, for all of them at once: the attacks of `simulations/attacks.py`.

Attackers know everything: what honest nodes send in this round, and where those stood before. `label_flip` is not here:
it poisons data, and its models are sent as they are.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .scenario import AttackKind

SIZE_MAX = 1e6  # of a number that is sent: what is larger is refused by everybody, or clipped by a codec

Attack = Callable[["Knowledge", Tensor, np.random.Generator], Tensor]
"""From what is known and the models (B, D) that attackers would honestly send to those that they do send, (B, D)."""


class Knowledge:
    """What attackers know of the honest nodes: their models (H, D) and the mean of these a round ago, (D,)."""

    def __init__(self, before: Tensor, after: Tensor, honest: Tensor) -> None:
        """``honest`` are the rows of those who take part."""
        self.rows, self._after = honest, after
        self.mean = after.index_select(0, honest).mean(0)
        self.last = before.index_select(0, honest).mean(0)

    @property
    def spread(self) -> float:
        """The standard deviation of all honest numbers."""
        return float(self._after.index_select(0, self.rows).std(correction=0))

    def distances(self) -> Tensor:
        """Return how far each honest model is from their mean, (H,)."""
        lengths: Tensor = torch.linalg.vector_norm(self._after.index_select(0, self.rows) - self.mean, dim=1)
        return lengths


def attack(
    kind: AttackKind, before: Tensor, after: Tensor, *, here: npt.NDArray[np.bool_], bad: npt.NDArray[np.bool_],
    dice: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Replace in ``after`` (N, D) what those who are ``bad`` and ``here`` send, and return what they had.

    It is for the caller to give them back (`give_back`) when all have mixed: an attacker takes in nothing of others.
    """
    liars, honest = (torch.from_numpy(np.flatnonzero(who & here)).to(after.device) for who in (bad, ~bad))
    own = after.index_select(0, liars)
    if kind in ATTACKS and len(liars) and len(honest):
        sent = ATTACKS[kind](Knowledge(before, after, honest), own, dice)
        after.index_copy_(0, liars, sent.nan_to_num_(posinf=SIZE_MAX, neginf=-SIZE_MAX).clamp_(-SIZE_MAX, SIZE_MAX))
    return own


def give_back(
    kind: AttackKind, models: Tensor, own: Tensor, *, here: npt.NDArray[np.bool_], bad: npt.NDArray[np.bool_]
) -> None:
    """Let attackers go on from what they had, as `attack` returned it; who only has false labels mixes like others."""
    if kind in ATTACKS:
        models.index_copy_(0, torch.from_numpy(np.flatnonzero(bad & here)).to(models.device), own)


def _sign_flip(known: Knowledge, own: Tensor, _dice: np.random.Generator) -> Tensor:
    """Step the other way."""
    return known.last - 4.0 * (own - known.last)


def _scaled(known: Knowledge, own: Tensor, _dice: np.random.Generator) -> Tensor:
    """Take ten times the honest step, to count ten times."""
    return known.last + 10.0 * (own - known.last)


def _replacement(known: Knowledge, own: Tensor, dice: np.random.Generator) -> Tensor:
    """Send noise of the honest models' size, blown up to replace the mean (Bagdasaryan et al. 2020)."""
    return known.mean + len(known.rows) * (_normal(own, dice) * known.spread - known.mean)


def _noise(known: Knowledge, own: Tensor, dice: np.random.Generator) -> Tensor:
    """Send a random model of the honest ones' size: what a broken device might."""
    return _normal(own, dice) * known.spread


def _insider(known: Knowledge, own: Tensor, _dice: np.random.Generator) -> Tensor:
    """Stay within the honest distances and push against the step of all, so that selection cannot see it."""
    step = known.mean - known.last
    length, radius = torch.linalg.vector_norm(step), torch.quantile(known.distances(), 0.25)
    return (known.mean - step * (radius / length if length else 0.0)).expand_as(own).clone()


def _normal(like: Tensor, dice: np.random.Generator) -> Tensor:
    return torch.from_numpy(dice.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.device)


ATTACKS: Mapping[AttackKind, Attack] = {
    "sign_flip": _sign_flip,
    "scaled": _scaled,
    "replacement": _replacement,
    "noise": _noise,
    "insider": _insider,
}
