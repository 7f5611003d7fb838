"""How a group cuts its models: member j averages part j. Parts lie side by side, each filled up to the same length.

Filled up with zeros, all parts of all members are one tensor, whatever the number of parameters.
"""

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor


class Layout:
    """D parameters in m parts, as `gossip/plan.py` cuts them; each part filled up to a multiple of ``chunk``."""

    def __init__(self, dimension: int, members: int, chunk: int) -> None:
        share, self._long = divmod(dimension, members)
        self._share, self._split = share, self._long * (share + 1)
        longest = share + bool(self._long)
        self.dimension, self.members, self.length = dimension, members, -(-longest // chunk) * chunk
        sizes = [share + 1] * self._long + [share] * (members - self._long)
        self.sizes = torch.tensor(sizes, dtype=torch.float32)  # (m,)
        self.lengths = tuple(sizes)

    @property
    def places(self) -> tuple[slice, ...]:
        """Return where each part is in a model."""
        stops = accumulate(self.lengths)
        return tuple(slice(stop - length, stop) for stop, length in zip(stops, self.lengths, strict=True))

    def spread(self, x: Tensor, into: Tensor) -> Tensor:
        """Cut (..., D) into (..., m, length), which is zero where nothing comes, and return that."""
        for there, here in zip(self._views(into), self._pieces(x), strict=True):
            there.copy_(here)
        return into

    def join(self, spread: Tensor) -> Tensor:
        """Put (..., m, length) together again: (..., D)."""
        joined = spread.new_empty(*spread.shape[:-2], self.dimension)
        for there, here in zip(self._pieces(joined), self._views(spread), strict=True):
            there.copy_(here)
        return joined

    def norms(self, x: Tensor) -> Tensor:
        """Return the Euclidean norm of each part of (..., D): (..., m)."""
        return torch.cat([torch.linalg.vector_norm(piece, dim=-1) for piece in self._pieces(x)], -1)

    def _pieces(self, x: Tensor) -> list[Tensor]:
        long, short = x[..., : self._split], x[..., self._split :]
        rest = self.members - self._long
        pieces = [long.unflatten(-1, (self._long, self._share + 1))] if self._long else []
        return pieces + ([short.unflatten(-1, (rest, self._share))] if rest else [])

    def _views(self, spread: Tensor) -> list[Tensor]:
        views = [spread[..., : self._long, : self._share + 1]] if self._long else []
        rest = self._long < self.members
        return views + ([spread[..., self._long :, : self._share]] if rest else [])


@lru_cache(maxsize=64)
def layout_of(dimension: int, members: int, chunk: int) -> Layout:
    """Return that layout, the same one each time: groups of the same sizes come again every round."""
    return Layout(dimension, members, chunk)
