"""Layers whose matrices were rounded, as blobs: a quarter or an eighth of the bytes, float32 for whoever reads them.

Each matrix (n, K) is int8 (n, K), or for 4 bits uint8 (n, K / 2), beside bfloat16 scales (n, K / 32) written as their
16 bits, all rounded up: as ``kernels/rounded.py`` lays them out. Here without torch, for nodes that never load it.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from ...mesh.errors import PeerError
from ..shapes import Schema, Shape

GROUP: Final = 32  # of ``kernels/grouping.py``, which needs torch
BITS: Final = (8, 4)

_SCALE: Final = "_scale"  # behind the name of the integers

Floats = npt.NDArray[np.float32]
Any = npt.NDArray[np.generic]
Rounded = tuple[Any, npt.NDArray[np.uint16]]  # integers, and the bits of the scales


def rounded_layer_blob(vectors: Mapping[str, Floats], matrices: Mapping[str, Rounded]) -> bytes:
    """One layer as safetensors; equal tensors give equal bytes, in whatever order they come."""
    stored: dict[str, Any] = dict(vectors)
    for name, (integers, scales) in matrices.items():
        stored |= {name: integers, name + _SCALE: scales}
    return safetensors.numpy.save({name: np.ascontiguousarray(stored[name]) for name in sorted(stored)})


def rounded_bytes(schema: Schema, bits: int) -> int:
    """How many bytes the tensors of a rounded layer take."""
    return sum(
        4 * math.prod(shape) if len(shape) < 2 else shape[0] * (_width(_columns(shape), bits) + 2 * _groups(shape))
        for _, shape in schema.values()
    )


def is_rounded(names: Mapping[str, object], schema: Schema) -> bool:
    """Whether these are the tensors of a rounded layer."""
    scales = {name + _SCALE for name, (_, shape) in schema.items() if len(shape) > 1}
    return bool(scales) and names.keys() == schema.keys() | scales


def unpacked(found: Mapping[str, Any], name: str, shape: Shape) -> Floats:
    """Return float32 of this shape from integers and scales. Raises PeerError for those of another one."""
    integers, scales = found[name], found[name + _SCALE]
    bits = 8 if integers.dtype == np.int8 else 4
    wanted = (shape[0], _width(_columns(shape), bits)), (shape[0], _groups(shape))
    if integers.dtype not in {np.dtype(np.int8), np.dtype(np.uint8)} or scales.dtype != np.uint16:
        raise PeerError(f"tensor {name!r} of a layer's blob is {integers.dtype} with scales {scales.dtype}")
    if (integers.shape, scales.shape) != wanted:
        raise PeerError(f"tensor {name!r} of a layer's blob is {integers.shape} and {scales.shape}, expected {wanted}")
    if bits == 4:
        pairs = integers.view(np.int8)
        integers = np.stack(((pairs << 4) >> 4, pairs >> 4), axis=-1).reshape(shape[0], -1)[:, : _columns(shape)]
    steps = (scales.astype(np.uint32) << 16).view(np.float32).repeat(GROUP, axis=1)[:, : _columns(shape)]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        product: Floats = integers.astype(np.float32) * steps
    return product.reshape(shape)


def _columns(shape: Shape) -> int:
    return math.prod(shape[1:])


def _groups(shape: Shape) -> int:
    return -(-_columns(shape) // GROUP)


def _width(columns: int, bits: int) -> int:
    return columns if bits == 8 else -(-columns // 2)
