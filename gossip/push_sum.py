"""Statistics of a whole mesh (counts, means of metrics, its size) with nobody in charge: push-sum (Kempe 2003).

In its running-sum form (Hadjicostis, Vaidya and Dominguez-Garcia 2016): a message carries all that its sender ever
gave to this peer, so a lost message delays mass and never destroys it. Not for models: under loss it mixes too slowly.

Invariant: the mass of all peers, plus what each has given to each other one and that one has not yet taken, never
changes. What a crashed peer held is gone with it.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import BadContribution, BadSetup
from .events import Expired

WEIGHT_MIN = 1e-9  # who hears from nobody keeps the rest: thirty halvings, before the digits wear out
VALUES_MAX = 4096  # a class histogram fits; a model does not, and should not


class Given(msgspec.Struct, frozen=True, kw_only=True, tag="given", forbid_unknown_fields=True):
    """All that the sender has given to the receiver since the sender's `epoch` began: values and weight."""

    epoch: int
    sequence: int
    values: Annotated[tuple[float, ...], msgspec.Meta(max_length=VALUES_MAX)]
    weight: float


@dataclass(frozen=True, slots=True)
class ReceivedMass:
    """A message arrived from `peer`, whose identity the transport has proved."""

    peer: str
    given: Given


@dataclass(frozen=True, slots=True)
class SendMass:
    """Send `given` to `peer`; if it is lost, the next one makes up for it."""

    peer: str
    given: Given


class PushSum:
    """One peer's side. `mean` converges to the weighted mean of everyone's values."""

    def __init__(
        self,
        values: tuple[float, ...],
        *,
        neighbours: tuple[str, ...],
        interval_s: float,
        rng: np.random.Generator,
        now: float,
        weight: float = 1.0,
        epoch: int = 0,
    ) -> None:
        """Start with these values and weight; `epoch` has to grow from one start of this node to the next.

        Raises:
            BadSetup: a value is not finite, or the weight is not positive.
        """
        if not (all(map(math.isfinite, values)) and math.isfinite(weight) and weight > 0):
            raise BadSetup(f"push-sum needs finite values and a positive weight: got {values} and {weight}")
        self.mass = np.array([*(value * weight for value in values), weight], dtype=np.float64)  # (k + 1,)
        self.deadline = now + interval_s
        self._neighbours, self._interval_s, self._rng, self._epoch = neighbours, interval_s, rng, epoch
        self._sequence = 0
        self._given = {peer: np.zeros_like(self.mass) for peer in neighbours}
        self._taken: dict[str, tuple[int, int, NDArray[np.float64]]] = {}  # epoch, sequence, running sum

    @property
    def mean(self) -> NDArray[np.float64]:
        """One's present estimate, float64 (k,)."""
        estimate: NDArray[np.float64] = self.mass[:-1] / self.mass[-1]
        return estimate

    def handle(self, event: ReceivedMass | Expired, now: float) -> list[SendMass]:
        """Take in mass, or give half of one's own to a neighbour drawn at random.

        Raises:
            BadContribution: the message cannot be; nothing has changed.
        """
        if isinstance(event, ReceivedMass):
            self._take(event.peer, event.given)
            return []
        if now < self.deadline or not self._neighbours:
            return []
        self.deadline = now + self._interval_s
        if self.mass[-1] < WEIGHT_MIN:
            return []
        return [self._give(self._neighbours[int(self._rng.integers(len(self._neighbours)))])]

    def _give(self, peer: str) -> SendMass:
        self._sequence += 1
        half = self.mass / 2
        self.mass -= half
        self._given[peer] += half
        *values, weight = self._given[peer].tolist()
        return SendMass(peer, Given(epoch=self._epoch, sequence=self._sequence, values=tuple(values), weight=weight))

    def _take(self, peer: str, given: Given) -> None:
        total = np.array([*given.values, given.weight], dtype=np.float64)
        if total.shape != self.mass.shape or not np.isfinite(total).all():
            raise BadContribution(f"{self.mass.size} finite numbers are due, got {total.tolist()}", peer)
        epoch, sequence, taken = self._taken.get(peer, (-1, -1, np.zeros_like(self.mass)))
        if given.epoch > epoch:  # it was started anew, and gives from nothing
            sequence, taken = -1, np.zeros_like(self.mass)
        elif given.epoch < epoch or given.sequence <= sequence:
            return  # a newer message, that contains this one's mass, was faster
        if total[-1] < taken[-1]:
            raise BadContribution(f"it takes back weight: {taken[-1]} became {total[-1]}", peer)
        self.mass += total - taken
        self._taken[peer] = given.epoch, given.sequence, total
