"""What a blob's digest is: a Merkle tree of two levels, so that a stranger's every chunk is checked when it comes.

A chunk's hash is SHA-256(0x00 || chunk), and a blob of one chunk is named by it. A larger one is named by
SHA-256(0x01 || size || hashes of all chunks), the size as 8 bytes, big end first. The first byte keeps the levels apart
(RFC 6962, section 2.1), so that nobody can pass off a list of hashes as the bytes of a blob or the other way round.
Two levels are enough: the list of 16 GiB takes 128 KiB. Pure.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from ...mesh.errors import PeerError, UsageError
from ...mesh.limits import BLOB_BYTES_MAX, MIB
from ..deployments import BlobRef

# A chunk takes 3 ms to check and 35 ms on a gigabit link: small enough to spread over peers and to lose, large enough
# that a request costs nothing beside it.
CHUNK_BYTES: Final = 4 * MIB
HASH_BYTES: Final = 32


def chunk_count(size_bytes: int) -> int:
    """How many chunks a blob of this size has; an empty one has one, of no bytes."""
    return max(1, -(-size_bytes // CHUNK_BYTES))


def hash_of(chunk: bytes | bytearray | memoryview) -> bytes:
    """Return the hash of one chunk, 32 bytes."""
    hashed = hashlib.sha256(b"\0")
    hashed.update(chunk)
    return hashed.digest()


def ref_of(size_bytes: int, hashes: bytes) -> BlobRef:
    """Name a blob by its chunks' hashes. Raises UsageError when it is larger than a blob may be."""
    if size_bytes > BLOB_BYTES_MAX:
        raise UsageError(f"a blob of {size_bytes:,} bytes is more than the {BLOB_BYTES_MAX:,} that one may have")
    assert len(hashes) == chunk_count(size_bytes) * HASH_BYTES
    digest = hashes if size_bytes <= CHUNK_BYTES else hashlib.sha256(b"\1" + size_bytes.to_bytes(8) + hashes).digest()
    return BlobRef(digest=digest.hex(), size_bytes=size_bytes)


def ref_of_bytes(data: bytes) -> BlobRef:
    """Name these bytes."""
    return ref_of(len(data), b"".join(hash_of(part) for part in pieces(data)))


def pieces(data: bytes) -> Iterator[memoryview]:
    """Cut bytes into chunks."""
    for index in range(chunk_count(len(data))):
        yield memoryview(data)[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


class Chunks(NamedTuple):
    """The chunks of one blob and what each must hash to."""

    ref: BlobRef
    hashes: bytes

    @property
    def number(self) -> int:
        return chunk_count(self.ref.size_bytes)

    def offset(self, index: int) -> int:
        return index * CHUNK_BYTES

    def size(self, index: int) -> int:
        """Bytes of a chunk; the last may be shorter."""
        return min(CHUNK_BYTES, self.ref.size_bytes - index * CHUNK_BYTES)

    def fits(self, index: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these bytes are that chunk."""
        return hash_of(data) == self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def only_chunk(ref: BlobRef) -> Chunks | None:
    """Return the list of a blob that has one chunk: its name says it. None for a larger one."""
    return Chunks(ref, bytes.fromhex(ref.digest)) if ref.size_bytes <= CHUNK_BYTES else None


def checked_chunks(ref: BlobRef, hashes: bytes) -> Chunks:
    """Take a stranger's list of hashes. Raises PeerError when it is not that of this blob."""
    if (
        ref.size_bytes > BLOB_BYTES_MAX
        or len(hashes) != chunk_count(ref.size_bytes) * HASH_BYTES
        or ref_of(ref.size_bytes, hashes) != ref
    ):
        raise PeerError(f"a list of chunks is not that of the blob {ref.digest[:8]}… of {ref.size_bytes:,} bytes")
    return Chunks(ref, hashes)
