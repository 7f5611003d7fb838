"""What a store of blobs may take of the disk, and which of them go when it is full."""

import os
import time
from collections.abc import Collection
from pathlib import Path

from ...mesh.errors import LeptonError

_BLOCK_BYTES = 512  # of `st_blocks`, whatever the file system's own are (POSIX, sys/stat.h)


class Room:
    """The files of one folder, by the blob that they belong to."""

    def __init__(self, folder: Path, bytes_max: int | None) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    def used(self, path: Path) -> None:
        """Note that a blob was used now; its time of modification, which says whether it was touched, stays."""
        try:
            found = path.stat()
            os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        except OSError:
            pass  # an owner's file, or gone: nothing to note

    def make(self, size_bytes: int, needed: Collection[str] | None) -> list[str]:
        """Return which blobs to remove so that this much fits; ``needed`` are not, and None means that all are.

        Raises LeptonError when it cannot fit.
        """
        if self._bytes_max is None:
            return []
        sizes, used_at = self._look()
        over = sum(sizes.values()) + size_bytes - self._bytes_max
        going: list[str] = []
        spare = [] if needed is None else sorted(set(sizes) - set(needed), key=lambda digest: used_at[digest])
        for digest in spare:
            if over <= 0:
                break
            going.append(digest)
            over -= sizes[digest]
        if over > 0:
            raise LeptonError(
                f"{size_bytes:,} bytes do not fit: the blobs in {self._folder} may take {self._bytes_max:,} bytes, and "
                f"models in use leave {over:,} too few; raise `disk` under [blobs] in node.toml, or undeploy a model"
            )
        return going

    def _look(self) -> tuple[dict[str, int], dict[str, float]]:
        sizes: dict[str, int] = {}
        used_at: dict[str, float] = {}
        for path in self._folder.iterdir():
            digest = path.name.partition(".")[0]
            try:
                found = path.stat()
            except OSError:
                continue
            if not digest or path.suffix == ".virtual":
                continue  # its bytes are the owner's
            sizes[digest] = sizes.get(digest, 0) + found.st_blocks * _BLOCK_BYTES
            used_at[digest] = max(used_at.get(digest, 0), found.st_atime)
        return sizes, used_at
