"""How several vectors become one: a weighted mean that is the same, bit for bit, whoever's values came first."""

from collections.abc import Mapping
from statistics import median_low

import numpy as np

from .codecs import BLOCK, Floats


def clip_weights(weights: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Return the weights, each at most `ratio` times their lower median.

    The lower one, since of two peers the larger weight would else raise its own limit.
    """
    limit = ratio * median_low(weights.values())
    return {peer: min(weight, limit) for peer, weight in weights.items()}


def weighted_mean(vectors: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Return sum(w_i x_i) / sum(w_i) of float32 (n,) vectors, summed in float64 in the order of the peers' names.

    `weights` are positive and finite, one for each vector; at least one vector.
    """
    peers = sorted(vectors)
    total = sum(weights[peer] for peer in peers)
    mean = np.empty_like(vectors[peers[0]])
    for start in range(0, mean.size, BLOCK):
        block = slice(start, start + BLOCK)
        accumulated = np.zeros(mean[block].size, dtype=np.float64)
        for peer in peers:
            accumulated += np.multiply(vectors[peer][block], weights[peer] / total, dtype=np.float64)
        mean[block] = accumulated
    return mean
