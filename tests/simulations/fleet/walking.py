"""Models that walk instead of learning, in machines on virtual time and in rows: steps depend on where a model is."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lepton.simulations.fleet.exchange import Exchange, Mixed, Moment

DIMENSION = 1003


class Walker:
    """Stands where a trainer does."""

    def __init__(self, number: int, start: np.ndarray) -> None:
        self.samples = 10 + 7 * number
        self._dice = np.random.default_rng(number)
        self._x = start.copy()

    def vector(self) -> np.ndarray:
        return self._x.copy()

    def run_steps(self, steps: int) -> None:
        self._x = (self._x * 0.9 + 0.02 * self._dice.standard_normal(self._x.size)).astype(np.float32)

    def adopt(self, vector: np.ndarray, *, averaged: bool = False) -> None:
        self._x = vector.copy()

    def evaluate(self) -> Any:
        return SimpleNamespace(accuracy=0.0)


def walkers(count: int, dimension: int = DIMENSION) -> list[Walker]:
    start = np.random.default_rng(99).standard_normal(dimension).astype(np.float32) * np.float32(0.1)
    return [Walker(number, start) for number in range(count)]


def stacked(walking: Sequence[Walker]) -> torch.Tensor:
    return torch.from_numpy(np.stack([walker.vector() for walker in walking]))


def moment(before: torch.Tensor, after: torch.Tensor, **changes: Any) -> Moment:
    nodes = len(before)
    settings: dict[str, Any] = {
        "round": 0, "here": np.ones(nodes, dtype=bool), "weights": np.ones(nodes), "loss": 0.0,
        "dice": np.random.default_rng(5),
    }  # fmt: skip
    return Moment(before=before, after=after, **(settings | changes))


def random_models(nodes: int, dimension: int = DIMENSION, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((nodes, dimension)).astype(np.float32))


def played(exchange: Exchange, walking: Sequence[Walker], rounds: int) -> tuple[np.ndarray, list[Mixed]]:
    """Let rows walk and exchange; return the models and what each round came to."""
    mixed = []
    for round_ in range(rounds):
        before = stacked(walking)
        for walker in walking:
            walker.run_steps(1)
        weights, dice = np.array([float(walker.samples) for walker in walking]), np.random.default_rng(round_)
        mixed.append(exchange.mix(moment(before, stacked(walking), round=round_, dice=dice, weights=weights)))
        for walker, model in zip(walking, mixed[-1].models.numpy(), strict=True):
            walker.adopt(model)
    return stacked(walking).numpy(), mixed
