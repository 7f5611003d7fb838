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
from typing import TYPE_CHECKING, Final

import numpy as np

from ...mesh import limits, tensors
from ...mesh.calls import Calls
from ...mesh.errors import LeptonError, PeerError
from ...mesh.identity import PeerId
from ..shapes import Vector
from .messages import State, StateWanted

if TYPE_CHECKING:
    from .trainer import Trainer

# Measured on the digits, 4 nodes with Dirichlet(0.3) and (0.05) parts, MLPs and CNN, rounds 1 to 40: the mean of a
# round had at most 1.5 times the loss of guessing on any held-out part; such a mean scaled by 30 had more than
# 3 times in 20 of 24 cases (the others: a sigmoid network, which saturates).
LOSS_RATIO_MAX: Final = 3.0
METHOD: Final = "train.state"
_BYTES_A_SECOND_MIN: Final = 256 * limits.KIB  # a donor that is slower is not waited for: a slow uplink at home


@dataclass(frozen=True, slots=True, eq=False)
class Donation:
    """A peer's model: the round that it enters next, the model's name if a round agreed on one, float32 (D,)."""

    peer: PeerId
    round: int
    reference: bytes
    vector: Vector


class _Taken:
    """A model as it comes, straight into memory of its size: what a donor announces allocates nothing."""

    def __init__(self, dimension: int) -> None:
        self.vector = np.empty(dimension, dtype=np.float32)
        self.size_bytes = 0
        self._bytes = self.vector.view(np.uint8)

    def write(self, data: bytes) -> None:
        """Put the next bytes in; the call lets no more come than there is room for."""
        self._bytes[self.size_bytes : self.size_bytes + len(data)] = np.frombuffer(data, dtype=np.uint8)
        self.size_bytes += len(data)


async def ask(calls: Calls, peer: PeerId, *, scope: str, version: int, dimension: int, rounds: int) -> Donation:
    """Ask a peer for its model of a task. Raises PeerError for one that cannot be, else LeptonError: it gives none."""
    taken = _Taken(dimension)
    timeout_s = min(limits.CALL_TIMEOUT_S_MAX, limits.CALL_TIMEOUT_S + taken.vector.nbytes / _BYTES_A_SECOND_MIN)
    answer = await calls.fetch(
        peer, METHOD, StateWanted(version=version), State, taken,
        scope=scope, size_bytes_max=taken.vector.nbytes, timeout_s=timeout_s,
    )  # fmt: skip
    if answer.message.round > rounds:
        raise PeerError(f"It claims round {answer.message.round} of {rounds}.")
    if taken.size_bytes != taken.vector.nbytes:
        raise PeerError(f"Its model has {taken.size_bytes:,} bytes; {taken.vector.nbytes:,} are expected.")
    vector = tensors.require(taken.vector, dtype="float32", shape=(dimension,), what="Its model")
    return Donation(peer, answer.message.round, answer.message.reference, np.asarray(vector, dtype=np.float32))


def judge(trainer: "Trainer", donations: Sequence[Donation]) -> tuple[Donation | None, dict[PeerId, str]]:
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
