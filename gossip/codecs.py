"""How a vector of float32 travels: each codec is a pair of pure functions, and says how much it changes a number.

All are little-endian and have no header: the length of the bytes follows from the number of elements, which both
sides know, so bytes of any other length are refused. What decodes is always finite.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import BadContribution, UnknownCodec

Floats = NDArray[np.float32]
Buffer = bytes | bytearray | memoryview

FLOAT16_MAX = 65504.0  # IEEE 754 binary16
INTEGER_INPUT_MAX = 3.0e38  # with the scale rounded up by 2^-7 it still is below float32's largest, 3.4e38
BLOCK = 1 << 16  # elements worked on at a time: 256 kB of float32 stays in a core's cache; a multiple of each chunk
INT8_CHUNK, INT8_MAX = 256, 127  # 0.8 % of scales; smaller chunks gained nothing in our comparison
INT4_CHUNK, INT4_MAX = 64, 7  # four bits need finer scales: 6 % of the bytes


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to write float32 (n,) as bytes.

    `encode(x, rng)` takes finite float32 (n,) and a generator (used only by codecs that round at random).
    `decode(data, n)` gives float32 (n,), which may be a read-only view of `data`.
    `size_bytes(n)` is the exact length of the encoded form.
    `encode` and `decode` raise BadContribution, and nothing else, for values or bytes that cannot be.
    """

    name: str
    encode: Callable[[Floats, np.random.Generator], bytes]
    decode: Callable[[Buffer, int], Floats]
    size_bytes: Callable[[int], int]


def codec(name: str) -> Codec:
    """Return the codec of this name.

    Raises:
        UnknownCodec: there is none; the message names the nearest.
    """
    if name in CODECS:
        return CODECS[name]
    near = difflib.get_close_matches(name, CODECS, n=1, cutoff=0.0)
    raise UnknownCodec(f"there is no codec {name!r}; did you mean {near[0]!r}? The codecs are {', '.join(CODECS)}")


def encode_float32(x: Floats, _rng: np.random.Generator) -> bytes:
    """Write four bytes an element. Error: none."""
    _require_finite(x)
    return x.astype("<f4", copy=False).tobytes()


def decode_float32(data: Buffer, n: int) -> Floats:
    """Read what `encode_float32` wrote."""
    _require_length(data, 4 * n)
    x = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    _require_finite(x)
    return x


def encode_float16(x: Floats, _rng: np.random.Generator) -> bytes:
    """Write two bytes an element, rounded to the nearest.

    Error: at most 2^-11 |x| + 2^-25 for |x| up to 65504; larger ones become 65504 with x's sign.
    """
    _require_finite(x)
    return np.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2").tobytes()


def decode_float16(data: Buffer, n: int) -> Floats:
    """Read what `encode_float16` wrote."""
    _require_length(data, 2 * n)
    halves = np.frombuffer(data, dtype="<f2")
    _require_finite(halves)
    return halves.astype(np.float32)


def encode_int8(x: Floats, rng: np.random.Generator) -> bytes:
    """Write one byte an element and a scale of two bytes for each 256, rounded at random so that the mean is exact.

    Error: at most 1.01 absmax / 127 + 2^-133, where absmax is the chunk's largest |x| (at most 3e38, beyond which x
    is clipped); its expectation is 0. Stochastic rounding and chunked scales as in QSGD (Alistarh 2017).
    """
    scales = _scales(x, INT8_CHUNK, INT8_MAX)
    quants = np.empty(x.size, dtype=np.int8)
    for block, quant in _quantised(x, scales, INT8_CHUNK, INT8_MAX, rng):
        quants[block] = quant
    return scales.tobytes() + quants.tobytes()


def decode_int8(data: Buffer, n: int) -> Floats:
    """Read what `encode_int8` wrote."""
    _require_length(data, size_bytes_int8(n))
    count = _chunks(n, INT8_CHUNK)
    quants = np.frombuffer(data, dtype=np.int8, offset=2 * count)
    return _rescaled(quants, np.frombuffer(data, dtype="<u2", count=count), INT8_CHUNK, INT8_MAX)


def size_bytes_int8(n: int) -> int:
    """Return the length of n elements in int8."""
    return 2 * _chunks(n, INT8_CHUNK) + n


def encode_int4(x: Floats, rng: np.random.Generator) -> bytes:
    """Write half a byte an element and a scale of two bytes for each 64, rounded at random so that the mean is exact.

    Element 2i is in the low half of byte i, as value + 8. Error: at most 1.01 absmax / 7 + 2^-133, its expectation
    is 0 (see `encode_int8`).
    """
    scales = _scales(x, INT4_CHUNK, INT4_MAX)
    nibbles = np.full(2 * ((x.size + 1) // 2), INT4_MAX + 1, dtype=np.uint8)
    for block, quant in _quantised(x, scales, INT4_CHUNK, INT4_MAX, rng):
        nibbles[block] = quant + (INT4_MAX + 1)
    return scales.tobytes() + (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()


def decode_int4(data: Buffer, n: int) -> Floats:
    """Read what `encode_int4` wrote."""
    _require_length(data, size_bytes_int4(n))
    count = _chunks(n, INT4_CHUNK)
    pairs = np.frombuffer(data, dtype=np.uint8, offset=2 * count)
    nibbles = np.empty(2 * pairs.size, dtype=np.int8)
    nibbles[0::2] = pairs & 0x0F
    nibbles[1::2] = pairs >> 4
    nibbles -= INT4_MAX + 1
    return _rescaled(nibbles[:n], np.frombuffer(data, dtype="<u2", count=count), INT4_CHUNK, INT4_MAX)


def size_bytes_int4(n: int) -> int:
    """Return the length of n elements in int4."""
    return 2 * _chunks(n, INT4_CHUNK) + (n + 1) // 2


CODECS = {
    each.name: each
    for each in (
        Codec("float32", encode_float32, decode_float32, lambda n: 4 * n),
        Codec("float16", encode_float16, decode_float16, lambda n: 2 * n),
        Codec("int8", encode_int8, decode_int8, size_bytes_int8),
        Codec("int4", encode_int4, decode_int4, size_bytes_int4),
    )
}


def _chunks(n: int, chunk: int) -> int:
    return -(-n // chunk)


def _scales(x: Floats, chunk: int, top: int) -> NDArray[np.uint16]:  # (n,) -> (chunks,)
    """Return absmax / top of each chunk as the upper half of a float32 (bfloat16), rounded up.

    Rounded up, no element lies beyond `top` steps. Not IEEE's half precision, although it has the same size: that
    one overflows from 65504 and is coarse below 6e-5, where the scales of small updates are.
    """
    if not x.size:
        return np.empty(0, dtype="<u2")
    largest = np.maximum.reduceat(np.abs(x), np.arange(0, x.size, chunk))
    _require_finite(largest)  # a chunk's maximum is not finite where one of its elements is not
    exact = (np.minimum(largest, np.float32(INTEGER_INPUT_MAX)) / np.float32(top)).astype(np.float32)
    return ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype("<u2")


def _steps(scales: NDArray[np.uint16]) -> Floats:
    return (scales.astype(np.uint32) << 16).view(np.float32)


def _quantised(
    x: Floats, scales: NDArray[np.uint16], chunk: int, top: int, rng: np.random.Generator
) -> Iterator[tuple[slice, Floats]]:
    """Give, block by block, x in steps of its chunk's scale, rounded at random to a whole number in [-top, top]."""
    steps = _steps(scales)
    steps[steps == 0] = 1  # a chunk of zeros, or of numbers so small that their scale is zero
    for start in range(0, x.size, BLOCK):
        block = slice(start, min(start + BLOCK, x.size))
        count = block.stop - start
        step = np.repeat(steps[start // chunk : _chunks(block.stop, chunk)], chunk)[:count]
        quant = x[block] / step
        quant += rng.random(count, dtype=np.float32)
        np.floor(quant, out=quant)
        yield block, np.clip(quant, -top, top, out=quant)  # 127 + 0.99999998 is 128 in float32


def _rescaled(quants: NDArray[np.int8], scales: NDArray[np.uint16], chunk: int, top: int) -> Floats:
    steps = _steps(scales)
    limit = np.float32(INTEGER_INPUT_MAX / top * 1.01)  # the largest that `_scales` gives; times 128 it is finite
    bad = np.flatnonzero((scales >> 15).astype(bool) | ~(steps <= limit))
    if bad.size:
        raise BadContribution(f"the scale of chunk {bad[0]} is {steps[bad[0]]}: it must be in [0, {limit:.3g}]")
    x = np.empty(quants.size, dtype=np.float32)
    for start in range(0, x.size, BLOCK):
        block = slice(start, min(start + BLOCK, x.size))
        step = np.repeat(steps[start // chunk : _chunks(block.stop, chunk)], chunk)[: block.stop - start]
        np.multiply(quants[block], step, out=x[block])
    return x


def _require_length(data: Buffer, length: int) -> None:
    found = memoryview(data).nbytes
    if found != length:
        raise BadContribution(f"{found} bytes where {length} are due")


def _require_finite(x: NDArray[np.floating]) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        first = int(np.argmin(finite))
        bad = x.size - int(np.count_nonzero(finite))
        raise BadContribution(f"{bad} of {x.size} values are not finite, the first is {x[first]} at {first}")
