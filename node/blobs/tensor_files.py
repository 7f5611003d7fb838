"""The safetensors format: a header of names, types, shapes and places, and raw numbers behind it. Nothing is executed.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, little end first; JSON; numbers without
holes). `header_of` writes the header that the library itself would: larger elements first, then by name, so that every
tensor is aligned and equal tensors give equal bytes. Pure.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from ...mesh.errors import UsageError

LENGTH_BYTES: Final = 8
HEADER_BYTES_MAX: Final = 100_000_000  # safetensors' own limit
_ALIGNMENT: Final = 8  # of the numbers, by spaces behind the header: as the library does
BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip

_Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Tensor(NamedTuple):
    """Where one tensor is in its file, and what it is."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    start: int  # from the file's beginning
    size_bytes: int


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Natural, _Natural]


def read_header(
    read: Callable[[int, int], bytes], size_bytes: int, what: str, *, header_bytes_max: int = HEADER_BYTES_MAX
) -> dict[str, Tensor]:
    """Read which tensors a file of ``size_bytes`` has, in the order of their places.

    ``read`` gives bytes from an offset on. Raises UsageError that names ``what`` for anything that is not valid.
    """
    length = int.from_bytes(read(0, LENGTH_BYTES), "little") if size_bytes >= LENGTH_BYTES else 0
    if not 0 < length <= min(header_bytes_max, size_bytes - LENGTH_BYTES):
        raise UsageError(f"{what} is not a safetensors file: it has no header, a cut one, or a larger one than allowed")
    try:
        found = msgspec.json.decode(read(LENGTH_BYTES, length), type=dict[str, Any])
        found.pop("__metadata__", None)
        entries = msgspec.convert(found, dict[str, _Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{what} is not a valid safetensors file: {str(error)[:200]}") from error
    return _placed(entries, LENGTH_BYTES + length, size_bytes, what)


def _placed(entries: Mapping[str, _Entry], base: int, size_bytes: int, what: str) -> dict[str, Tensor]:
    tensors, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].data_offsets, item[0])):
        start, end = entry.data_offsets
        if entry.dtype not in BITS:
            raise UsageError(
                f"{what}: tensor {name[:200]!r} is of type {entry.dtype[:20]!r}, which cannot be read here"
            )
        if start != at or (end - start) * 8 != math.prod(entry.shape) * BITS[entry.dtype]:
            raise UsageError(f"{what} is not a valid safetensors file: tensor {name[:200]!r} is not where it must be")
        tensors[name] = Tensor(entry.dtype, entry.shape, base + start, end - start)
        at = end
    if base + at != size_bytes:
        raise UsageError(f"{what} has {size_bytes:,} bytes where its header describes {base + at:,}; it may be cut off")
    return tensors


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order in which the library writes tensors."""
    return sorted(tensors, key=lambda name: (-BITS[tensors[name].dtype], name))


def header_of(tensors: Mapping[str, Tensor]) -> bytes:
    """Write the header for these tensors one behind another in the library's order, length included."""
    entries, at = {}, 0
    for name in in_order(tensors):
        dtype, shape, _, size = tensors[name]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
