"""Who is away, slow or bad: a scenario's faults as the engine meets them. All of it follows from the seed.

Away: with `stay_s` 0 another share of the nodes each round, of exactly that size. Else each node comes and goes by
itself, away for `stay_s` on average and here for as long as makes the share: a chain of two states in simulated time,
whose probability of being away t later is p + (was away - p) exp(-t / a), with 1 / a the sum of both rates.

Slow: a step takes a straggler `slowness` times as long, and everybody a factor e^(spread x normal). A round waits for
nobody longer than PATIENCE times what the median node would take for the same steps, as the deployed rounds do
(`gossip/config.py`, `wait_ratio_max`); a slow node takes the steps that it can in that time, one at least.
"""

import math
from typing import Final, NewType

import numpy as np
import numpy.typing as npt

from ...gossip.config import Config
from .batches import Ints
from .scenario import Scenario

PATIENCE: Final = Config().wait_ratio_max

Flags = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Stream = NewType("Stream", int)

# One line of dice for each thing that is drawn: what one of them takes changes nothing for the others.
ATTACKERS, STRAGGLERS, SPREAD, EXAMINED = Stream(1), Stream(2), Stream(3), Stream(4)
AWAY, EXCHANGE, ATTACK = Stream(5), Stream(6), Stream(7)


def dice(seed: int, stream: Stream, round_: int = 0) -> np.random.Generator:
    """Return the generator for one thing in one round: there is no state of chance to carry along."""
    return np.random.default_rng([seed, stream, round_])


def attackers_of(scenario: Scenario) -> Flags:
    """Return who is bad, (N,)."""
    return _share(scenario.nodes, scenario.faults.attackers, dice(scenario.seed, ATTACKERS))


def slowness_of(scenario: Scenario) -> Doubles:
    """Return how many times longer than said a step takes each node, (N,)."""
    nodes, faults = scenario.nodes, scenario.faults
    slow = _share(nodes, faults.stragglers, dice(scenario.seed, STRAGGLERS))
    spread = np.exp(scenario.link.spread * dice(scenario.seed, SPREAD).standard_normal(nodes))
    return np.where(slow, faults.slowness, 1.0) * spread


def steps_in_time(steps: Ints, slowness: Doubles) -> Ints:
    """Return how many of its steps each node takes before the round goes on without more, (N,)."""
    allowed = PATIENCE * float(np.median(slowness)) / slowness
    return np.maximum(1, np.floor(steps * np.minimum(1.0, allowed)).astype(np.int64))


class Presence:
    """Who is here, round after round."""

    def __init__(self, scenario: Scenario) -> None:
        self._nodes, self._seed, self._faults = scenario.nodes, scenario.seed, scenario.faults
        self.away: Flags = np.zeros(self._nodes, dtype=np.bool_)

    def here(self, round_: int, passed_s: float) -> Flags:
        """Return who takes part in a round, ``passed_s`` simulated seconds after the last one began, (N,)."""
        share, rng = self._faults.away, dice(self._seed, AWAY, round_)
        if not self._faults.stay_s:
            self.away = _share(self._nodes, share, rng)
        else:
            still = 0.0 if round_ == 0 else math.exp(-passed_s / (self._faults.stay_s * (1 - share)))
            self.away = rng.random(self._nodes) < share + (self.away - share) * still
        return ~self.away


def _share(nodes: int, share: float, rng: np.random.Generator) -> Flags:
    """Choose so large a share by lot."""
    chosen = np.zeros(nodes, dtype=np.bool_)
    chosen[rng.permutation(nodes)[: round(share * nodes)]] = True
    return chosen
