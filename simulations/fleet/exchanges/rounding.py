"""What arrives of vectors that travel by a codec, for many of them at once: the formulas of `gossip/codecs.py`.

Nothing is packed: a vector becomes what its receiver decodes. Given the same bytes of noise, bit for bit the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....gossip import codecs

_UPPER_HALF = 0xFFFF  # added before the lower half of a float32 is cut off, it rounds up


@dataclass(frozen=True, slots=True)
class Rounding:
    """One codec. ``chunk`` is what its scales belong to: 1 where it has none.

    ``arrive(x, noise)`` turns float32 (R, n) into what is decoded of it, in place; where it is ``random`` it wants
    uint8 (R, n) too. Finite values only: a machine refuses others before they travel.
    """

    name: str
    chunk: int
    arrive: Callable[[Tensor, Tensor], None]
    random: bool = False

    @property
    def exact(self) -> bool:
        return codecs.codec(self.name).exact

    def size_bytes(self, n: int) -> int:
        """Return how long n elements are as they travel."""
        return codecs.codec(self.name).size_bytes(n)

    def through(self, x: Tensor, dice: np.random.Generator) -> Tensor:
        """Turn contiguous float32 (..., n) into what a receiver decodes of it, in place, and return it."""
        if x.numel() and not self.exact:
            rows = x.view(-1, x.shape[-1])
            self.arrive(rows, noise_for(rows, dice) if self.random else _NOTHING)
        return x


_NOTHING = torch.empty(0, dtype=torch.uint8)


def noise_for(x: Tensor, dice: np.random.Generator) -> Tensor:
    """Draw a byte for each element."""
    words = dice.integers(0, 2**64 - 1, size=-(-x.numel() // 8), dtype=np.uint64, endpoint=True)
    return torch.from_numpy(words.view(np.uint8)[: x.numel()]).view(x.shape)


def rounding(name: str) -> Rounding:
    """Return the codec of this name. Raises UnknownCodec."""
    codecs.codec(name)
    return ROUNDINGS[name]


def _as_it_is(_x: Tensor, _noise: Tensor) -> None:
    pass


def _float16(x: Tensor, _noise: Tensor) -> None:
    x.copy_(x.clamp_(-codecs.FLOAT16_MAX, codecs.FLOAT16_MAX).half())


def _bfloat16(x: Tensor, _noise: Tensor) -> None:
    x.copy_(x.clamp_(-codecs.BFLOAT16_MAX, codecs.BFLOAT16_MAX).bfloat16())


def _whole_numbers(x: Tensor, noise: Tensor, chunk: int, top: int) -> None:
    """Round to whole steps of each chunk's scale, by lot: in 256ths of a step plus a byte of noise, cut off."""
    whole = x.shape[1] - x.shape[1] % chunk
    pieces = [piece for piece in (slice(0, whole), slice(whole, x.shape[1])) if piece.stop > piece.start]
    steps = [_steps(_chunked(x[:, piece], chunk), top) for piece in pieces]
    tiny = torch.nonzero(torch.cat(steps, 1).amin(1) < codecs.STEP_TINY).flatten()
    for piece, step in zip(pieces, steps, strict=True):
        _round(_chunked(x[:, piece], chunk), _chunked(noise[:, piece], chunk), step, tiny, top)


def _round(x: Tensor, noise: Tensor, steps: Tensor, tiny: Tensor, top: int) -> None:
    """Round (R, chunks, chunk); the rows ``tiny`` have a step whose inverse is not finite in float32."""
    if len(tiny):
        wide = steps[tiny].double()
        inverse = codecs.FRACTIONS / torch.where(wide > 0, wide, torch.inf)
        mended = (x[tiny].double() * inverse.unsqueeze(-1)).float()
    x.mul_((codecs.FRACTIONS / steps).unsqueeze(-1))
    if len(tiny):
        x[tiny] = mended
    x.round_().clamp_(-codecs.FRACTIONS * top, codecs.FRACTIONS * top).add_(noise)
    x.mul_(1 / codecs.FRACTIONS).floor_().mul_(steps.unsqueeze(-1))


def _chunked(x: Tensor, chunk: int) -> Tensor:  # (R, n) -> (R, chunks, chunk); or the one chunk that is shorter
    chunks: Tensor = x.unflatten(1, (-1, min(chunk, x.shape[1])))
    return chunks


def _steps(x: Tensor, top: int) -> Tensor:  # (R, chunks, chunk) -> (R, chunks)
    """Return the largest of each chunk over ``top``, as the upper half of a float32, rounded up."""
    largest = torch.maximum(x.amax(-1), x.amin(-1).neg_())
    exact = largest.clamp_(max=codecs.INTEGER_INPUT_MAX) / top
    upper: Tensor = ((exact.view(torch.int32) + _UPPER_HALF) >> 16) << 16
    steps: Tensor = upper.view(torch.float32)
    return steps


def _int8(x: Tensor, noise: Tensor) -> None:
    _whole_numbers(x, noise, codecs.INT8_CHUNK, codecs.INT8_MAX)


def _int4(x: Tensor, noise: Tensor) -> None:
    _whole_numbers(x, noise, codecs.INT4_CHUNK, codecs.INT4_MAX)


ROUNDINGS = {
    each.name: each
    for each in (
        Rounding("float32", 1, _as_it_is),
        Rounding("float16", 1, _float16),
        Rounding("bfloat16", 1, _bfloat16),
        Rounding("int8", codecs.INT8_CHUNK, _int8, random=True),
        Rounding("int4", codecs.INT4_CHUNK, _int4, random=True),
    )
}
