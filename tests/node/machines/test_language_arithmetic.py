"""What a block does in numpy between its matrices: what it is, and the same bits in any pieces."""

import numpy as np
import numpy.typing as npt
import pytest
from lepton.node.language.arithmetic import attend, gated
from lepton.node.language.cache import PAGE_POSITIONS, PagedCache

Float = npt.NDArray[np.float32]
EIGHTH = np.float32(0.125)


def numbers(*shape: int) -> Float:
    """Numbers of every sign and size between -4 and 4."""
    count = int(np.prod(shape))
    drawn: Float = (np.arange(count, dtype=np.int64) * 7919 % 16_381).astype(np.float32) / np.float32(2048)
    return drawn.reshape(shape) - np.float32(4)


def filled(positions: int, heads: int, width: int) -> PagedCache:
    """A cache of two blocks whose last positions are stored and not yet counted, as when a piece is run."""
    cache = PagedCache(None, (2, 2, heads, width, PAGE_POSITIONS))
    cache.reserve(positions)
    for block in range(2):
        keys, values = numbers(2, positions, heads, width) * np.float32(block + 1)
        cache.store(block, keys, values)
    return cache


@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 2, 64), (6, 3, 10), (2, 2, 80), (8, 1, 8)])
@pytest.mark.parametrize("window", [0, 1, 70])
def test_attention_is_the_mean_of_values_weighted_by_how_keys_fit(
    heads: int, shared: int, width: int, window: int
) -> None:
    cache, queries = filled(150, shared, width), numbers(40, heads, width) * EIGHTH
    cache.length = 110
    attended = attend(queries, cache, 1, window)
    keys, values = numbers(2, 150, shared, width).astype(np.float64) * 2
    for t, head in np.ndindex(40, heads):
        seen = slice(max(0, 111 + t - window) if window else 0, 111 + t)
        scores = keys[seen, head // (heads // shared)] @ queries[t, head] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        wanted = weights @ values[seen, head // (heads // shared)] / weights.sum()
        np.testing.assert_allclose(attended[t, head], wanted, rtol=1e-4, atol=1e-4)


def test_the_gate_opens_and_closes_without_a_warning() -> None:
    x = np.array([[-200, 0, 200, 3, 5, 7]], np.float32)
    np.testing.assert_allclose(gated(x), [[0, 0, 1400]], atol=1e-30)


@pytest.mark.parametrize("pieces", [[1] * 100, [33, 67], [64, 36]])
def test_the_pieces_do_not_matter(pieces: list[int]) -> None:
    queries, whole = numbers(100, 6, 10) * EIGHTH, filled(100, 2, 10)
    wanted = attend(queries, whole, 0, 0)
    cache, made = PagedCache(None, (2, 2, 2, 10, PAGE_POSITIONS)), []
    keys, values = numbers(2, 100, 2, 10)
    for count in pieces:
        span = slice(cache.length, cache.length + count)
        cache.reserve(count)
        cache.store(0, keys[span], values[span])
        made.append(attend(queries[span], cache, 0, 0))
        cache.length += count
    assert np.concatenate(made).tobytes() == wanted.tobytes()
