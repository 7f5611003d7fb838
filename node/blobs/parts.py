"""A blob that is not whole yet: its chunks go straight to their places in a file, each checked before it is written.

What a killed process left is checked again, chunk by chunk: nothing has to be synced on the way, at most what was in
flight is lost. The file gets the blob's name when it is whole, never before.
"""

import errno
import os
from pathlib import Path

from ...mesh.errors import LeptonError, PeerError
from ..files import sync_folder
from .hashing import Chunks


class Part:
    """One blob under way. Its methods wait for the disk: call them in a thread, `write` from several if you like."""

    def __init__(self, path: Path, whole: Path, chunks: Chunks) -> None:
        """Begin, or go on with what is there. Raises LeptonError when the disk has no room for all of it."""
        self.chunks = chunks
        self.have: set[int] = set()
        self._path = path
        self._whole = whole
        is_new = not path.exists()
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._reserve()
            if not is_new:
                self.have.update(i for i in range(chunks.number) if chunks.fits(i, self._pread(i)))
        except OSError as error:
            self.close()
            if is_new:
                path.unlink(missing_ok=True)
            raise self._trouble(error) from error

    def _reserve(self) -> None:
        """Take the room now: better to hear of a full disk before an hour of fetching than after."""
        size = self.chunks.ref.size_bytes
        os.ftruncate(self._handle, size)
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(self._handle, 0, size)

    @property
    def is_whole(self) -> bool:
        return len(self.have) == self.chunks.number

    def write(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Keep a chunk. Raises PeerError when it is not that chunk, LeptonError when the disk does not take it."""
        if not self.chunks.fits(index, data):
            raise PeerError(f"chunk {index} of the blob {self.chunks.ref.digest[:8]}… is not what its hash says")
        view, at = memoryview(data), self.chunks.offset(index)
        try:
            while view:
                done = os.pwrite(self._handle, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise self._trouble(error) from error
        self.have.add(index)

    def read(self, index: int) -> bytes:
        """Read a chunk that is here, for a peer. Raises LeptonError when the disk gives something else."""
        try:
            data = self._pread(index)
        except OSError as error:
            raise self._trouble(error) from error
        if not self.chunks.fits(index, data):
            self.have.discard(index)
            raise LeptonError(f"chunk {index} of the blob {self.chunks.ref.digest[:8]}… was damaged on disk")
        return data

    def finish(self) -> None:
        """Make it a blob: synced, then renamed. Raises LeptonError from the disk."""
        assert self.is_whole
        try:
            os.fsync(self._handle)
            self._path.rename(self._whole)
            sync_folder(self._whole.parent)
        except OSError as error:
            raise self._trouble(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file; what is in it is for the next time."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _pread(self, index: int) -> bytes:
        return os.pread(self._handle, self.chunks.size(index), self.chunks.offset(index))

    def _trouble(self, error: OSError) -> LeptonError:
        ref = self.chunks.ref
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return LeptonError(
                f"the disk has no room for the blob {ref.digest[:8]}… of {ref.size_bytes:,} bytes in "
                f"{self._path.parent}: {error.strerror}; free space there"
            )
        return LeptonError(f"{self._path}: cannot be written: {error.strerror or error}; mend permissions")
