"""What a block does between its matrices, in numpy: where the kernel is compiled, it does all of that itself.

Float32, one position at a time. The invariant: a position's bits follow from that position (and the keys and values
up to it) alone. So every sum runs along one position's own numbers in an order that its length and place decide, and
nothing is used whose result for an element depends on where in an array the element stands.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from .cache import PAGE_POSITIONS, PagedCache

Float = npt.NDArray[np.float32]
_HIDDEN: Final = np.float32(-np.inf)


def rms_norm(x: Float, weight: Float, epsilon: float) -> Float:
    """x / sqrt(mean(x^2) + epsilon) * weight along the last axis (Zhang and Sennrich 2019); any shape before it."""
    mean: Float = (x * x).sum(axis=-1, keepdims=True) / np.float32(x.shape[-1])
    y: Float = x * (np.float32(1) / np.sqrt(mean + np.float32(epsilon))) * weight
    return y


def rotate(x: Float, cos: Float, sin: Float) -> Float:
    """Turn (T, heads, head width) by the angles of each position, (T, 1, head width // 2) each."""
    half = x.shape[-1] // 2
    y = np.empty_like(x)
    np.subtract(x[..., :half] * cos, x[..., half:] * sin, out=y[..., :half])
    np.add(x[..., half:] * cos, x[..., :half] * sin, out=y[..., half:])
    return y


def cut(x: Float, counts: Sequence[int]) -> list[Float]:
    """Cut the rows of a batch into those of each piece."""
    if len(counts) == 1:
        return [x]
    ends = list(accumulate(counts))
    return [x[end - count : end] for count, end in zip(counts, ends, strict=True)]


def attend(queries: Float, cache: PagedCache, block: int, window: int) -> Float:
    """Attention of (T, heads, head width) to the cache's positions up to each query's own (Vaswani et al. 2017).

    The keys and values of these T positions are stored behind the cache's length already. ``window``: how many
    positions a query sees, its own among them; 0 is all. Each query is by itself, over whole pages up to its own: its
    shapes, and with them the order of its sums, follow from its position alone.
    """
    keys = np.concatenate([page.keys[block] for page in cache.pages], axis=2)  # (shared heads, head width, positions)
    values = np.concatenate([page.values[block] for page in cache.pages], axis=1)  # (shared heads, positions, width)
    grouped = queries.reshape(len(queries), len(keys), -1, queries.shape[-1])  # query heads that share a key head
    y = np.empty_like(grouped)
    for index, query in enumerate(grouped):
        position = cache.length + index
        end = (position // PAGE_POSITIONS + 1) * PAGE_POSITIONS
        _attend_one(query, np.ascontiguousarray(keys[..., :end]), values[:, :end], position, window, y[index])
    return y.reshape(queries.shape)


def gated(x: Float) -> Float:
    """silu(gate) * up, of (T, 2 inner) to (T, inner) (Shazeer 2020)."""
    inner = x.shape[1] // 2
    with np.errstate(over="ignore"):  # silu of a large negative number is -0
        y: Float = x[:, :inner] / (1 + np.exp(-x[:, :inner])) * x[:, inner:]
    return y


def _attend_one(query: Float, keys: Float, values: Float, position: int, window: int, out: Float) -> None:
    scores = np.matmul(query, keys) * np.float32(1 / math.sqrt(query.shape[-1]))
    scores[..., position + 1 :] = _HIDDEN
    if window and position >= window:
        scores[..., : position - window + 1] = _HIDDEN
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= np.add.reduce(weights, axis=-1, keepdims=True)
    np.matmul(weights, values, out=out)  # (key/value heads, sharing heads, head width)
