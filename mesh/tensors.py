"""Tensors on the wire: a checked description in the header, raw little-endian buffers in the body. Never pickled."""

import math
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
import numpy.typing as npt

from . import limits
from .errors import PeerError
from .messages import Message, Natural

Array = npt.NDArray[np.generic]

DTYPES: Final = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "uint16", "uint32", "bool")
}


class TensorSpec(Message, frozen=True, kw_only=True, array_like=True):
    """Element type and shape of one tensor; its buffer follows in the body, C order, without padding."""

    dtype: str
    shape: Annotated[tuple[Natural, ...], msgspec.Meta(max_length=limits.TENSOR_DIMENSIONS_MAX)]


def describe(array: Array) -> TensorSpec:
    """Describe an array for the header. Raises ValueError for an element type that does not travel."""
    if array.dtype.name not in DTYPES:
        msg = f"Tensors of {array.dtype.name} do not travel; use one of {', '.join(DTYPES)}."
        raise ValueError(msg)
    return TensorSpec(dtype=array.dtype.name, shape=tuple(array.shape))


def buffer_of(array: Array) -> memoryview:
    """Return the array's bytes in wire order, without a copy where it is contiguous and little-endian already."""
    wire = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name])
    return wire.reshape(-1).view(np.uint8).data


def size_bytes(spec: TensorSpec) -> int:
    """Return the buffer's size. Raises PeerError for an unknown element type; Python integers cannot overflow."""
    if spec.dtype not in DTYPES:
        msg = f"Tensor type {spec.dtype[:32]!r} is not accepted; known are {', '.join(DTYPES)}."
        raise PeerError(msg)
    return math.prod(spec.shape) * DTYPES[spec.dtype].itemsize


def read(specs: Sequence[TensorSpec], body: memoryview) -> list[Array]:
    """Cut the body into arrays, without copying. Raises PeerError unless the sizes agree to the byte.

    Values are not looked at: call ``require_finite`` where a NaN would do harm.
    """
    sizes = [size_bytes(spec) for spec in specs]
    if sum(sizes) != body.nbytes:
        msg = f"The tensors described take {sum(sizes)} B but the frame carries {body.nbytes} B."
        raise PeerError(msg)
    arrays: list[Array] = []
    start = 0
    for spec, size in zip(specs, sizes, strict=True):
        arrays.append(_cut(spec, body[start : start + size]))
        start += size
    return arrays


def _cut(spec: TensorSpec, buffer: memoryview) -> Array:
    flat: Array = np.frombuffer(buffer, dtype=DTYPES[spec.dtype])
    if spec.dtype == "bool" and (flat.view(np.uint8) > 1).any():
        msg = "A tensor of bool has bytes that are neither 0 nor 1."
        raise PeerError(msg)
    try:
        return flat.reshape(spec.shape)
    except ValueError as error:  # empty, but with other dimensions that no array can have
        msg = f"No tensor can have the shape {spec.shape}: {error}"
        raise PeerError(msg) from error


def require(array: Array, *, dtype: str, shape: Sequence[int | None], what: str) -> Array:
    """Check an array against what is expected (``None`` = any size in that dimension). Raises PeerError."""
    fits = len(array.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype.name != dtype or not fits:
        expected = " x ".join("any" if want is None else str(want) for want in shape)
        msg = f"{what} is {array.dtype.name} {tuple(array.shape)}; expected {dtype} ({expected})."
        raise PeerError(msg)
    return require_finite(array, what=what)


def require_finite(array: Array, *, what: str) -> Array:
    """Check that no element is NaN or infinite. Raises PeerError that counts them."""
    if np.issubdtype(array.dtype, np.floating):
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            msg = f"{what} holds {bad} values that are not finite numbers; it was not used."
            raise PeerError(msg)
    return array
