"""Control messages: msgpack with hard limits, then a schema with exact types. What does not fit is the sender's fault.

Every message type is a frozen ``msgspec.Struct``. ``msgpack`` decodes (it can refuse long containers before it makes
them), ``msgspec.convert`` checks names, types and ranges.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgpack
import msgspec

from . import limits
from .errors import PeerError


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all that travels: immutable, named fields, unknown fields refused."""


# Names of models, tasks, services, methods, record kinds: safe as a file name and in a URL (trust.md).
# `\Z` and not `$`, which would let a newline follow.
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}\Z"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=limits.STRING_BYTES_MAX)]
Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]

M = TypeVar("M")


def encoded(message: object) -> bytes:
    """Encode one message of any size."""
    data: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)), use_bin_type=True)
    return data


def pack(message: object) -> bytes:
    """Encode one message to send. An oversized one is our own bug and fails an assertion."""
    data = encoded(message)
    assert len(data) <= limits.HEADER_BYTES_MAX, f"our own {type(message).__name__} takes {len(data)} B"
    return data


def unpack(data: bytes | bytearray | memoryview, kind: type[M]) -> M:
    """Decode and check one message of a known type. Raises PeerError that names what was wrong with it."""
    what = kind.__name__
    if len(data) > limits.HEADER_BYTES_MAX:
        msg = f"A {what} message of {len(data)} B is over the limit of {limits.HEADER_BYTES_MAX} B."
        raise PeerError(msg)
    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            max_str_len=limits.STRING_BYTES_MAX,
            max_bin_len=limits.BIN_BYTES_MAX,
            max_array_len=limits.ARRAY_ITEMS_MAX,
            max_map_len=limits.MAP_ITEMS_MAX,
            max_ext_len=0,
            object_pairs_hook=_no_duplicates,
            ext_hook=_no_extension,
        )
        _check_depth(raw)
        return msgspec.convert(raw, kind, strict=True, builtin_types=(bytes,))
    except (ValueError, TypeError, msgpack.UnpackException, msgspec.ValidationError, RecursionError) as error:
        msg = f"A message is not a valid {what}: {str(error)[:200]}."
        raise PeerError(msg) from error


def _no_duplicates(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        msg = "a key appears twice"
        raise ValueError(msg)
    return decoded


def _no_extension(code: int, _data: bytes) -> object:
    msg = f"extension type {code} is not part of the protocol"
    raise ValueError(msg)


def _check_depth(value: object) -> None:
    if isinstance(value, dict) and not any(isinstance(item, list | dict) for item in value.values()):
        return  # most messages
    level = [value]
    for _ in range(limits.DEPTH_MAX + 1):
        level = [
            item
            for node in level
            if isinstance(node, list | dict)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    msg = f"it nests deeper than {limits.DEPTH_MAX} levels"
    raise ValueError(msg)
