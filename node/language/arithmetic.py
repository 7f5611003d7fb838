"""What a block does between its matrices: norms and rotations (`steps` has the rest). Float32, one position at a time.

The invariant: a position's bits follow from that position (and the keys and values up to it) alone. So every sum runs
along one position's own numbers in an order that its length and place decide, and nothing is used whose result for an
element depends on where in an array the element stands.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


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
