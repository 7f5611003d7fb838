"""What a block does between its matrices, compiled where it can be: attention over pages, and the gate.

The compiled steps give the same bits on every processor (`steps.c`). Where they were not built numpy does it, alike
within rounding; both keep the invariant that a position's bits follow from the positions up to it alone.
"""

import ctypes
import math
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from .cache import PAGE_POSITIONS, PagedCache

Float = npt.NDArray[np.float32]
_HIDDEN: Final = np.float32(-np.inf)


class _Attention(ctypes.Structure):
    """As in steps.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "out", "pages", "scores")),
        *((name, ctypes.c_long) for name in ("count", "first", "heads", "shared", "width", "window")),
        ("scale", ctypes.c_float),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled steps once; None where installation did not build them."""
    for suffix in EXTENSION_SUFFIXES:
        if (path := Path(__file__).with_name("_steps" + suffix)).is_file():
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError:  # of another processor
                return None
            loaded.lepton_attend.argtypes = (ctypes.c_void_p,)
            loaded.lepton_gate.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)
            loaded.lepton_attend.restype = loaded.lepton_gate.restype = None
            return loaded
    return None


def attend(queries: Float, cache: PagedCache, block: int, window: int) -> Float:
    """Attention of (T, heads, head width) to the cache's positions up to each query's own (Vaswani et al. 2017).

    The keys and values of these T positions are stored behind the cache's length already. ``window``: how many
    positions a query sees, its own among them; 0 is all.
    """
    steps = library()
    if steps is None:
        return plain_attend(queries, cache, block, window)
    queries = np.ascontiguousarray(queries)
    count, heads, width = queries.shape
    out = np.empty_like(queries)
    scores = np.empty(len(cache.pages) * PAGE_POSITIONS, dtype=np.float32)
    pages = cache.addresses(block)
    job = _Attention(
        queries.ctypes.data,
        out.ctypes.data,
        pages.ctypes.data,
        scores.ctypes.data,
        count,
        cache.length,
        heads,
        cache.page_shape[2],
        width,
        window,
        1 / math.sqrt(width),
    )
    steps.lepton_attend(ctypes.byref(job))
    return out


def gated(x: Float) -> Float:
    """silu(gate) * up, of (T, 2 inner) to (T, inner) (Shazeer 2020)."""
    steps = library()
    if steps is None:
        return plain_gated(x)
    x = np.ascontiguousarray(x)
    out = np.empty((len(x), x.shape[1] // 2), dtype=np.float32)
    steps.lepton_gate(x.ctypes.data, out.ctypes.data, *out.shape)
    return out


def plain_attend(queries: Float, cache: PagedCache, block: int, window: int) -> Float:
    """Do `attend` in numpy.

    Each query by itself, over whole pages up to its own: its shapes, and with them the order of its sums, follow
    from its position alone.
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


def plain_gated(x: Float) -> Float:
    """Do `gated` in numpy."""
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
