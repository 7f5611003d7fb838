"""A tensor that stays in its file: rows are read when they are asked for, and of what was read nothing is kept.

Mapped memory counts as this process's once it was touched; a large matrix that is read once, slice by slice, is never
in memory whole.
"""

import math
from collections.abc import Callable
from typing import Final

import torch

from ...mesh.errors import LeptonError
from .tensor_files import Tensor

DTYPES: Final = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip


class StoredTensor:
    """Where a tensor is, with what a matrix to be packed has: shape, dtype, and slices of rows."""

    def __init__(self, read: Callable[[int, int], bytes], tensor: Tensor, what: str) -> None:
        """``read`` gives bytes of the file from an offset on; ``what`` names the file in errors."""
        self.shape = tensor.shape
        self.dtype = DTYPES[tensor.dtype]
        self._read = read
        self._start = tensor.start
        self._what = what

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Read rows. Raises LeptonError when they cannot be read."""
        first, end, _ = rows.indices(self.shape[0])
        shape = (max(end - first, 0), *self.shape[1:])
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if not (size_bytes := shape[0] * row_bytes):
            return torch.empty(shape, dtype=self.dtype)
        data = bytearray(self._read(self._start + first * row_bytes, size_bytes))
        if len(data) != size_bytes:
            raise LeptonError(f"{self._what} became shorter while it was read; fetch or save it again.")
        return torch.frombuffer(data, dtype=self.dtype).reshape(shape)
