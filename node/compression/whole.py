"""A new folder that is whole or not there: written under another name beside its place, and named when it is done.

A command that is killed in the middle leaves at most a hidden folder (`.NAME-...`) that nobody serves; a full disk and
Ctrl-C leave nothing. That a folder can be made there is known before the work begins, which may take an hour.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...mesh.errors import LeptonError, UsageError


def require_free(out: Path) -> None:
    """Raise UsageError unless a folder can be made, or is there and empty."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is in use; name a folder that is not there yet.")
    except OSError as error:
        raise _unwritable(out, error) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``out`` when all went well, and is removed when not.

    Raises UsageError, at once, where ``out`` is in use or no folder can be made there; LeptonError where what is
    written does not go on the disk.
    """
    require_free(out)
    work = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield work
        if out.exists():
            out.rmdir()
        work.rename(out)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise LeptonError(f"{out} was not made: {reason}. Nothing stays of it; is the disk full?") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> UsageError:
    return UsageError(f"{out} cannot be written: {error.strerror or error}; name another folder.")
