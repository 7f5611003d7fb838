"""What a block does between its matrices: norms, rotations, attention, the gate. Float32, one position at a time.

The invariant: a position's bits follow from that position (and the keys and values up to it) alone. So every sum runs
along one position's own numbers in an order that its length and place decide, and nothing is used whose result for an
element depends on where in an array the element stands.
"""

import math
from collections.abc import Sequence
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
    """Turn (T, heads, head width) by the angles of each position, (T, head width // 2) each."""
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    y = np.empty_like(x)
    np.subtract(x[..., :half] * cos, x[..., half:] * sin, out=y[..., :half])
    np.add(x[..., half:] * cos, x[..., :half] * sin, out=y[..., half:])
    return y


def gated(x: Float) -> Float:
    """silu(gate) * up, of (T, 2 inner) to (T, inner) (Shazeer 2020)."""
    gate, up = np.split(x, 2, axis=-1)
    with np.errstate(over="ignore"):  # silu of a large negative number is -0
        y: Float = gate / (1 + np.exp(-gate)) * up
    return y


def store(cache: PagedCache, block: int, keys: Float, values: Float) -> None:
    """Write (T, key/value heads, head width) each behind the cache's positions, where room is reserved."""
    first, end = cache.length, cache.length + len(keys)
    for index in range(first // PAGE_POSITIONS, -(-end // PAGE_POSITIONS)):
        start = index * PAGE_POSITIONS
        here = slice(max(first, start) - start, min(end, start + PAGE_POSITIONS) - start)
        given = slice(max(first, start) - first, min(end, start + PAGE_POSITIONS) - first)
        page = cache.pages[index].numbers[block]  # (2, key/value heads, 64, head width)
        page[0][:, here] = keys[given].transpose(1, 0, 2)
        page[1][:, here] = values[given].transpose(1, 0, 2)


def attend(queries: Float, cache: PagedCache, block: int, window: int) -> Float:
    """Attention of (T, heads, head width) to the cache's positions up to each query's own (Vaswani et al. 2017).

    Each query by itself, over whole pages up to its own: its shapes, and with them the order of its sums, follow
    from its position alone.
    """
    keys, values = (
        np.concatenate([page.numbers[block, part] for page in cache.pages], axis=1) for part in (0, 1)
    )  # (key/value heads, positions in whole pages, head width)
    grouped = queries.reshape(len(queries), len(keys), -1, queries.shape[-1])  # query heads that share a key head
    y = np.empty_like(grouped)
    for index, query in enumerate(grouped):
        position = cache.length + index
        pages_end = (position // PAGE_POSITIONS + 1) * PAGE_POSITIONS
        _attend_one(query, keys[:, :pages_end], values[:, :pages_end], position, window, y[index])
    return y.reshape(queries.shape)


def _attend_one(query: Float, keys: Float, values: Float, position: int, window: int, out: Float) -> None:
    scores = np.matmul(query, keys.transpose(0, 2, 1)) * np.float32(1 / math.sqrt(query.shape[-1]))
    scores[..., position + 1 :] = _HIDDEN
    if window and position >= window:
        scores[..., : position - window + 1] = _HIDDEN
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= np.add.reduce(weights, axis=-1, keepdims=True)
    np.matmul(weights, values, out=out)  # (key/value heads, sharing heads, head width)


def cut(x: Float, counts: Sequence[int]) -> list[Float]:
    """Cut the rows of a batch into those of each piece."""
    return np.split(x, np.cumsum(counts)[:-1])
