"""A decoder's layer in one call of the compiled kernel: norms, rotations, attention and the gate around its products.

For small models what Python and torch spend between the products is longer than the products. The invariant of
``packed.py`` holds here too: a position's bits follow from that position and the keys and values that it sees.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from .native import NUMBERS, NativePacked, library

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """The sizes of a layer; ``heads`` are a multiple of ``shared``, the heads of keys and values."""

    width: int
    inner: int
    heads: int
    shared: int
    head_width: int
    window: int = 0  # positions that a query sees; 0: all
    epsilon: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights:
    """What a layer is made of. Vectors are float32; None where a family has none of them."""

    qkv: NativePacked  # ((heads + 2 shared) * head_width, width)
    out: NativePacked  # (width, heads * head_width)
    gate_up: NativePacked  # (2 inner, width)
    down: NativePacked  # (width, inner)
    norm: Float  # (width,)
    second_norm: Float  # (width,)
    query_norm: Float | None = None  # (head_width,)
    key_norm: Float | None = None
    qkv_bias: Float | None = None
    out_bias: Float | None = None
    gate_up_bias: Float | None = None
    down_bias: Float | None = None


class _Block(ctypes.Structure):
    """native.c's Block."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("norm", "second_norm", "query_norm", "key_norm")),
        *((name, ctypes.c_void_p) for name in ("qkv_bias", "out_bias", "gate_up_bias", "down_bias")),
        *((name, ctypes.c_long) for name in ("width", "inner", "heads", "shared", "head_width")),
        ("window", ctypes.c_long),
        ("page_offset", ctypes.c_long),
        ("epsilon", ctypes.c_float),
        ("precision", ctypes.c_int),
    )


class _Batch(ctypes.Structure):
    """native.c's Batch."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("counts", "starts", "first_pages", "pages", "cos", "sin")),
        *((name, ctypes.c_long) for name in ("rows", "pieces", "page_positions")),
    )


class BlockBatch:
    """Positions of several sessions that go through layers together, piece after piece, and where their pages are."""

    def __init__(
        self, counts: Sequence[int], starts: Sequence[int], pages: Sequence[Sequence[Float]], cos: Float, sin: Float
    ) -> None:
        """Note ``counts[i]`` positions behind the ``starts[i]`` that the pages of piece i hold already.

        A page is float32 (layers, 2, shared, head width, positions of a page), C-contiguous and writable, and those of
        one piece have room for all its positions. Keys (0) lie as this shape says, so that the scores of positions are
        worked out side by side; values (1) lie as (shared, positions of a page, head width) in the same bytes.
        ``cos`` and ``sin`` are float32 (T, head width / 2), T the sum of ``counts``. Raises UsageError for what does
        not fit.
        """
        every = [page for piece in pages for page in piece]
        if not len(counts) == len(starts) == len(pages) or not every:
            raise UsageError("each piece of a batch has a count, a start and its pages")
        self.page_shape = every[0].shape
        for page in every:
            if page.dtype != np.float32 or page.ndim != 5 or page.shape != self.page_shape or not _plain(page):
                raise UsageError("pages are writable float32 (layers, 2, shared, head width, positions), all alike")
        for count, start, own in zip(counts, starts, pages, strict=True):
            if count < 1 or start < 0 or start + count > len(own) * self.page_shape[4]:
                raise UsageError(f"{len(own)} pages have no room for {count} positions behind {start}")
        self.rows = sum(counts)
        self._angles = [_vector(each, (self.rows, self.page_shape[3] // 2), "cos and sin") for each in (cos, sin)]
        long = np.dtype(ctypes.c_long)
        firsts = np.cumsum([0, *map(len, pages)])[:-1]
        self._lists = [np.array(each, dtype=long) for each in (counts, starts, firsts)]
        self._addresses = np.array([page.ctypes.data for page in every], dtype=np.uintp)
        self._pages = every  # so that they live as long as their addresses
        arrays: list[npt.NDArray[Any]] = [*self._lists, self._addresses, *self._angles]
        places = (each.ctypes.data for each in arrays)
        self.native = _Batch(*places, self.rows, len(counts), self.page_shape[4])


class FusedBlock:
    """Layer ``index`` of those that a page has room for."""

    def __init__(self, shape: BlockShape, weights: BlockWeights, *, index: int) -> None:
        """Check and keep the weights. Raises UsageError where they do not fit the shape or each other."""
        self._shape, self._index = shape, index
        if shape.heads % shape.shared or shape.head_width % 2:
            raise UsageError(f"{shape.heads} heads of width {shape.head_width} do not share {shape.shared} evenly")
        self._weights: dict[str, Any] = {field.name: getattr(weights, field.name) for field in fields(weights)}
        precisions = set()
        for name, wanted in _matrices(shape).items():
            packed: NativePacked = self._weights[name]
            if (packed.outputs, packed.inputs) != wanted:
                raise UsageError(f"{name} is {(packed.outputs, packed.inputs)}; this layer has {wanted}")
            precisions.add(packed.precision)
        if len(precisions) > 1:
            raise UsageError(f"the matrices of a layer are packed alike, not as {', '.join(sorted(precisions))}")
        for name, length in _vectors(shape).items():
            if self._weights[name] is not None:
                self._weights[name] = _vector(self._weights[name], (length,), name)
        self._width = weights.qkv.width
        self._native = self._struct(NUMBERS[weights.qkv.precision])

    def _struct(self, precision: int) -> _Block:
        shape = self._shape
        matrices = [self._weights[name].address for name in _matrices(shape)]
        given: list[Float | None] = [self._weights[name] for name in _vectors(shape)]
        vectors = [None if each is None else each.ctypes.data for each in given]
        sizes = (shape.width, shape.inner, shape.heads, shape.shared, shape.head_width, shape.window)
        return _Block(*matrices, *vectors, *sizes, 0, shape.epsilon, precision)

    def run(self, x: Float, batch: BlockBatch, *, threads: int = 1) -> None:
        """Run the layer on float32 (T, width) in place, and put the keys and values into the batch's pages.

        Raises UsageError for another shape, or pages of another shape.
        """
        shape = self._shape
        if x.dtype != np.float32 or x.shape != (batch.rows, shape.width) or not _plain(x):
            raise UsageError(f"this layer takes writable float32 {(batch.rows, shape.width)}, not {x.dtype} {x.shape}")
        layers, *rest = batch.page_shape
        if self._index >= layers or rest[:3] != [2, shape.shared, shape.head_width]:
            raise UsageError(f"pages of {batch.page_shape} have no place for layer {self._index} of this shape")
        self._native.page_offset = self._index * int(np.prod(rest))
        block, rows = ctypes.byref(self._native), ctypes.byref(batch.native)
        if library().lepton_block(block, rows, x.ctypes.data, self._width, threads):
            raise MemoryError


def _matrices(shape: BlockShape) -> dict[str, tuple[int, int]]:
    attended = shape.heads * shape.head_width
    return {
        "qkv": (attended + 2 * shape.shared * shape.head_width, shape.width),
        "out": (shape.width, attended),
        "gate_up": (2 * shape.inner, shape.width),
        "down": (shape.width, shape.inner),
    }


def _vectors(shape: BlockShape) -> dict[str, int]:
    norms = {"norm": shape.width, "second_norm": shape.width, "query_norm": shape.head_width}
    biases = {f"{name}_bias": outputs for name, (outputs, _) in _matrices(shape).items()}
    return norms | {"key_norm": shape.head_width} | biases


def _plain(array: Float) -> bool:
    return array.flags.c_contiguous and array.flags.writeable


def _vector(array: Float, shape: tuple[int, ...], name: str) -> Float:
    if array.dtype != np.float32 or array.shape != shape:
        raise UsageError(f"{name} is {array.dtype} {array.shape}; this layer takes float32 {shape}")
    return np.ascontiguousarray(array)
