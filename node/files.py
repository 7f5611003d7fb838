"""Files that are whole or not there: what a node writes survives being killed at any moment."""

import os
import tempfile
from pathlib import Path
from typing import Final

from ..mesh.errors import LeptonError

_TEMPORARY: Final = ".writing-"


def write_whole(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, readable by its owner alone: after a crash it holds all of it or what it held.

    Raises LeptonError when the system cannot: disk full, no permission.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise LeptonError(
            f"{path}: cannot be written: {error.strerror or error}; free space or mend permissions"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` as lasting as the files: a rename is on disk only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written by `write_whole`."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)
