"""The blobs of one node in a folder: whole files under their digests, parts of others, and blobs out of owners' files.

Invariant: what leaves this store was checked against its digest. A file under a blob's name was once whole: small ones
are written beside it, synced and renamed, large ones grow as `DIGEST.part` (see `parts`). One process uses one folder.

DIGEST  whole    DIGEST.part  what came so far    DIGEST.chunks  hashes of its chunks    DIGEST.virtual  see `virtual`
"""

import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from ...mesh.errors import LeptonError, UsageError
from ...mesh.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX
from ..deployments import BlobRef
from ..files import clear_unfinished, write_whole
from .hashing import CHUNK_BYTES, Chunks, checked_chunks, hash_of, only_chunk, pieces, ref_of
from .parts import Part
from .room import Room
from .virtual import Registered, Virtual

# What is taken into memory in one piece: a layer of the largest trained model (see `models.PARAMETERS_MAX`) with its
# header, a tokenizer.
IN_MEMORY_BYTES_MAX: Final = BODY_BYTES_MAX + HEADER_BYTES_MAX
_NAME: Final = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


class BlobStore:
    """The blobs of one node. Everything here waits for the disk: in a node, call it in a thread."""

    def __init__(
        self,
        path: str | Path,
        *,
        disk_bytes_max: int | None = None,
        in_use: Callable[[], Collection[str]] | None = None,
        in_memory_bytes_max: int = IN_MEMORY_BYTES_MAX,
    ) -> None:
        """Keep blobs in a folder, at most ``disk_bytes_max`` of them; those ``in_use`` names are never removed."""
        self._folder = Path(path)
        self.in_memory_bytes_max = in_memory_bytes_max
        self._room = Room(self._folder, disk_bytes_max)
        self.in_use = in_use  # what must not be removed; None: everything
        self._chunks: dict[str, Chunks] = {}
        self._parts: dict[str, Part] = {}
        self._virtual: dict[str, Registered] = {}
        self._intact: dict[str, tuple[int, int, int]] = {}  # whole files that were checked, as they were then
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            clear_unfinished(self._folder)
            self._load_virtual()
        except OSError as error:
            raise LeptonError(f"{path}: cannot keep blobs there: {error.strerror or error}; give a folder") from error

    # -- small ones, in memory ----------------------------------------------------------------------------------------

    def put(self, data: bytes) -> BlobRef:
        """Keep ``data``. Raises UsageError when it is too large for this way, LeptonError from the disk."""
        if len(data) > self.in_memory_bytes_max:
            raise UsageError(f"a blob of {len(data):,} bytes is more than the {self.in_memory_bytes_max:,} allowed")
        hashes = b"".join(map(hash_of, pieces(data)))
        ref = ref_of(len(data), hashes)
        path = self._file(ref.digest)
        try:
            if path.read_bytes() == data:
                return ref
        except OSError:
            pass  # not there, or not readable: written anew
        self.make_room(len(data), besides=ref.digest)
        self._keep_chunks(Chunks(ref, hashes))
        write_whole(path, data)
        return ref

    def get(self, ref: BlobRef) -> bytes:
        """All bytes of a blob.

        Raises LeptonError, naming the blob, when it is not here or its file was damaged; a damaged one is set aside,
        so that it can be fetched again. Raises UsageError for one that is too large to be taken into memory.
        """
        if ref.size_bytes > self.in_memory_bytes_max:
            raise UsageError(
                f"blob {ref.digest} of {ref.size_bytes:,} bytes is more than the {self.in_memory_bytes_max:,} that "
                f"are read into memory at once"
            )
        count = self._required(ref).number
        return b"".join(self.read_chunk(ref, index) for index in range(count))

    # -- chunks -------------------------------------------------------------------------------------------------------

    def chunks(self, ref: BlobRef) -> Chunks | None:
        """The hashes of a blob's chunks, where they are known here."""
        known = self._chunks.get(ref.digest) or only_chunk(ref)
        if known is None:
            try:
                known = checked_chunks(ref, self._file(ref.digest, ".chunks").read_bytes())
            except (OSError, LeptonError):
                return None
        if known.ref != ref:
            return None  # a wrong size
        self._chunks[ref.digest] = known
        return known

    def held(self, ref: BlobRef) -> Collection[int]:
        """Which chunks of a blob can be read here."""
        if self.has(ref):
            return range((self.chunks(ref) or self._required(ref)).number)
        part = self._parts.get(ref.digest)
        return () if part is None else frozenset(part.have)

    def read_chunk(self, ref: BlobRef, index: int) -> bytes:
        """One chunk, checked. Raises LeptonError when it is not here, or was damaged or changed on this disk."""
        chunks = self._required(ref)
        part = self._parts.get(ref.digest)
        if not self.has(ref) and part is not None and index in part.have:
            return part.read(index)
        data = self.read(ref, chunks.offset(index), chunks.size(index))
        if not chunks.fits(index, data):
            raise self._damaged(ref)
        return data

    def read(self, ref: BlobRef, start: int, size_bytes: int) -> bytes:
        """Read some bytes of a whole blob as they are on disk, unchecked: see `require_intact`."""
        if (registered := self._virtual.get(ref.digest)) is not None:
            return registered.virtual.read(start, size_bytes)
        try:
            handle = os.open(self._file(ref.digest), os.O_RDONLY)
            try:
                return os.pread(handle, size_bytes, start)
            finally:
                os.close(handle)
        except FileNotFoundError:
            raise _absent(ref) from None
        except OSError as error:
            raise LeptonError(f"blob {ref.digest} cannot be read: {error.strerror or error}") from error

    def require_intact(self, ref: BlobRef) -> None:
        """Check all of a blob, once for as long as its files are not touched. Raises like `read_chunk`."""
        registered = self._virtual.get(ref.digest)
        if registered is not None and registered.virtual.is_unchanged():
            return
        look = None if registered is not None else self._look(ref)
        if look is None or self._intact.get(ref.digest) != look:
            for index in range(self._required(ref).number):
                self.read_chunk(ref, index)
            if look is not None:
                self._intact[ref.digest] = look
        self._room.used(self._file(ref.digest))

    def begin(self, ref: BlobRef, chunks: Chunks) -> Part:
        """Begin to keep a blob that comes in chunks, or go on. Raises LeptonError when there is no room for it.

        Close it in any case; `adopt` makes it a blob.
        """
        assert chunks.ref == ref
        path = self._file(ref.digest, ".part")
        self.make_room(0 if path.exists() else ref.size_bytes, besides=ref.digest)
        self._keep_chunks(chunks)
        part = self._parts[ref.digest] = Part(path, self._file(ref.digest), chunks)
        return part

    def adopt(self, part: Part) -> None:
        """Make a part that is whole a blob. Raises LeptonError from the disk."""
        part.finish()
        self.leave(part)

    def leave(self, part: Part) -> None:
        """Stop adding to a part; it stays on disk for the next time."""
        part.close()
        if not part.have:
            self._file(part.chunks.ref.digest, ".part").unlink(missing_ok=True)
        if self._parts.get(part.chunks.ref.digest) is part:
            del self._parts[part.chunks.ref.digest]

    # -- out of an owner's files --------------------------------------------------------------------------------------

    def register(self, virtual: Virtual) -> BlobRef:
        """Make a blob of ranges of files; they are read once, unless they were before and are unchanged.

        Raises UsageError when it is too large, LeptonError when a file cannot be read.
        """
        for registered in list(self._virtual.values()):
            if registered.virtual == virtual and self.chunks(registered.ref) is not None:
                return registered.ref
        size = virtual.size_bytes
        hashes = b"".join(hash_of(virtual.read(start, CHUNK_BYTES)) for start in range(0, max(size, 1), CHUNK_BYTES))
        ref = ref_of(size, hashes)
        registered = Registered(ref, hashes, virtual)
        self._chunks[ref.digest] = Chunks(ref, hashes)
        write_whole(self._file(ref.digest, ".virtual"), msgspec.msgpack.encode(registered))
        self._virtual[ref.digest] = registered
        return ref

    def virtual(self, ref: BlobRef) -> Virtual | None:
        """What a blob is put together from, if it is not a file of its own."""
        registered = self._virtual.get(ref.digest)
        return None if registered is None else registered.virtual

    def forget_virtual(self, ref: BlobRef) -> None:
        """Take a blob out of an owner's files no longer for one: they were changed."""
        if self._virtual.pop(ref.digest, None) is not None:
            self._file(ref.digest, ".virtual").unlink(missing_ok=True)

    def path(self, ref: BlobRef) -> Path:
        """The file of a blob that is one. Raises LeptonError when it is not here."""
        if not self._file(ref.digest).is_file():
            raise _absent(ref)
        return self._file(ref.digest)

    # -- all of them --------------------------------------------------------------------------------------------------

    def has(self, ref: BlobRef) -> bool:
        """Whether all of a blob is here; only reading says whether it is intact."""
        registered = self._virtual.get(ref.digest)
        if registered is not None:
            return registered.ref == ref
        look = self._look(ref)
        return look is not None and look[0] == ref.size_bytes

    def names(self) -> frozenset[str]:
        """The digests of all blobs here."""
        files = {path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)}
        return frozenset(files | self._virtual.keys())

    def remove(self, digest: str) -> None:
        """Forget a blob and what belongs to it; nothing happens when it is not here."""
        self._virtual.pop(digest, None)
        self._chunks.pop(digest, None)
        self._intact.pop(digest, None)
        for suffix in ("", ".part", ".chunks", ".virtual"):
            self._file(digest, suffix).unlink(missing_ok=True)

    def make_room(self, size_bytes: int, *, besides: str = "") -> None:
        """Remove what nobody needs, least recently used first, until so much fits. Raises LeptonError if it cannot."""
        needed = None if self.in_use is None else {*self.in_use(), *self._parts, besides}
        for digest in self._room.make(size_bytes, needed):
            log.info("removed blob %s, which no model names any more, to make room", digest[:8])
            self.remove(digest)

    # -- files --------------------------------------------------------------------------------------------------------

    def _file(self, digest: str, suffix: str = "") -> Path:
        if not _NAME.fullmatch(digest):
            raise UsageError(f"{digest[:80]!r} is not a blob's name: 64 digits 0-9 a-f are")
        return self._folder / (digest + suffix)

    def _look(self, ref: BlobRef) -> tuple[int, int, int] | None:
        try:
            found = self._file(ref.digest).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _required(self, ref: BlobRef) -> Chunks:
        chunks = self.chunks(ref)
        if chunks is None and self.has(ref):  # its list was lost: a whole blob says it again
            hashes = b"".join(
                hash_of(self.read(ref, start, CHUNK_BYTES)) for start in range(0, ref.size_bytes, CHUNK_BYTES)
            )
            if ref_of(ref.size_bytes, hashes) != ref:
                raise self._damaged(ref)
            chunks = Chunks(ref, hashes)
            self._keep_chunks(chunks)
        if chunks is None:
            raise _absent(ref)
        return chunks

    def _keep_chunks(self, chunks: Chunks) -> None:
        self._chunks[chunks.ref.digest] = chunks
        if chunks.number > 1:
            path = self._file(chunks.ref.digest, ".chunks")
            if not path.exists():
                write_whole(path, chunks.hashes)

    def _damaged(self, ref: BlobRef) -> LeptonError:
        """Set a damaged file aside as a part, so that only what is wrong in it is fetched again."""
        if (registered := self._virtual.get(ref.digest)) is not None:
            changed = [f.path for f in registered.virtual.files if not f.is_unchanged()]
            names = ", ".join(changed or [f.path for f in registered.virtual.files])
            return LeptonError(f"{names} was changed since it was published; publish the model again")
        self._intact.pop(ref.digest, None)
        if ref.size_bytes > CHUNK_BYTES:
            self._file(ref.digest).replace(self._file(ref.digest, ".part"))
        else:
            self._file(ref.digest).unlink(missing_ok=True)
        return LeptonError(f"blob {ref.digest} was damaged on disk and is set aside; fetch it again from another node")

    def _load_virtual(self) -> None:
        for path in self._folder.glob("*.virtual"):
            try:
                registered = msgspec.msgpack.decode(path.read_bytes(), type=Registered)
                chunks = checked_chunks(registered.ref, registered.hashes)
            except (msgspec.MsgspecError, LeptonError, OSError) as error:
                log.warning("%s is damaged (%s): removed; publish its model again", path, error)
                path.unlink(missing_ok=True)
                continue
            self._virtual[registered.ref.digest] = registered
            self._chunks[registered.ref.digest] = chunks


def _absent(ref: BlobRef) -> LeptonError:
    return LeptonError(f"blob {ref.digest} is not here; fetch it from a node that holds it")
