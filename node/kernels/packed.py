"""Weights of a linear layer, packed once at some precision and multiplied with ever after.

The invariant: **a row of a product follows from that row of x and from the weights alone, bit for bit**. The number of
rows, the other rows, the row's place among them and the number of threads do not matter. So a cache that is rebuilt in
large pieces equals the one that grew token by token.

Which machines agree: the compiled kernel gives the same bits on every processor and with every compiler, because the
order of operations is written down (``products.h``) and each step rounds once. Torch's products agree with themselves
on one machine, with one version of torch and one number of torch's threads, and with the kernel's within rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, Literal, Protocol, get_args

import torch
from torch.nn import functional as F

from ...mesh.errors import UsageError
from .grouping import GROUP

Precision = Literal["float32", "bfloat16", "int8", "int4"]
LANES: Final = 16  # rows of W in a panel, as in native.c
# What is packed at once: 1 MiB of float32, and a few times as much beside it; less costs time in calls.
_SLICE_NUMBERS: Final = 2**18


class Matrix(Protocol):
    """What can be packed: a float tensor, one that is read from its file slice by slice, or one rounded before."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: slice, /) -> torch.Tensor: ...


class Packed(ABC):
    """A matrix W, float (outputs, inputs), at a precision. Its values are what ``rows`` gives.

    Equal W at equal precision are rounded equally by every implementation; only the order of sums differs.
    """

    kind: ClassVar[str]  # "native" or "torch"

    def __init__(self, weight: Matrix, precision: Precision) -> None:
        """Pack float32 or bfloat16 (outputs, inputs); ``weight`` is not kept. Raises UsageError for anything else."""
        if len(weight.shape) != 2 or weight.dtype not in {torch.float32, torch.bfloat16, torch.float16}:
            raise UsageError(f"weights are a float matrix, not {weight.dtype} {tuple(weight.shape)}")
        if 0 in weight.shape:
            raise UsageError(f"weights of shape {tuple(weight.shape)} hold nothing to multiply with")
        if precision not in get_args(Precision):
            raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
        self.precision = precision
        self.outputs, self.inputs = weight.shape

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What the weights take in memory, with scales and padding."""

    @abstractmethod
    def _product(self, x: torch.Tensor, threads: int) -> torch.Tensor: ...

    @abstractmethod
    def _rows(self, ids: torch.Tensor) -> torch.Tensor: ...

    def product(self, x: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
        """Return x W^T: float32 (M, inputs) -> float32 (M, outputs), summed in float32.

        Strides of x may be any. Of ``threads`` only the compiled kernel takes notice; torch has its own setting.
        Raises UsageError for another shape or dtype.
        """
        if x.ndim != 2 or x.shape[1] != self.inputs or x.dtype != torch.float32:
            raise UsageError(f"this product takes float32 (M, {self.inputs}), not {x.dtype} {tuple(x.shape)}")
        if not x.shape[0]:
            return x.new_empty((0, self.outputs))
        missing = -self.inputs % GROUP
        return self._product(F.pad(x, (0, missing)) if missing else x.contiguous(), threads)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up rows of W, as an embedding does: int (M,) -> float32 (M, inputs). UsageError beyond the last."""
        ids = ids.to(torch.int64).contiguous()
        if ids.ndim != 1 or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.outputs):
            raise UsageError(f"rows are named by one list of numbers from 0 to {self.outputs - 1}")
        return self._rows(ids)


def slices(weight: Matrix) -> Iterator[slice]:
    """Cut the rows of the matrix into slices of whole panels; at least one."""
    outputs, inputs = weight.shape
    rows = max(_SLICE_NUMBERS // inputs // LANES, 1) * LANES
    for first in range(0, outputs, rows):
        yield slice(first, min(first + rows, outputs))
