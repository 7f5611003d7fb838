"""The products in torch alone, for machines without the compiled kernel.

Torch's matrix product may sum a row in another order when the number of rows is another. So every product here has the
same shape, a tile of 8 rows (the last one padded) times a slice of W; whether the rows of such a tile are then equal in
every place is tried once per shape, and where they are not, a tile is one row.
"""

from functools import lru_cache
from typing import ClassVar, Final

import torch
from torch.nn import functional as F

from .grouping import GROUP, halves_joined, halves_parted
from .packed import Matrix, Packed, Precision, slices
from .rounded import groups_of

TILE: Final = 8  # rows: a product with 8 takes 1.2 to 1.8 times as long as with one
SLICE: Final = 512  # rows of W that become float32 at once: 1.5 MB at a width of 768, which stays in the cache


class PlainPacked(Packed):
    """Weights as torch has them: integers with a scale for each 32 columns, or floats."""

    kind: ClassVar[str] = "torch"

    def __init__(self, weight: Matrix, precision: Precision) -> None:
        super().__init__(weight, precision)
        self._width = self.inputs + -self.inputs % GROUP
        for rows in slices(weight):  # filled slice by slice: joined at the end, it would be in memory twice
            weights, scales = self._packed(weight, rows)
            if not rows.start:
                self._weights = weights.new_empty((self.outputs, *weights.shape[1:]))
                self._scales = scales.new_empty((self.outputs, *scales.shape[1:]) if scales.ndim > 1 else 0)
            self._weights[rows] = weights
            if scales.ndim > 1:
                self._scales[rows] = scales

    def _packed(self, weight: Matrix, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and scales of some rows; floats have no scales."""
        if self.precision in {"float32", "bfloat16"}:
            dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
            padded = F.pad(weight[rows].detach(), (0, self._width - self.inputs)).to(dtype)
            return padded, padded.new_empty(0)
        integers, scales = groups_of(weight, rows, 8 if self.precision == "int8" else 4)
        return (integers if self.precision == "int8" else halves_joined(integers.unflatten(2, (-1, 2)))), scales

    def _floats(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        """Return rows of W as float32 (n, width)."""
        weights = self._weights[chosen]
        if self.precision in {"float32", "bfloat16"}:
            return weights.to(torch.float32)
        integers = halves_parted(weights).flatten(2) if self.precision == "int4" else weights
        return (integers * self._scales[chosen].to(torch.float32).unsqueeze(2)).flatten(1)

    @property
    def size_bytes(self) -> int:
        return self._weights.nbytes + self._scales.nbytes

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self._floats(ids)[:, : self.inputs].contiguous()

    def _product(self, x: torch.Tensor, threads: int) -> torch.Tensor:  # noqa: ARG002  torch has its own
        y = x.new_empty((len(x), self.outputs))
        for begin in range(0, self.outputs, SLICE):
            end = min(begin + SLICE, self.outputs)
            weight = self._floats(slice(begin, end))
            rows = tile_rows(self._width, end - begin, torch.get_num_threads())
            for first in range(0, len(x), rows):
                piece = x[first : first + rows]
                # A copy: a tile always begins at the same alignment, which decides how MKL sums.
                tile = F.pad(piece, (0, 0, 0, rows - len(piece))) if len(piece) < rows else piece.clone()
                y[first : first + rows, begin:end] = F.linear(tile, weight)[: len(piece)]
        return y


@lru_cache(maxsize=256)
def tile_rows(inputs: int, outputs: int, threads: int) -> int:  # noqa: ARG001  part of the cache's key
    """Return TILE when a row of such a product is the same at each place of a tile and beside any others, else 1."""
    draw = torch.Generator().manual_seed(inputs * 1_000_003 + outputs)
    weight = torch.randn((outputs, inputs), generator=draw)
    row = torch.randn(inputs, generator=draw)
    found = []
    for place in range(TILE):
        tile = torch.randn((TILE, inputs), generator=draw) * 10.0 ** (place - 4)
        tile[place] = row
        found.append(F.linear(tile, weight)[place])
    alike = all(torch.equal(found[0], each) for each in found)
    return TILE if alike else 1
