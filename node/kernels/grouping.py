"""Weights rounded to small integers: each 32 columns of a row share a scale, as in llama.cpp's Q8_0 and Q4_0."""

from typing import Final

import torch

from ...mesh.errors import UsageError

GROUP: Final = 32  # columns that share a scale; with a bfloat16 scale 8.5 and 4.5 bits a weight


def grouped(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round (n, K) with K a multiple of 32 to int8 (n, K / 32, 32) and bfloat16 scales (n, K / 32).

    A weight is then ``integer * scale``, within half a scale of what it was: 8 bits span -127 to 127, 4 bits -8 to 7,
    where the sign of the scale gives the -8 to the largest magnitude (llama.cpp's Q4_0). Raises UsageError for what
    is not finite.
    """
    groups = weight.to(torch.float32).unflatten(1, (-1, GROUP))  # (n, G, 32)
    if not torch.isfinite(groups).all():
        raise UsageError("these weights hold NaN or infinity, which no integer stands for; load them as bfloat16")
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # (n, G, 1), signed
    scale = away_from_zero(largest.abs() / 127 if bits == 8 else largest / -8)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    steps = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (groups / steps).round_().clamp_(low, high).to(torch.int8), scale.squeeze(2).to(torch.bfloat16)


def away_from_zero(scale: torch.Tensor) -> torch.Tensor:
    """Round float32 to what bfloat16 holds, never down in magnitude: the largest weight must not be cut off."""
    return ((scale.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)


def halves_joined(integers: torch.Tensor) -> torch.Tensor:
    """Join int8 (..., 2) of -8 to 7 to bytes (...): the even one in the low half, both in two's complement."""
    return ((integers[..., 0] & 15) | (integers[..., 1] << 4)).view(torch.uint8)


def halves_parted(pairs: torch.Tensor) -> torch.Tensor:
    """Part bytes (...) into int8 (..., 2), the inverse of ``halves_joined``."""
    signed = pairs.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1)
