"""Attention and the gate, compiled and in numpy: close to each other, and each the same whatever is beside."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from lepton.node.language import steps
from lepton.node.language.cache import PAGE_POSITIONS, PagedCache

Float = npt.NDArray[np.float32]
COMPILED = pytest.mark.skipif(steps.library() is None, reason="the compiled steps were not built here")
# Of `numbers` below on x86-64; another processor or compiler must give the same bits.
EIGHTH = np.float32(0.125)
ATTENTION = "a42c8ffe02053116"
GATE = "6e2358654c96c12d"


def numbers(*shape: int) -> Float:
    """Numbers of every sign and size between -4 and 4 that no library's generator has a part in."""
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


@COMPILED
@pytest.mark.parametrize(("heads", "shared", "width"), [(4, 2, 64), (6, 3, 10), (2, 2, 80), (8, 1, 8)])
@pytest.mark.parametrize("window", [0, 1, 70])
def test_both_attend_alike(heads: int, shared: int, width: int, window: int) -> None:
    cache, queries = filled(150, shared, width), numbers(40, heads, width) * EIGHTH
    cache.length = 110
    compiled = steps.attend(queries, cache, 1, window)
    np.testing.assert_allclose(compiled, steps.plain_attend(queries, cache, 1, window), rtol=2e-5, atol=2e-5)


@COMPILED
def test_the_compiled_steps_give_these_bits_on_every_processor() -> None:
    cache = filled(150, 3, 26)
    attended = steps.attend(numbers(150, 6, 26) * EIGHTH, cache, 1, 0)
    assert hashlib.sha256(attended.tobytes()).hexdigest()[:16] == ATTENTION
    assert hashlib.sha256(steps.gated(numbers(9, 2 * 75) * np.float32(30)).tobytes()).hexdigest()[:16] == GATE


@COMPILED
def test_both_gates_are_alike_to_the_ends_of_their_range() -> None:
    x = numbers(5, 2 * 37) * np.float32(50)
    np.testing.assert_allclose(steps.gated(x), steps.plain_gated(x), rtol=1e-6, atol=1e-30)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "library", lambda: None)


@pytest.mark.parametrize("pieces", [[1] * 100, [33, 67], [64, 36]])
def test_without_compiled_steps_the_pieces_do_not_matter_either(plain: None, pieces: list[int]) -> None:
    queries, whole = numbers(100, 6, 10) * EIGHTH, filled(100, 2, 10)
    wanted = steps.attend(queries, whole, 0, 0)
    cache, made = PagedCache(None, (2, 2, 2, 10, PAGE_POSITIONS)), []
    keys, values = numbers(2, 100, 2, 10)
    for count in pieces:
        span = slice(cache.length, cache.length + count)
        cache.reserve(count)
        cache.store(0, keys[span], values[span])
        made.append(steps.attend(queries[span], cache, 0, 0))
        cache.length += count
    assert np.concatenate(made).tobytes() == wanted.tobytes()
