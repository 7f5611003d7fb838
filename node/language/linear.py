"""Matrices as a stage holds them, packed at a precision by `kernels`: products, rows, row by row."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..deployments import Precision
from ..kernels import Matrix, Packed, Rounded, pack

Float = npt.NDArray[np.float32]


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


def stacked(parts: Sequence[Matrix]) -> Matrix:
    """Put matrices one below the other; those that were all rounded to the same bits before stay as they are."""
    rounded = [part for part in parts if isinstance(part, Rounded)]
    if len(rounded) == len(parts) and len({part.bits for part in rounded}) == 1:
        integers, scales = [part.integers for part in rounded], [part.scales for part in rounded]
        return Rounded(Stacked(integers), Stacked(scales), parts[0].shape[1])
    return Stacked(parts)
