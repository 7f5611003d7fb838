"""Layers of the small trained models as blobs in safetensors: raw numbers behind a small header, never pickled.

The same tensors always give the same bytes. `read_layer_blob` takes a stranger's bytes and gives what the schema
promised, or PeerError; a layer that was rounded (`rounded_layers.py`) becomes float32 again.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from ...mesh.errors import PeerError
from ...mesh.limits import HEADER_BYTES_MAX
from ..shapes import Schema
from .rounded_layers import BITS, is_rounded, rounded_bytes, unpacked

_LENGTH_BYTES: Final = 8  # safetensors: a little-endian 64-bit header length comes first


def layer_blob(tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """One layer's tensors as safetensors; equal tensors give equal bytes, in whatever order and layout they come."""
    return safetensors.numpy.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def read_layer_blob(data: bytes, schema: Schema) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors in ``data``, copied out: exactly those of ``schema`` in name, dtype and shape, all finite.

    Raises PeerError for anything else, and nothing but PeerError whatever the bytes are.
    """
    _check_size(data, schema)
    try:
        found = safetensors.numpy.load(data)
    except Exception as error:  # the parser's own, and what a strange header makes Python raise: a stranger's bytes
        raise PeerError(f"a layer's blob is not valid safetensors: {error}") from error
    if is_rounded(found, schema):
        found = {
            name: unpacked(found, name, shape) if len(shape) > 1 else found[name] for name, (_, shape) in schema.items()
        }
    if found.keys() != schema.keys():
        raise PeerError(f"a layer's blob holds tensors {sorted(found)[:8]}, expected {sorted(schema)}")
    return {name: _tensor(name, found[name], *schema[name]) for name in schema}


def _check_size(data: bytes, schema: Schema) -> None:
    header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or header > HEADER_BYTES_MAX:
        raise PeerError("a layer's blob has no header, or a larger one than allowed")
    body = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in schema.values())
    expected = _LENGTH_BYTES + header + body
    if len(data) not in {expected, *(_LENGTH_BYTES + header + rounded_bytes(schema, bits) for bits in BITS)}:
        raise PeerError(f"a layer's blob has {len(data):,} bytes where its layer has {expected:,}, or fewer if rounded")


def _tensor(name: str, array: npt.NDArray[np.generic], dtype: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if array.dtype.name != dtype or array.shape != shape:
        raise PeerError(f"tensor {name!r} of a layer's blob is {array.dtype} {array.shape}, expected {dtype} {shape}")
    if not np.isfinite(array).all():
        raise PeerError(f"tensor {name!r} of a layer's blob holds NaN or infinity")
    return array.astype(np.float32)  # a copy
