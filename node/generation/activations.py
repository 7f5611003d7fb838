"""How what goes from stage to stage is written: as it is, rounded to bfloat16, or in 8 bits with a scale a position.

A stage rounds once, keeps what it sent, and its own replica rounds the same, so replays give the same tokens. Another
placement rounds at other layers: only float32 gives the same text wherever the layers are.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ...mesh.tensors import Array
from ..deployments import Activations

_FLOAT_BYTES: Final = 4
_INT8_MAX: Final = 127

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def position_bytes(width: int, activations: Activations) -> int:
    """Return what one position of ``width`` numbers takes on the wire."""
    return {"float32": 4 * width, "bfloat16": 2 * width, "int8": width + _FLOAT_BYTES}[activations]


def write(y: Array, activations: Activations) -> Bytes:
    """Turn float32 (T, width) into uint8 (T, bytes of a position)."""
    values: Float = np.ascontiguousarray(y, dtype="<f4")
    match activations:
        case "float32":
            return values.view(np.uint8)
        case "bfloat16":
            return _to_bfloat16(values).view(np.uint8)
        case "int8":
            return _to_int8(values)


def read(x: Array, width: int, activations: Activations) -> Float:
    """Turn uint8 (T, bytes of a position) into float32 (T, width). Raises UsageError for scales that are no numbers."""
    data: Bytes = np.ascontiguousarray(x, dtype=np.uint8)
    match activations:
        case "float32":
            return data.view("<f4")
        case "bfloat16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case "int8":
            scale = np.ascontiguousarray(data[:, :_FLOAT_BYTES]).view("<f4")
            if not np.isfinite(scale).all():
                raise UsageError("Activations came with a scale that is not a finite number.")
            numbers: Float = data[:, _FLOAT_BYTES : _FLOAT_BYTES + width].view(np.int8).astype(np.float32)
            scaled: Float = numbers * scale
            return scaled


def _to_bfloat16(values: Float) -> npt.NDArray[np.uint16]:
    """To the nearest, ties to even. What is not a number stays none."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def _to_int8(values: Float) -> Bytes:
    largest = np.abs(values).max(axis=1, keepdims=True)
    scale = (largest / np.float32(_INT8_MAX)).astype("<f4")
    safe = np.where((scale > 0) & np.isfinite(scale), scale, np.float32(1))
    numbers = np.clip(np.rint(values / safe), -_INT8_MAX, _INT8_MAX)
    return np.concatenate([scale.view(np.uint8), np.nan_to_num(numbers).astype(np.int8).view(np.uint8)], axis=1)
