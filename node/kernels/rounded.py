"""A matrix that was rounded before: integers and scales as they are stored, which packing keeps as they are.

Stored are int8 (outputs, inputs), or for 4 bits bytes (outputs, inputs / 2) with the even column in the low half, and
bfloat16 scales (outputs, inputs / 32), both rounded up. A weight is ``integer * scale``. The invariant: **what is
packed at the matrix's own precision is exactly what is stored**, whoever chose the integers.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ...mesh.errors import UsageError
from .grouping import GROUP, grouped, halves_joined, halves_parted
from .packed import Matrix

BITS = {torch.int8: 8, torch.uint8: 4}


class Rounded:
    """Implements `Matrix`: its slices are float32."""

    dtype = torch.float32

    def __init__(self, integers: Matrix, scales: Matrix, inputs: int) -> None:
        """Take both as they are stored; rows are read when they are asked for. Raises UsageError for what misfits."""
        if integers.dtype not in BITS or scales.dtype != torch.bfloat16:
            raise UsageError(f"rounded weights are int8 or uint8 with bfloat16 scales, not {integers.dtype}")
        self.bits = BITS[integers.dtype]
        self.shape = (integers.shape[0], inputs)
        width = inputs if self.bits == 8 else -(-inputs // 2)
        wanted = (self.shape[0], width), (self.shape[0], -(-inputs // GROUP))
        if (tuple(integers.shape), tuple(scales.shape)) != wanted:
            raise UsageError(
                f"rounded weights {self.shape} are stored as {wanted[0]} with scales {wanted[1]}, "
                f"not as {tuple(integers.shape)} with {tuple(scales.shape)}"
            )
        self.integers, self.scales = integers, scales

    @classmethod
    def of(cls, groups: torch.Tensor, scales: torch.Tensor, bits: int, inputs: int) -> "Rounded":
        """Store int8 (n, G, 32), those behind ``inputs`` columns dropped, and bfloat16 (n, G)."""
        integers = groups.flatten(1)[:, :inputs]
        if bits == 4:
            integers = halves_joined(F.pad(integers, (0, inputs % 2)).unflatten(1, (-1, 2)))
        return cls(integers.contiguous(), scales, inputs)

    def groups(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int8 (n, G, 32), zeros behind the last column, and bfloat16 (n, G). UsageError for NaN, infinity."""
        scales = self.scales[rows]
        if not torch.isfinite(scales).all():
            raise UsageError("scales of these rounded weights are NaN or infinite: the file is damaged")
        integers = self.integers[rows]
        if self.bits == 4:
            integers = halves_parted(integers).flatten(1)[:, : self.shape[1]]
        return F.pad(integers, (0, -self.shape[1] % GROUP)).unflatten(1, (-1, GROUP)), scales

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Rows as float32."""
        integers, scales = self.groups(rows)
        return (integers * scales.to(torch.float32).unsqueeze(2)).flatten(1)[:, : self.shape[1]]

    @property
    def size_bytes(self) -> int:
        """What the stored integers and scales take."""
        width = self.integers.shape[1] + 2 * self.scales.shape[1]
        return self.shape[0] * width


def groups_of(weight: Matrix, rows: slice, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``grouped`` makes of some rows, or what the matrix was rounded to before at this precision."""
    if isinstance(weight, Rounded) and weight.bits == bits:
        return weight.groups(rows)
    return grouped(F.pad(weight[rows].detach(), (0, -weight.shape[1] % GROUP)), bits)


def rounded_arrays(
    weight: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.int8 | np.uint8], npt.NDArray[np.uint16]]:
    """Round float32 (n, ...) to the nearest; returns what is stored, the scales as their 16 bits."""
    matrix = torch.from_numpy(weight).flatten(1)
    padded = F.pad(matrix, (0, -matrix.shape[1] % GROUP))
    found = Rounded.of(*grouped(padded, bits), bits, matrix.shape[1])
    return found.integers[:].numpy(), found.scales[:].view(torch.uint16).numpy()
