"""How the policy `robust` mixes: the nearest of the models that it pulled, none of them further away than most are.

Nearest-neighbour averaging (Farhadkhani et al. 2023, for decentralised learning) with clipping to a radius that the
kept ones set themselves (in the manner of He, Karimireddy and Jaggi 2022). It needs single models, so it excludes
`private`; and it needs several: with fewer than `MODELS_MIN` nothing is mixed.

What it does not stop: an insider that stays within the distances of honest models and pushes in one direction every
round. The docs have the figures of that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from .codecs import BLOCK, Floats

PEERS = 8  # models pulled a round: fewer, and three attackers among them are a majority too often
BAD_SHARE_MAX = 0.25  # of the pulled models that are dropped for being furthest away: a fifth, and one to spare
MODELS_MIN = 3  # of fewer it cannot be said which is the odd one


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came of mixing: the model, float32 (D,), and what each pulled one counted with, from 0 (dropped) to 1."""

    vector: Floats
    counted: Mapping[str, float]


def nearest_clipped(own: Floats, others: Mapping[str, Floats], *, bad_share_max: float = BAD_SHARE_MAX) -> Mixed:
    """Return own + mean(clip(x_j - own)) over oneself and the nearest of the others.

    All are float32 (D,) and finite. Of n others the ``ceil(bad_share_max * n)`` furthest are dropped. The others'
    differences are scaled down to the median length of those that are kept. Fewer than ``MODELS_MIN`` change nothing.
    """
    if len(others) < MODELS_MIN:
        return Mixed(own.copy(), dict.fromkeys(others, 0.0))
    distances = {peer: distance(own, vector) for peer, vector in others.items()}
    ranked = sorted(others, key=lambda peer: (distances[peer], peer))
    kept = ranked[: len(ranked) - math.ceil(bad_share_max * len(ranked))]
    radius = median_low([distances[peer] for peer in kept])
    factors = {peer: min(1.0, radius / distances[peer]) if distances[peer] else 1.0 for peer in kept}
    return Mixed(_towards(own, others, factors), dict.fromkeys(others, 0.0) | factors)


def distance(one: Floats, other: Floats) -> float:
    """Return the Euclidean distance, summed in float64 block by block."""
    total = 0.0
    for start in range(0, one.size, BLOCK):
        block = slice(start, start + BLOCK)
        difference = one[block].astype(np.float64) - other[block]
        total += float(np.dot(difference, difference))
    return math.sqrt(total)


def _towards(own: Floats, others: Mapping[str, Floats], factors: Mapping[str, float]) -> Floats:
    share = 1.0 / (len(factors) + 1)  # oneself counts like each of them
    mixed = np.empty_like(own)
    for start in range(0, own.size, BLOCK):
        block = slice(start, start + BLOCK)
        step = np.zeros(own[block].size, dtype=np.float64)
        for peer in sorted(factors):
            step += factors[peer] * share * (others[peer][block].astype(np.float64) - own[block])
        mixed[block] = own[block] + step
    return mixed
