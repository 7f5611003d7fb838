"""Matrices as a stage holds them, packed at a precision by `kernels`: products, rows, and their sizes."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ..deployments import Precision
from ..kernels import Matrix, Packed, pack

Float = npt.NDArray[np.float32]
_NUMBER_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
# As `kernels` packs: rows are padded to panels of 16, columns to groups of 32, which share a bfloat16 scale.
_ROWS: Final = 16
_COLUMNS: Final = 32
_SCALE_BYTES: Final = 2


class Linear:
    """A matrix W (outputs, inputs). A row's product has the same bits whatever other rows are in the batch."""

    def __init__(self, weight: Matrix, precision: Precision) -> None:
        self.packed: Packed = pack(weight, precision)
        self.size_bytes = self.packed.size_bytes

    def product(self, x: Float) -> Float:
        """x W^T: float32 (T, inputs) to (T, outputs)."""
        y: Float = self.packed.product(torch.from_numpy(x), threads=torch.get_num_threads()).numpy()
        return y

    def rows(self, tokens: npt.NDArray[np.int32]) -> Float:
        """Look rows of W up: int32 (T,) to float32 (T, inputs)."""
        rows: Float = self.packed.rows(torch.from_numpy(tokens)).numpy()
        return rows


class Stacked:
    """Matrices one below the other, to be packed as one; no copy of them is made at once."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self._parts = parts
        self.shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
        dtypes = {part.dtype for part in parts}
        self.dtype = parts[0].dtype if len(dtypes) == 1 else torch.float32

    def __getitem__(self, rows: slice) -> torch.Tensor:
        first, end, _ = rows.indices(self.shape[0])
        return torch.cat([piece.to(self.dtype) for piece in self._pieces(first, end)])

    def _pieces(self, first: int, end: int) -> Iterator[torch.Tensor]:
        at = 0
        for part in self._parts:
            low, high = max(first - at, 0), min(end - at, part.shape[0])
            if low < high:
                yield part[low:high]
            at += part.shape[0]


def vocabulary_precision(precision: Precision) -> Precision:
    """Return the precision of the embedding and the head: 4 bits there cost more than they save."""
    return "int8" if precision == "int4" else precision


def packed_bytes(outputs: int, inputs: int, precision: Precision) -> int:
    """Return what a matrix takes in memory, packed."""
    rows, columns = -(-outputs // _ROWS) * _ROWS, -(-inputs // _COLUMNS) * _COLUMNS
    scales = _SCALE_BYTES * rows * (columns // _COLUMNS) if precision in {"int8", "int4"} else 0
    return int(rows * columns * _NUMBER_BYTES[precision]) + scales
