"""What the engine and an exchange say to each other in a round: models in, models out, and what that cost.

An exchange is one way in which nodes average (`Scenario.averaging`); it draws nothing but from the generator that it is
handed, so a round is a function of its inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class Remembering(Protocol):
    """An exchange that learns from round to round, as the machines' gates do: a checkpoint has to hold that too."""

    @property
    def memory(self) -> Mapping[str, npt.NDArray[Any]]:
        """What it knows after the last round, by name; to be copied, since it changes."""
        ...

    def recall(self, memory: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""
        ...
