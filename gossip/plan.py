"""How a vector is cut: a part for each member, who averages it, and each part into the chunks that travel."""

from dataclasses import dataclass

from .codecs import Codec
from .groups import balanced

# A megabyte costs no less for each byte, and keeps twice as much waiting; at 64 kB, messages are half of the cost.
CHUNK_BYTES = 512 * 1024
ELEMENTS_STEP = 1024  # a chunk ends where the codecs' own chunks of 64 and 256 elements do


@dataclass(frozen=True, slots=True)
class Plan:
    """Part j of the vector is `parts[j]`, its chunk i `chunks[j][i]`: slices of the whole vector.

    A set of chunks of a part is a mask: bit i stands for chunk i. `full` are the masks of all chunks.
    """

    parts: tuple[slice, ...]
    chunks: tuple[tuple[slice, ...], ...]
    full: tuple[int, ...]

    @classmethod
    def of(cls, dimension: int, count: int, codec: Codec, chunk_bytes: int = CHUNK_BYTES) -> "Plan":
        """Cut `dimension` elements for `count` members, in chunks of about `chunk_bytes` once they are encoded."""
        length = max(1, chunk_bytes // codec.size_bytes(ELEMENTS_STEP)) * ELEMENTS_STEP
        parts = balanced(dimension, count)
        chunks = tuple(
            tuple(slice(start, min(start + length, part.stop)) for start in range(part.start, part.stop, length))
            for part in parts
        )
        return cls(parts, chunks, tuple((1 << len(of_part)) - 1 for of_part in chunks))

    def to_masks(self, masks: tuple[bytes, ...]) -> tuple[int, ...] | None:
        """Read the masks of all parts as they travel; None where they are not of this plan."""
        if len(masks) != len(self.full):
            return None
        numbers = tuple(int.from_bytes(mask, "little") for mask in masks)
        fits = all(number <= full for number, full in zip(numbers, self.full, strict=True))
        return numbers if fits else None

    def to_bytes(self, masks: tuple[int, ...]) -> tuple[bytes, ...]:
        """Write the masks of all parts."""
        return tuple(to_bytes(mask, full) for mask, full in zip(masks, self.full, strict=True))


def to_bytes(mask: int, full: int) -> bytes:
    """Write a mask, in as many bytes as that of all chunks takes."""
    return mask.to_bytes((full.bit_length() + 7) // 8, "little")


def bits(mask: int) -> list[int]:
    """Return the chunks of a mask, in order."""
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def leading(mask: int) -> int:
    """Return how many chunks from the first on are in a mask."""
    return (~mask & (mask + 1)).bit_length() - 1
