"""A tensor in as few bytes as its numbers are worth: where there are zeros, which ones; then the rest, entropy-coded.

Three layouts are tried, and the smallest is taken: all numbers (`DENSE`); a bit for each that says whether it is 0, and
the others (`MASKED`); the distances between those that are not 0, and they (`GAPS`, where few are left). Bytes of one
place of all numbers lie together, since exponents are alike and the last bits are noise; numbers of 4 bits have a byte
each. What that gives goes through Zstandard, whose Huffman codes come within some percent of the entropy.

Nothing is lost: what is decoded is what was encoded, bit for bit. And nothing from a file is trusted: the reader says
which shape and type it wants, so that no more memory is taken than the tensor has, whatever the bytes claim.
"""

from typing import Final

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from ...mesh.errors import UsageError

DENSE, MASKED, GAPS = range(3)

_LEVEL: Final = 1  # of Zstandard: there are no repetitions to look for, and 6 finds some that cost more than codes
_LONGEST: Final = 255  # of the distance that one byte says; it means that the next one adds to it
_HEAD_BYTES: Final = 5  # layout, and the length of the first part
_WORTH: Final = 0.97  # of the plain bytes; above, to decode them is not worth it

_Bytes = NDArray[np.uint8]


def encoded(tensor: Tensor, *, halves: bool = False) -> Tensor | None:
    """Return uint8 (n,) that `decoded` makes the tensor of; None where that is hardly smaller.

    ``halves``: each byte holds two numbers of 4 bits.
    """
    rows = _rows(tensor, halves=halves)  # (n, bytes of a number)
    there: NDArray[np.bool_] = np.asarray(rows.any(axis=1))
    layouts = {DENSE: (b"", _planes(rows))}
    if not there.all():
        layouts[MASKED] = (_squeezed(np.packbits(there).tobytes()), _planes(rows[there]))
        layouts[GAPS] = (_squeezed(_gaps(there)), _planes(rows[there]))
    layout, (first, second) = min(layouts.items(), key=lambda item: len(item[1][0]) + len(item[1][1]))
    whole = bytes([layout]) + len(first).to_bytes(_HEAD_BYTES - 1, "little") + first + second
    if len(whole) >= _WORTH * tensor.nbytes:
        return None
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def decoded(data: Tensor, shape: torch.Size, dtype: torch.dtype, *, halves: bool = False) -> Tensor:
    """Return the tensor of this shape and type. Raises UsageError for bytes that are not one."""
    if data.dtype != torch.uint8 or data.ndim != 1 or len(data) < _HEAD_BYTES:
        raise UsageError("a coded tensor is a row of bytes, and this one is not")
    said = data.numpy().tobytes()
    length = int.from_bytes(said[1:_HEAD_BYTES], "little")
    first, second = said[_HEAD_BYTES : _HEAD_BYTES + length], said[_HEAD_BYTES + length :]
    count, width = (2 * shape.numel(), 1) if halves else (shape.numel(), dtype.itemsize)
    rows = np.zeros((count, width), np.uint8)
    match said[0]:
        case 0:
            rows[:] = _from_planes(second, count, width)
        case 1:
            there = _bits(_unsqueezed(first, -(-count // 8)), count)
            rows[there] = _from_planes(second, int(there.sum()), width)
        case 2:
            places = _places(_unsqueezed(first, None, at_most=count), count)
            rows[places] = _from_planes(second, len(places), width)
        case other:
            raise UsageError(f"a coded tensor has no layout {other}: the file is damaged, or of a newer version")
    whole = rows[0::2] & 15 | rows[1::2] << 4 if halves else rows
    return torch.frombuffer(bytearray(whole.tobytes()), dtype=dtype).reshape(shape)


def _rows(tensor: Tensor, *, halves: bool) -> _Bytes:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if halves:
        return np.stack((raw & 15, raw >> 4), axis=1).reshape(-1, 1)
    return raw.reshape(-1, tensor.element_size())


def _planes(rows: _Bytes) -> bytes:
    """Squeeze the bytes of each place by themselves: noise then costs its own size, and no more."""
    parts = [_squeezed(rows[:, place].tobytes()) for place in range(rows.shape[1])]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def _from_planes(said: bytes, count: int, width: int) -> _Bytes:
    rows = np.empty((count, width), np.uint8)
    at = 0
    for place in range(width):
        length = int.from_bytes(said[at : at + 4], "little")
        rows[:, place] = np.frombuffer(_unsqueezed(said[at + 4 : at + 4 + length], count), np.uint8)
        at += 4 + length
    if at != len(said):
        raise UsageError("a coded tensor is followed by bytes that belong to nothing")
    return rows


def _gaps(there: NDArray[np.bool_]) -> bytes:
    """Write how many zeros are before each number that is there: as many 255s as fit, then the rest."""
    gaps = np.diff(np.flatnonzero(there), prepend=-1) - 1
    ends = np.cumsum(gaps // _LONGEST + 1) - 1
    written = np.full(ends[-1] + 1 if len(ends) else 0, _LONGEST, np.uint8)
    written[ends] = gaps % _LONGEST
    return written.tobytes()


def _places(said: bytes, count: int) -> NDArray[np.int64]:
    written = np.frombuffer(said, np.uint8)
    ends = np.flatnonzero(written != _LONGEST)
    if len(written) and (not len(ends) or ends[-1] != len(written) - 1):
        raise UsageError("a coded tensor ends in the middle of a distance")
    places = np.cumsum(written, dtype=np.int64)[ends] + np.arange(len(ends))
    if len(places) and places[-1] >= count:
        raise UsageError("a coded tensor has numbers behind its end")
    return places


def _bits(said: bytes, count: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(said, np.uint8)).astype(np.bool_)
    if bits[count:].any():
        raise UsageError("a coded tensor has numbers behind its end")
    return bits[:count]


def _squeezed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def _unsqueezed(said: bytes, size_bytes: int | None, *, at_most: int = 0) -> bytes:
    """Unpack what says that it has exactly so many bytes, or at most so many; whatever else it says is refused."""
    try:
        claimed = zstandard.get_frame_parameters(said).content_size
        if claimed > at_most if size_bytes is None else claimed != size_bytes:
            raise UsageError(f"a part of a coded tensor says that it has {claimed:,} bytes, which it cannot have")
        raw = zstandard.ZstdDecompressor().decompress(said, max_output_size=max(claimed, 1), allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise UsageError(f"a part of a coded tensor cannot be unpacked: {error}") from error
    if len(raw) != claimed:
        raise UsageError(f"a part of a coded tensor has {len(raw):,} bytes and not {claimed:,}, as it says")
    return raw
