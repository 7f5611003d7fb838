"""A toy language model whose every number depends on all tokens before it, so that what sessions yield can be checked.

A layer keeps 64 bits for a position, made of those of the position before and of what the layer before gives: one
wrong, lost or doubled position changes every token behind it. What layers compute does not depend on who holds which.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from ..mesh.errors import UsageError
from ..mesh.tensors import Array
from ..node.generation.engine import Cache, Piece
from ..node.generation.sampling import Sampling, sample
from ..node.generation.worker import Drawer

LAYERS: Final = 6
WIDTH: Final = 4  # numbers of 16 bits, which float32 holds
VOCABULARY: Final = 97
POSITION_BYTES: Final = 16  # of caches, whatever the run: it is promised and never taken

_BITS: Final = 2**64 - 1
_MIX: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64 (Steele et al. 2014)
_ODD: Final = np.arange(1, 2 * VOCABULARY, 2, dtype=np.uint64) * np.uint64(_MIX[1])


class ToyCache:
    """The states of some layers, for each position."""

    def __init__(self, engine: "ToyEngine", states: Sequence[tuple[int, ...]] = ()) -> None:
        self.engine = engine
        self.states = list(states)
        self.closed = False
        engine.open += 1

    @property
    def length(self) -> int:
        return len(self.states)

    @property
    def size_bytes(self) -> int:
        return POSITION_BYTES * len(self.states)

    def truncate(self, length: int) -> None:
        self._check(length)
        del self.states[length:]

    def fork(self, length: int) -> "ToyCache":
        self._check(length)
        return ToyCache(self.engine, self.states[:length])

    def close(self) -> None:
        self._check(0)
        self.closed = True
        self.engine.open -= 1

    def _check(self, length: int) -> None:
        assert not self.closed, "a cache is used after it was given back"
        assert length <= self.length, "a cache is cut where it does not reach"


class ToyEngine:
    """Layers ``first`` up to ``end`` of the toy."""

    weights_bytes = 1000
    width = WIDTH
    vocabulary = VOCABULARY

    def __init__(self, first: int, end: int, layers: int = LAYERS) -> None:
        self.first, self.end, self.layers = first, end, layers
        self.arithmetic = "hashes"
        self.cache_bytes_per_position = POSITION_BYTES
        self.open = 0  # caches
        self.computed = 0  # positions

    def new_cache(self) -> ToyCache:
        return ToyCache(self)

    def run(self, pieces: Sequence[Piece]) -> list[Array | None]:
        for piece in pieces:
            if self.first == 0 and int(np.max(piece.x)) >= VOCABULARY:
                raise UsageError("There is no such token.")
        assert len({id(piece.cache) for piece in pieces}) == len(pieces), "a cache is in a batch once"
        return [self._run(piece.cache, piece.x, wants_logits=piece.wants_logits) for piece in pieces]

    def _run(self, cache: Cache, x: Array, *, wants_logits: bool) -> Array | None:
        assert isinstance(cache, ToyCache)
        assert cache.engine is self
        assert not cache.closed
        outputs = [self._position(cache, row) for row in x]
        if self.end < self.layers:
            return np.array(outputs, dtype=np.uint64).view("<u2").reshape(-1, WIDTH).astype(np.float32)
        return _logits(outputs[-1]) if wants_logits else None

    def _position(self, cache: ToyCache, row: Array) -> int:
        """Run all layers for one position; returns the state of the last."""
        self.computed += 1
        given = int(row) if self.first == 0 else int(row.astype("<u2").view("<u8")[0])
        before = cache.states[-1] if cache.states else (0,) * (self.end - self.first)
        states = []
        for layer, state in zip(range(self.first, self.end), before, strict=True):
            given = _mixed(given + _MIX[0] * (layer + 1) + _MIX[2] * state)
            states.append(given)
        cache.states.append(tuple(states))
        return given


def _mixed(state: int) -> int:
    state &= _BITS
    state = ((state ^ (state >> 30)) * _MIX[1]) & _BITS
    state = ((state ^ (state >> 27)) * _MIX[2]) & _BITS
    return state ^ (state >> 31)


def _logits(state: int) -> Array:
    scattered = (np.uint64(state) ^ _ODD) * np.uint64(_MIX[2])  # modulo 2^64
    return (scattered >> np.uint64(40)).astype(np.float32) / np.float32(2**21)  # below 8, exact in float32


def alone(
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    layers: int = LAYERS,
    stop_ids: Collection[int] = (),
    draw: Drawer = sample,
) -> Iterator[int]:
    """Draw token after token on one engine that nobody disturbs: what every session must yield, to the stop."""
    engine = ToyEngine(0, layers, layers)
    cache, tokens, waiting = engine.new_cache(), list(prompt), list(prompt)
    for _ in range(sampling.tokens_max):
        x: Array = np.array(waiting, dtype=np.int32)
        (logits,) = engine.run([Piece(cache=cache, x=x, wants_logits=True)])
        assert logits is not None
        history = tokens if sampling.repetition_penalty != 1.0 else ()
        waiting = [draw(logits.astype(np.float32), history, sampling, len(tokens))]
        tokens += waiting
        yield waiting[0]
        if waiting[0] in stop_ids:
            return
