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
BFLOAT16_MAX = 3.3895313892515355e38  # 0x7F7F as the upper half of a float32
# With the scale rounded up by 2^-7 even 8 sevenths of it, which a liar writes into four bits, are below 3.4e38.
INTEGER_INPUT_MAX = 2.9e38
BLOCK = 1 << 16  # elements worked on at a time: 256 kB of float32 stays in a core's cache; a multiple of each chunk
INT8_CHUNK, INT8_MAX = 256, 127  # 0.8 % of scales; smaller chunks gained nothing in our comparison
FRACTION_BITS = 8  # of the fixed point in which values are rounded at random: with seven whole ones they fill an int16
FRACTIONS = 1 << FRACTION_BITS
STEP_TINY = 1e-35  # 256 times its inverse is still finite in float32
INT4_CHUNK, INT4_MAX = 64, 7  # four bits need finer scales: 6 % of the bytes


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to write float32 (n,) as bytes.

    `encode(x, rng)` takes finite float32 (n,) and a generator (used only by codecs that round at random). What it
    gives may be a view of `x`, as a buffer of bytes.
    `decode(data, n, out)` gives float32 (n,): a read-only view of `data`, memory of its own, or `out` where that is
    given and useful; what is in `out` then is the caller's to overwrite.
    `size_bytes(n)` is the exact length of the encoded form. `exact`: what is decoded is what was encoded.
    `encode` and `decode` raise BadContribution, and nothing else, for values or bytes that cannot be.
    """

    name: str
    encode: Callable[[Floats, np.random.Generator], Buffer]
    decode: Callable[..., Floats]
    size_bytes: Callable[[int], int]
    exact: bool = False


def codec(name: str) -> Codec:
    """Return the codec of this name.

    Raises:
        UnknownCodec: there is none; the message names the nearest.
    """
    if name in CODECS:
        return CODECS[name]
    near = difflib.get_close_matches(name, CODECS, n=1, cutoff=0.0)
    raise UnknownCodec(f"there is no codec {name!r}; did you mean {near[0]!r}? The codecs are {', '.join(CODECS)}")


def encode_float32(x: Floats, _rng: np.random.Generator) -> Buffer:
    """Write four bytes an element: no copy, where x lies in memory as it travels. Error: none."""
    _require_finite(x)
    return np.ascontiguousarray(x, dtype="<f4").view(np.uint8).data


def decode_float32(data: Buffer, n: int, _out: Floats | None = None) -> Floats:
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


def decode_float16(data: Buffer, n: int, _out: Floats | None = None) -> Floats:
    """Read what `encode_float16` wrote."""
    _require_length(data, 2 * n)
    halves = np.frombuffer(data, dtype="<f2")
    _require_finite(halves)
    return halves.astype(np.float32)


def encode_bfloat16(x: Floats, _rng: np.random.Generator) -> bytes:
    """Write the upper half of each float32, rounded to the nearest, of two equally near to the even one.

    Error: at most 2^-8 |x| + 2^-134 for |x| up to 3.3895e38; larger ones become that with x's sign.
    """
    _require_finite(x)
    halves = np.empty(x.size, dtype="<u2")
    for start in range(0, x.size, BLOCK):
        bits = np.clip(x[start : start + BLOCK], -BFLOAT16_MAX, BFLOAT16_MAX).view(np.uint32)
        bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
        np.copyto(halves[start : start + BLOCK], np.right_shift(bits, 16, out=bits), casting="unsafe")
    return halves.tobytes()


def decode_bfloat16(data: Buffer, n: int, _out: Floats | None = None) -> Floats:
    """Read what `encode_bfloat16` wrote."""
    _require_length(data, 2 * n)
    x = _steps(np.frombuffer(data, dtype="<u2"))
    _require_finite(x)
    return x


def encode_int8(x: Floats, rng: np.random.Generator) -> bytes:
    """Write one byte an element and a scale of two bytes for each 256, rounded at random so that the mean is exact.

    Error: at most 1.01 absmax / 127 + 2^-133, where absmax is the chunk's largest |x| (at most 3e38, beyond which x
    is clipped); its expectation is within 1/512 of that. Stochastic rounding and chunked scales as in QSGD (Alistarh
    2017).
    """
    scales = _scales(x, INT8_CHUNK, INT8_MAX)
    quants = np.empty(x.size, dtype=np.int8)
    for block, fixed in _quantised(x, scales, INT8_CHUNK, INT8_MAX, rng):
        np.copyto(quants[block], fixed, casting="unsafe")
    return scales.tobytes() + quants.tobytes()


def decode_int8(data: Buffer, n: int, out: Floats | None = None) -> Floats:
    """Read what `encode_int8` wrote."""
    _require_length(data, size_bytes_int8(n))
    count = _chunks(n, INT8_CHUNK)
    quants = np.frombuffer(data, dtype=np.int8, offset=2 * count)
    return _rescaled(quants, np.frombuffer(data, dtype="<u2", count=count), INT8_CHUNK, INT8_MAX, out)


def size_bytes_int8(n: int) -> int:
    """Return the length of n elements in int8."""
    return 2 * _chunks(n, INT8_CHUNK) + n


def encode_int4(x: Floats, rng: np.random.Generator) -> bytes:
    """Write half a byte an element and a scale of two bytes for each 64, rounded at random so that the mean is exact.

    Element 2i is in the low half of byte i, as value + 8. Error: at most 1.01 absmax / 7 + 2^-133, its expectation
    is within 1/512 of that (see `encode_int8`).
    """
    scales = _scales(x, INT4_CHUNK, INT4_MAX)
    nibbles = np.full(2 * ((x.size + 1) // 2), INT4_MAX + 1, dtype=np.uint8)
    for block, fixed in _quantised(x, scales, INT4_CHUNK, INT4_MAX, rng):
        np.copyto(nibbles[block], np.add(fixed, INT4_MAX + 1, out=fixed), casting="unsafe")
    pairs = nibbles.view("<u2")  # low nibble + 256 high nibble
    packed: NDArray[np.uint8] = ((pairs | (pairs >> 4)) & 0xFF).astype(np.uint8)
    return scales.tobytes() + packed.tobytes()


def decode_int4(data: Buffer, n: int, out: Floats | None = None) -> Floats:
    """Read what `encode_int4` wrote."""
    _require_length(data, size_bytes_int4(n))
    count = _chunks(n, INT4_CHUNK)
    pairs = np.frombuffer(data, dtype=np.uint8, offset=2 * count).astype("<u2")
    nibbles = ((pairs | (pairs << 4)) & 0x0F0F).view(np.int8)
    nibbles -= INT4_MAX + 1
    return _rescaled(nibbles[:n], np.frombuffer(data, dtype="<u2", count=count), INT4_CHUNK, INT4_MAX, out)


def size_bytes_int4(n: int) -> int:
    """Return the length of n elements in int4."""
    return 2 * _chunks(n, INT4_CHUNK) + (n + 1) // 2


CODECS = {
    each.name: each
    for each in (
        Codec("float32", encode_float32, decode_float32, lambda n: 4 * n, exact=True),
        Codec("float16", encode_float16, decode_float16, lambda n: 2 * n),
        Codec("bfloat16", encode_bfloat16, decode_bfloat16, lambda n: 2 * n),
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
    largest = np.empty(_chunks(x.size, chunk), dtype=np.float32)
    for start in range(0, x.size, BLOCK):
        sizes = np.abs(x[start : start + BLOCK])
        np.maximum.reduceat(
            sizes, np.arange(0, sizes.size, chunk), out=largest[start // chunk :][: _chunks(sizes.size, chunk)]
        )
    _require_finite(largest)  # a chunk's maximum is not finite where one of its elements is not
    exact = (np.minimum(largest, np.float32(INTEGER_INPUT_MAX)) / np.float32(top)).astype(np.float32)
    return ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype("<u2")


def _steps(scales: NDArray[np.uint16]) -> Floats:
    return (scales.astype(np.uint32) << 16).view(np.float32)


def _quantised(
    x: Floats, scales: NDArray[np.uint16], chunk: int, top: int, rng: np.random.Generator
) -> Iterator[tuple[slice, NDArray[np.int16]]]:
    """Give, block by block, x in steps of its chunk's scale, rounded at random to a whole number in [-top, top].

    In fixed point: 256ths of a step, to the nearest, fit 16 bits (127 * 256 + 255 is the largest that there is). A
    byte of noise and a shift round them so that the expectation is exact; the fixed point itself is off by 1/512
    of a step at most. A fifth of the time that it takes with a float of noise for each element.
    """
    steps = _steps(scales)
    for start in range(0, x.size, BLOCK):
        block = slice(start, min(start + BLOCK, x.size))
        scaled = _in_steps(x[block], steps[start // chunk : _chunks(block.stop, chunk)], chunk)
        np.clip(np.rint(scaled, out=scaled), -FRACTIONS * top, FRACTIONS * top, out=scaled)
        fixed = scaled.astype(np.int16)
        count = fixed.size
        noise = rng.integers(0, 2**64 - 1, size=-(-count // 8), dtype=np.uint64, endpoint=True).astype(
            "<u8", copy=False
        )
        np.add(fixed, noise.view(np.uint8)[:count], out=fixed, casting="unsafe")
        yield block, np.right_shift(fixed, FRACTION_BITS, out=fixed)


def _in_steps(x: Floats, steps: Floats, chunk: int) -> Floats:  # (n,), (chunks,) -> (n,)
    """Return x in 256ths of its chunk's step; a step of zero belongs to numbers that are as good as zero."""
    whole = x.size - x.size % chunk
    if (steps < STEP_TINY).any():  # the inverse of such a step is not finite in float32
        wide = np.where(steps > 0, steps, np.inf).astype(np.float64)
        return (x * (FRACTIONS / np.repeat(wide, chunk)[: x.size])).astype(np.float32)
    inverse = np.float32(FRACTIONS) / steps
    scaled = np.empty(x.size, dtype=np.float32)
    np.multiply(x[:whole].reshape(-1, chunk), inverse[: whole // chunk, None], out=scaled[:whole].reshape(-1, chunk))
    if whole < x.size:
        np.multiply(x[whole:], inverse[-1], out=scaled[whole:])
    return scaled


def _rescaled(quants: NDArray[np.int8], scales: NDArray[np.uint16], chunk: int, top: int, out: Floats | None) -> Floats:
    steps = _steps(scales)
    limit = np.float32(INTEGER_INPUT_MAX / top * 1.01)  # the largest that `_scales` gives; times top + 1 it is finite
    bad = np.flatnonzero((scales >> 15).astype(bool) | ~(steps <= limit))
    if bad.size:
        raise BadContribution(f"the scale of chunk {bad[0]} is {steps[bad[0]]}: it must be in [0, {limit:.3g}]")
    x = np.empty(quants.size, dtype=np.float32) if out is None else out
    whole = x.size - x.size % chunk
    np.multiply(quants[:whole].reshape(-1, chunk), steps[: whole // chunk, None], out=x[:whole].reshape(-1, chunk))
    if whole < x.size:
        np.multiply(quants[whole:], steps[-1], out=x[whole:])
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
