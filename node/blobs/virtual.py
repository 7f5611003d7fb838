"""A blob that is no file of its own: a header and ranges of an owner's files, read when they are asked for.

So the device that has a model's folder does not keep its weights twice. The files are the owner's and may change: every
chunk is checked when it is read, and one that does not fit is an error that names the file.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import msgspec

from ...mesh.errors import LeptonError
from ..deployments import BlobRef


class SourceFile(msgspec.Struct, frozen=True):
    """An owner's file as it was when it was hashed: while size and time are the same, so is what it holds."""

    path: str
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file. Raises LeptonError when it is not there."""
        try:
            found = path.stat()
        except OSError as error:
            raise LeptonError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls(str(path), found.st_size, found.st_mtime_ns)

    def is_unchanged(self) -> bool:
        try:
            return type(self).of(Path(self.path)) == self
        except LeptonError:
            return False


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of one of the files."""

    file: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Virtual(msgspec.Struct, frozen=True):
    """What a blob is put together from."""

    header: bytes
    files: tuple[SourceFile, ...]
    spans: tuple[Span, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(span.size_bytes for span in self.spans)

    def is_unchanged(self) -> bool:
        """Whether no file was touched since it was hashed."""
        return all(file.is_unchanged() for file in self.files)

    def places(self, start: int, size_bytes: int) -> Iterator[tuple[Path, int, int]]:
        """Where bytes of the blob behind its header are: file, offset and size, in order."""
        at = len(self.header)
        for span in self.spans:
            first, end = max(start, at), min(start + size_bytes, at + span.size_bytes)
            if first < end:
                yield Path(self.files[span.file].path), span.offset + first - at, end - first
            at += span.size_bytes

    def read(self, start: int, size_bytes: int) -> bytes:
        """Read bytes of the blob. Raises LeptonError that names the file when one cannot be read or became shorter."""
        parts = [self.header[start : start + size_bytes]]
        parts += [_read(*place) for place in self.places(start, size_bytes)]
        return b"".join(parts)


class Registered(msgspec.Struct, frozen=True):
    """A virtual blob as the store keeps it, so that a restart does not hash gigabytes again."""

    ref: BlobRef
    hashes: bytes
    virtual: Virtual


def _read(path: Path, offset: int, size_bytes: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(handle, size_bytes, offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise LeptonError(
            f"{path}: cannot be read: {error.strerror or error}; it is part of a published model"
        ) from error
    if len(data) != size_bytes:
        raise LeptonError(f"{path} became shorter since it was published; publish the model again")
    return data
