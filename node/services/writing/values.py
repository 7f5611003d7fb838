"""Values on their way: a msgpack tree, and arrays beside it, from and to Python's own types. Nothing is ever pickled.

Arrays, and bytes and texts of some size, are references in the tree: extension types that name an array of the message
by its number, or a part of the ``pool``, one array of bytes. References come in order, to each part once, so that
a small message cannot stand for a large value. What reads a tree bounds it before anything is made of it.
"""

import struct
import sys
from collections.abc import Sequence
from typing import Any, Final, TypeVar, get_origin

import msgpack
import msgspec
import numpy as np

from ....mesh import limits
from ....mesh.errors import LeptonError, PeerError, UsageError
from ....mesh.tensors import DTYPES, Array
from ..messages import Value
from .array_types import element_type, is_array, is_tensor

# A tree of this many bytes takes at most 72 times as much memory: they may all be empty maps.
TREE_BYTES_MAX: Final = limits.MIB
# In the message itself; a longer one is its last array. Leaves room for the other fields within a header.
INLINE_TREE_BYTES_MAX: Final = limits.BIN_BYTES_MAX - 1024
ARRAYS_MAX: Final = limits.BUFFERS_MAX - 2  # beside the pool and the tree
VALUE_BYTES_MAX: Final = limits.BODY_BYTES_MAX - limits.MIB  # of arrays, together; the rest of a frame is the message
_POOLED_BYTES_MIN: Final = 4096  # bytes and texts of this size leave a tree that is too long; smaller ones stay
_ARRAY, _POOLED_BYTES, _POOLED_TEXT, _POOLED_ARRAY = 1, 2, 3, 4  # extension types
_INDEX: Final = struct.Struct(">H")
_PART: Final = struct.Struct(">HI")  # which array is the pool, how many bytes of it
_NAMES: Final = tuple(DTYPES)
_TOO_MANY: Final = f"it has more than {TREE_BYTES_MAX:,} parts; send long lists of numbers as an array"
_BUILTIN: Final = (bytes, bytearray)

T = TypeVar("T")


def encode(value: object) -> tuple[Value, list[Array]]:
    """Take a value apart. Raises UsageError for what does not travel, or is too large for one message."""
    collected = _Collected()
    try:
        tree = msgspec.msgpack.Encoder(enc_hook=collected.reference).encode(value)
        if len(tree) > INLINE_TREE_BYTES_MAX or len(collected.arrays) > ARRAYS_MAX:
            tree, collected = _Pool(collected.arrays).packed(tree)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"A {type(value).__name__} cannot travel like this: {error}.") from error
    arrays = collected.arrays
    if len(tree) > TREE_BYTES_MAX:
        raise UsageError(
            f"A {type(value).__name__} takes {len(tree)} B without its arrays; at most {TREE_BYTES_MAX} B travel: send "
            "long lists of numbers as an array."
        )
    if (size := sum(array.nbytes for array in arrays)) > VALUE_BYTES_MAX:
        raise UsageError(f"A {type(value).__name__} takes {size} B; one message holds {VALUE_BYTES_MAX}: stream parts.")
    if len(tree) <= INLINE_TREE_BYTES_MAX:
        return Value(tree=tree), arrays
    return Value(), [*arrays, np.frombuffer(tree, dtype=np.uint8)]


def decode(value: Value, arrays: Sequence[Array]) -> Any:  # noqa: ANN401 - plain data
    """Put a value together as plain data: None, bool, int, float, str, bytes, list, dict, and numpy arrays.

    Raises PeerError for anything that ``encode`` does not make.
    """
    tree: bytes | memoryview = value.tree
    if not tree:
        if not arrays:
            return None
        *arrays, last = arrays
        if last.dtype != np.uint8 or last.ndim != 1:
            raise PeerError("A value has no tree, and its last array is none.")
        tree = last.data
    if len(tree) > TREE_BYTES_MAX:
        raise PeerError(f"A value's tree takes {len(tree)} B; at most {TREE_BYTES_MAX} B are accepted.")
    references = _References(arrays)
    try:
        found = msgpack.unpackb(
            tree, raw=False, use_list=True, strict_map_key=False, timestamp=3, ext_hook=references.resolve
        )
        references.require_all_used()
    except PeerError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, struct.error, msgpack.UnpackException) as error:
        raise PeerError(f"A value cannot be read: {str(error)[:200] or type(error).__name__}.") from error
    return found


def convert(data: object, kind: type[T], *, what: str, fault: type[LeptonError] = UsageError) -> T:
    """Make plain data, as ``decode`` has it, a value of an annotation's type. Raises ``fault`` when it does not fit.

    Arrays are turned into the element type that the annotation names where that loses no more than digits.
    """
    try:
        return msgspec.convert(data, kind, strict=True, builtin_types=_BUILTIN, dec_hook=_custom)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise fault(f"{what}: {str(error)[:300]}") from error


def _custom(kind: Any, found: Any) -> Any:  # noqa: ANN401 - msgspec's hook
    """Arrays, and `object`, which msgspec does not know."""
    if kind is object:
        return found
    if not isinstance(found, np.ndarray):
        raise TypeError(f"Expected an array, got `{type(found).__name__}`")
    if is_tensor(kind):
        import torch

        # A view of a frame is writable and the receiver's own; torch wants nothing else.
        return torch.from_numpy(found if found.flags.writeable else found.copy())
    named = element_type(kind)
    if get_origin(kind) is None or named is None or np.issubdtype(found.dtype, named):
        return found
    if not is_array(kind) or not np.can_cast(found.dtype, named, "same_kind"):
        raise TypeError(f"Expected an array of {np.dtype(named).name}, got {found.dtype.name}")
    return found.astype(named)


class _Collected:
    """The arrays that an encoder met, in order."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def reference(self, found: Any) -> Any:  # noqa: ANN401 - msgspec's hook
        if isinstance(found, np.generic):
            return found.item()
        array = as_array(found)
        if array is None:
            raise TypeError(f"{type(found).__name__} is neither plain data, an array, a dataclass nor a Struct")
        self.arrays.append(array)
        return msgspec.msgpack.Ext(_ARRAY, _INDEX.pack(min(len(self.arrays) - 1, 65535)))


def as_array(found: object) -> Array | None:
    """A numpy array, or a tensor as one; None: it is neither. Raises ValueError for what does not travel."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(found, torch.Tensor):
        tensor = found
        try:
            found = tensor.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse
            raise ValueError(f"a tensor of {tensor.dtype} cannot travel ({error}); convert it first") from error
    if not isinstance(found, np.ndarray):
        return None
    if found.dtype.name not in DTYPES:
        raise ValueError(f"an array of {found.dtype.name} cannot travel; use one of {', '.join(DTYPES)}")
    if found.ndim > limits.TENSOR_DIMENSIONS_MAX:
        raise ValueError(f"an array of {found.ndim} dimensions cannot travel; {limits.TENSOR_DIMENSIONS_MAX} at most")
    return found


class _Pool:
    """Repacks a tree that is too long, or has too many arrays: what is large or too many goes into one array."""

    def __init__(self, arrays: list[Array]) -> None:
        if len(arrays) > 65535:
            raise ValueError(f"{len(arrays)} arrays are too many; stack them")
        self._arrays = arrays
        self._few = len(arrays) <= ARRAYS_MAX
        self._index = len(arrays) if self._few else 0
        self._parts: list[bytes | memoryview] = []
        self._nodes = 0

    def packed(self, tree: bytes) -> tuple[bytes, _Collected]:
        # Of more items than these, were each a byte, no tree is short enough: they are not even looked at.
        most = {"max_array_len": TREE_BYTES_MAX, "max_map_len": TREE_BYTES_MAX}
        try:
            raw = msgpack.unpackb(tree, raw=False, strict_map_key=False, **most)
        except ValueError as error:
            raise ValueError(_TOO_MANY) from error
        packed: bytes = msgpack.packb(self._lift(raw), use_bin_type=True)
        collected = _Collected()
        collected.arrays = self._arrays if self._few else []
        if self._parts:
            collected.arrays = [*collected.arrays, np.frombuffer(b"".join(self._parts), dtype=np.uint8)]
        return packed, collected

    def _lift(self, node: Any) -> Any:  # noqa: ANN401 - msgpack's tree
        self._nodes += 1
        if self._nodes > TREE_BYTES_MAX:
            raise ValueError(_TOO_MANY)
        match node:
            case msgpack.ExtType(code=code, data=data):
                return node if self._few or code != _ARRAY else self._array(self._arrays[_INDEX.unpack(data)[0]])
            case list():
                return [self._lift(each) for each in node]
            case dict():
                return {key: self._lift(each) for key, each in node.items()}
            case bytes() if len(node) >= _POOLED_BYTES_MIN:
                return self._part(_POOLED_BYTES, node)
            case str() if len(node) >= _POOLED_BYTES_MIN:
                return self._part(_POOLED_TEXT, node.encode())
        return node

    def _part(self, code: int, data: bytes | memoryview, also: bytes = b"") -> msgpack.ExtType:
        self._parts.append(data)
        return msgpack.ExtType(code, _PART.pack(self._index, len(data)) + also)

    def _array(self, array: Array) -> msgpack.ExtType:
        wire = np.ascontiguousarray(array, dtype=DTYPES[array.dtype.name])
        shape = struct.pack(f">B{array.ndim}I", _NAMES.index(array.dtype.name), *array.shape)
        return self._part(_POOLED_ARRAY, wire.reshape(-1).view(np.uint8).data, shape)


class _References:
    """Looks up what a tree refers to, each once and in order."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = arrays
        self._next = 0
        self._pool: int | None = None
        self._taken = 0  # bytes of the pool

    def resolve(self, code: int, data: bytes) -> Any:  # noqa: ANN401 - msgpack's hook
        match code:
            case 1:
                (index,) = _INDEX.unpack(data)
                if index != self._next or index >= len(self._arrays):
                    raise PeerError(
                        f"A value refers to array {index} where {self._next} of {len(self._arrays)} is next."
                    )
                self._next += 1
                return self._arrays[index]
            case 2:
                return bytes(self._part(data))
            case 3:
                return str(self._part(data), "utf-8")
            case 4:
                return self._array(data)
        raise PeerError(f"A value has the extension type {code}, which nobody sends.")

    def _part(self, data: bytes) -> memoryview:
        index, size = _PART.unpack_from(data)
        if index >= len(self._arrays) or self._pool not in {None, index}:
            raise PeerError("A value refers to a pool that it does not have.")
        self._pool = index
        pool = self._arrays[index]
        if pool.dtype != np.uint8 or pool.ndim != 1 or size > pool.nbytes - self._taken:
            raise PeerError(f"A value refers to {size} B behind {self._taken} B of its pool, which are not there.")
        self._taken += size
        part: memoryview = pool[self._taken - size : self._taken].data
        return part

    def _array(self, data: bytes) -> Array:
        part, layout = self._part(data), data[_PART.size :]
        dimensions = (len(layout) - 1) // 4
        if not layout or layout[0] >= len(_NAMES) or dimensions > limits.TENSOR_DIMENSIONS_MAX:
            raise PeerError("A value refers to an array of a kind that nobody sends.")
        number, *shape = struct.unpack(f">B{dimensions}I", layout)
        flat: Array = np.frombuffer(bytearray(part), dtype=DTYPES[_NAMES[number]])  # a copy: the part may be unaligned
        return flat.reshape(shape)

    def require_all_used(self) -> None:
        used = self._next + (self._pool is not None)
        if used != len(self._arrays) or (self._pool is not None and self._taken != self._arrays[self._pool].nbytes):
            raise PeerError(f"A value came with {len(self._arrays)} arrays, of which it uses {used}.")
