"""The mean of a round in which members die: that of those who are named, to the codec's error, and not to one side."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from lepton.gossip.averager import Averager, name_of
from lepton.gossip.codecs import INT8_CHUNK, INT8_MAX
from lepton.gossip.config import Config
from lepton.gossip.events import Finished, Ready, Run
from lepton.gossip.part import Reference
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .conftest import World

WorldType = Callable[..., "World"]
NAMES, DIMENSION = "abcdefghij", 10 * INT8_CHUNK
DEAD = "cg"
FLOAT32 = 1e-6  # what adding a difference of 0.01 to a number of size 1 rounds away


class OneRound:
    """Ten members, a tenth of all messages lost, two that are killed at steps of their own in the middle of it."""

    def __init__(self, world: WorldType, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.base = rng.normal(size=DIMENSION).astype(np.float32)
        updates = rng.normal(scale=0.01, size=(len(NAMES), DIMENSION)).astype(np.float32)
        self.vectors = {name: self.base + update for name, update in zip(NAMES, updates, strict=True)}
        self.weights = {name: float(rng.integers(100, 900)) for name in NAMES}
        machines = {name: self.machine(name, seed) for name in NAMES}
        self.world = world(machines, seed, loss=0.1)
        self.world.crash_at = {name: int(rng.integers(1, 40)) for name in DEAD}
        for name in NAMES:
            ready = Ready(0, self.vectors[name], self.weights[name], tuple(NAMES))
            self.world.event(rng.uniform(0.0, 0.02), name, ready)
        self.world.run()
        assert self.world.crashed == set(DEAD)
        self.ends: list[Finished] = [self.world.outcomes[name][0] for name in NAMES if name not in DEAD]

    def machine(self, name: str, seed: int) -> Averager:
        settings: dict[str, Any] = {"mesh": b"m", "dimension": DIMENSION, "group_size": 16, "config": Config.test()}
        averager = Averager(name, "t", rng_seed=seed, **settings)
        averager.refer_to(Reference(name_of(self.base), self.base))
        return averager

    def runs(self) -> list[Run]:
        """Return all that is a mean; what an owner took with it is not."""
        return [run for part in self.ends[0].report.parts for run in part if run.contributors]

    def errors(self, run: Run) -> tuple[NDArray[np.float64], float]:
        """Return how far a run is from the exact mean of those whom it names, and how far int8 may be."""
        place, total = slice(run.start, run.stop), sum(weight for _, weight in run.contributors)
        differences = {name: self.vectors[name][place].astype(np.float64) - self.base[place] for name in NAMES}
        shares = {name: weight / total for name, weight in run.contributors}
        mean = sum(differences[name] * share for name, share in shares.items())
        stated = sum(_stated(differences[name]) * share for name, share in shares.items())
        found = self.ends[0].vector[place].astype(np.float64) - self.base[place]
        return found - mean, stated + _stated(np.abs(mean) + stated) + FLOAT32


def _stated(values: NDArray[np.float64]) -> float:
    """Return int8's error for a chunk of values: 1.01 of the 127th part of the largest."""
    return float(1.01 * np.abs(values).max() / INT8_MAX)


@pytest.mark.parametrize("seed", range(12))
def test_survivors_hold_the_exact_mean_of_those_who_are_named_to_the_stated_error(world: WorldType, seed: int) -> None:
    one = OneRound(world, seed)
    assert all(end.report.agreed for end in one.ends)
    assert {end.vector.tobytes() for end in one.ends} == {one.ends[0].vector.tobytes()}
    owned_by_the_living = sum(part.stop - part.start for part in one.runs())
    assert owned_by_the_living >= DIMENSION * 8 // 10
    for run in one.runs():
        assert {name for name, _ in run.contributors} >= set(NAMES) - set(DEAD)
        assert all(weight == one.weights[name] for name, weight in run.contributors)
        errors, stated = one.errors(run)
        assert np.abs(errors).max() <= stated


def test_the_error_of_the_mean_is_to_neither_side(world: WorldType) -> None:
    found = []
    for seed in range(100, 140):
        one = OneRound(world, seed)
        for run in one.runs():
            errors, stated = one.errors(run)
            found.append(errors / stated)
    shares = np.concatenate(found)  # of what is stated
    assert shares.size > 80_000
    assert abs(shares.mean()) <= 4 * shares.std() / np.sqrt(shares.size) + 1 / 512  # the codec states the latter
