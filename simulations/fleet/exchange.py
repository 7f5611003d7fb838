"""What the engine and an exchange say to each other in a round: models in, models out, and what that cost.

An exchange is one way in which nodes average (`Scenario.averaging`); it draws nothing but from the generator that it is
handed, so a round is a function of its inputs.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One round as the exchange sees it."""

    round: int
    before: torch.Tensor  # (N, D) float32: the models at the round's start
    after: torch.Tensor  # (N, D) float32: after local training (attackers' as they send them); may be overwritten
    here: npt.NDArray[np.bool_]  # (N,): who takes part in this round
    weights: npt.NDArray[np.float64]  # (N,): samples that each trained on, at least 1
    loss: float  # of messages between two nodes
    dice: np.random.Generator  # for this round alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """What came of it."""

    models: torch.Tensor  # (N, D) float32; who is not here keeps what it had
    bytes_sent: npt.NDArray[np.int64]  # (N,): up
    bytes_received: npt.NDArray[np.int64]  # (N,): down
    hops: int  # messages one after the other: how often a latency is paid
    averaged: npt.NDArray[np.int64]  # (N,): how many nodes' models each now holds a mean of, itself counted


class Exchange(Protocol):
    """One way to average."""

    def mix(self, moment: Moment) -> Mixed:
        """Return the models after one exchange."""
        ...
