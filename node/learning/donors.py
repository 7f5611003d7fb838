"""Whose model a node takes that comes late or fell behind: the better of two on its own held-out samples.

A donor that lies can give any numbers. So nothing is taken on its word: what is not finite, not of this model or of a
round that the task does not have is refused, and so is a model that does absurdly here. By the rule, its loss must be
at most three times the larger of two: that of guessing, and that of the model that this node has now. What lies within
the rule (a small network with its signs flipped may do no worse than guessing) is taken only where the other donor's is
worse still, and the next rounds mix it with what the others have.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...mesh import tensors
from ...mesh.calls import Calls
from ...mesh.errors import LeptonError, PeerError
from ...mesh.identity import PeerId
from ..models import Vector
from .messages import State, StateWanted
from .trainer import Trainer

# Measured on the digits, 4 nodes with Dirichlet(0.3) and (0.05) parts, MLPs and CNN, rounds 1 to 40: the mean of a
# round had at most 1.5 times the loss of guessing on any held-out part; such a mean scaled by 30 had more than
# 3 times in 20 of 24 cases (the others: a sigmoid network, which saturates).
LOSS_RATIO_MAX: Final = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Donation:
    """A peer's model: the round that it enters next, the model's name if a round agreed on one, float32 (D,)."""

    peer: PeerId
    round: int
    reference: bytes
    vector: Vector


async def ask(calls: Calls, peer: PeerId, *, scope: str, version: int, dimension: int, rounds: int) -> Donation:
    """Ask a peer for its model of a task. Raises PeerError for one that cannot be, else LeptonError: it gives none."""
    answer = await calls.call(peer, "train.state", StateWanted(version=version), State, scope=scope)
    if len(answer.arrays) != 1:
        raise PeerError(f"It sent {len(answer.arrays)} tensors where its model is one.")
    if answer.message.round > rounds:
        raise PeerError(f"It claims round {answer.message.round} of {rounds}.")
    given = tensors.require(answer.arrays[0], dtype="float32", shape=(dimension,), what="Its model")
    return Donation(peer, answer.message.round, answer.message.reference, np.array(given, dtype=np.float32))


def judge(trainer: Trainer, donations: Sequence[Donation]) -> tuple[Donation | None, dict[PeerId, str]]:
    """Return the best of these, if any will do, and why which others will not. Takes the time of three evaluations."""
    return choose(
        donations,
        lambda donation: trainer.try_out(donation.vector).loss,
        floor=trainer.loss_of_guessing(),
        have=trainer.evaluate().loss,
    )


def choose(
    donations: Sequence[Donation], loss_of: Callable[[Donation], float], *, floor: float, have: float
) -> tuple[Donation | None, dict[PeerId, str]]:
    """Return the one with the least loss, of equals the furthest, and why which others were refused by the rule.

    ``floor`` is the loss of guessing, ``have`` that of the model that this node has.
    """
    loss_max = LOSS_RATIO_MAX * max(floor, have if math.isfinite(have) else 0.0)
    good: list[tuple[float, int, Donation]] = []
    refused: dict[PeerId, str] = {}
    for donation in donations:
        try:
            loss = loss_of(donation)
        except LeptonError as error:
            refused[donation.peer] = str(error)
            continue
        if loss <= loss_max:  # false for NaN
            good.append((loss, -donation.round, donation))
        else:
            refused[donation.peer] = (
                f"Its loss on this node's held-out samples is {loss:.3g}; at most {loss_max:.3g} is let in."
            )
    best = min(good, key=lambda one: one[:2], default=None)
    return best[2] if best is not None else None, refused
