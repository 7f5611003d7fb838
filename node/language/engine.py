"""A run of a language model's layers, loaded: the engine that `generation/` drives (see `generation/engine.py`)."""

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ...mesh.tensors import Array
from ..deployments import Precision
from ..generation.engine import Cache, Piece
from ..kernels import Matrix, arithmetic
from .arithmetic import cut, rms_norm
from .block import Batch, Block, vector
from .cache import PAGE_POSITIONS, PagedCache
from .config import LanguageConfig
from .layout import EMBEDDING, HEAD, NORM, layer_shapes, layers
from .linear import Linear
from .packing import vocabulary_precision
from .rope import Rotations
from .rounded import rounded_tensors

Float = npt.NDArray[np.float32]
_NAMED_MAX: Final = 3  # tensors that an error names


class LanguageEngine:
    """Implements `generation.engine.Engine`; made by `load_engine`."""

    def __init__(self, config: LanguageConfig, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.layers = layers(config)
        self.width = config.width
        self.vocabulary = config.vocabulary
        self.positions_max = config.positions_max
        self.arithmetic = arithmetic()
        self._config = config
        self._embedding: Linear | None = None
        self._blocks: list[Block] = []
        self._norm: Float | None = None
        self._head: Linear | None = None
        self._rotations = Rotations(config.rope, config.head_width)
        blocks = len(range(max(first, 1), min(end, self.layers - 1)))
        self._page_shape = (blocks, 2, config.key_value_heads, config.head_width, PAGE_POSITIONS)

    @property
    def weights_bytes(self) -> int:
        """What the weights take in memory, as loaded."""
        parts = {id(part): part for part in (self._embedding, self._head, *self._blocks) if part}  # tied: one matrix
        return sum(part.size_bytes for part in parts.values()) + (0 if self._norm is None else self._norm.nbytes)

    @property
    def cache_bytes_per_position(self) -> int:
        blocks, pair, heads, width, _ = self._page_shape
        return 4 * blocks * pair * heads * width

    def new_cache(self) -> Cache:
        """Make an empty cache; it grows by pages of 64 positions."""
        return PagedCache(self, self._page_shape)

    def run(self, pieces: Sequence[Piece]) -> list[Array | None]:
        """Run all pieces as one batch; see `generation.engine.Engine.run`."""
        caches = self._check(pieces)
        if not pieces:
            return []
        counts = [len(piece.x) for piece in pieces]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        x = self._enter(np.concatenate([piece.x for piece in pieces]))
        batch = self._batch(caches, counts)
        for block in self._blocks:
            x = block(x, batch)
        for cache, count in zip(caches, counts, strict=True):
            cache.length += count
        return self._leave(x, pieces, counts)

    # -- how it is done ------------------------------------------------------------------------------------------------

    def load(self, layer: int, tensors: Mapping[str, Matrix], precision: Precision) -> None:
        """Take one layer's weights in; the tensors may be dropped behind. Raises UsageError when they do not fit."""
        tensors = rounded_tensors(tensors, self._config, layer)
        _check_tensors(layer, tensors, layer_shapes(self._config, layer))
        if layer == 0:
            self._embedding = Linear(tensors[EMBEDDING], vocabulary_precision(precision))
        elif layer == self.layers - 1:
            self._norm = vector(tensors[NORM])
            if not self._config.tied:
                self._head = Linear(tensors[HEAD], vocabulary_precision(precision))
            else:
                self._head = self._embedding or Linear(tensors[EMBEDDING], vocabulary_precision(precision))
        else:
            window = self._config.windows[layer - 1]
            named = {name.split(".", 3)[3]: tensor for name, tensor in tensors.items()}
            self._blocks.append(Block(self._config, named, index=len(self._blocks), window=window, precision=precision))

    def _enter(self, x: Array) -> Float:
        if self._embedding is not None:
            return self._embedding.rows(x.astype(np.int32, copy=False))
        return x.astype(np.float32, copy=False)

    def _batch(self, caches: Sequence[PagedCache], counts: Sequence[int]) -> Batch:
        spans = [np.arange(cache.length, cache.length + count) for cache, count in zip(caches, counts, strict=True)]
        cos, sin = self._rotations.up_to(max(int(span[-1]) for span in spans) + 1)
        positions = np.concatenate(spans)
        return Batch(caches, counts, cos[positions, None], sin[positions, None])

    def _leave(self, x: Float, pieces: Sequence[Piece], counts: Sequence[int]) -> list[Array | None]:
        if self._head is None or self._norm is None:
            return list(cut(x, counts))
        wanted = [index for index, piece in enumerate(pieces) if piece.wants_logits]
        answers: list[Array | None] = [None] * len(pieces)
        if wanted:
            rows = x[np.cumsum(counts)[wanted] - 1]
            logits = self._head.product(rms_norm(rows, self._norm, self._config.epsilon))
            for index, row in zip(wanted, logits, strict=True):
                answers[index] = row
        return answers

    def _check(self, pieces: Sequence[Piece]) -> list[PagedCache]:
        caches = []
        for piece in pieces:
            self._check_input(piece.x)
            caches.append(self._check_cache(piece.cache, len(piece.x)))
        if len({id(cache) for cache in caches}) < len(caches):
            raise UsageError("A batch may hold one piece of a session, not several.")
        return caches

    def _check_input(self, x: Array) -> None:
        dtype, shape = ("int32", (len(x),)) if self.first == 0 else ("float32", (len(x), self.width))
        if x.dtype != np.dtype(dtype) or x.shape != shape or not len(x):
            raise UsageError(
                f"Layer {self.first} takes {dtype} {('T', *shape[1:])}, T at least 1; got {x.dtype} {x.shape}."
            )
        if self.first == 0 and not 0 <= int(x.min()) <= int(x.max()) < self.vocabulary:
            raise UsageError(
                f"A token is not in the vocabulary of {self.vocabulary}: there are {x.min()} to {x.max()}."
            )

    def _check_cache(self, cache: Cache, count: int) -> PagedCache:
        if not isinstance(cache, PagedCache) or cache.owner is not self or cache.closed:
            raise UsageError("This cache is closed, or of another engine.")
        if cache.length + count > self.positions_max:
            raise UsageError(
                f"{cache.length} positions and {count} more are over the {self.positions_max} that this model takes."
            )
        return cache


def load_engine(
    config: LanguageConfig,
    first: int,
    end: int,
    tensors: Callable[[int], Mapping[str, Matrix]],
    precision: Precision = "float32",
) -> LanguageEngine:
    """Load the layers ``first`` up to, not including, ``end``: each is read by ``tensors``, packed and dropped.

    ``tensors(layer)`` gives that layer's tensors (any float type, or rounded before) under their names in the model;
    of those that are read from their file slice by slice no more than a slice is in memory beside what is packed.
    Raises UsageError when there is no such run of layers, or when a tensor is missing or has another shape than the
    configuration says.
    """
    if not 0 <= first < end <= layers(config):
        raise UsageError(f"There is no run of layers {first}:{end} in a model of {layers(config)} layers.")
    engine = LanguageEngine(config, first, end)
    for layer in range(first, end):
        engine.load(layer, tensors(layer), precision)
        _give_memory_back()
    return engine


def _give_memory_back() -> None:
    """Let the system have what packing a layer needed: glibc would keep it, and the next layer seldom fits into it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _check_tensors(layer: int, tensors: Mapping[str, Matrix], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise UsageError(f"Layer {layer} lacks {len(missing)} tensors: {', '.join(missing[:_NAMED_MAX])}.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
            raise UsageError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}; the configuration asks for floats {shape}."
            )
