"""What an instance printed: its last lines in memory, more of them in files that are replaced when they are full."""

import logging
import os
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

LINES_MAX: Final = 1000  # in memory: what `logs` shows
NOTED: Final = "-- "  # before what we say about an instance
LINE_BYTES_MAX: Final = 4096  # longer lines are cut into as many
FILE_BYTES_MAX: Final = 1024 * 1024  # of the file that is written to, and of the one before it
FILES_MAX: Final = 64  # of instances that are gone, to look into: each start has a name of its own

log = logging.getLogger(__name__)


def prune(folder: Path, running: Collection[str]) -> None:
    """Remove all but the newest logs of instances that are gone, and folders of services that have none."""
    try:
        gone = [path for path in folder.glob("*/*.log") if path.name.partition(".")[0] not in running]
        for path in sorted(gone, key=_written, reverse=True)[FILES_MAX:]:
            path.unlink(missing_ok=True)
        for path in folder.iterdir():
            with suppress(OSError):  # there is something in it
                path.rmdir()
    except OSError as error:
        log.warning("old logs in %s stay: %s", folder, error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # what a service was asked may be in it


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Line(NamedTuple):
    at: float  # seconds since 1970
    text: str


class Log:
    """The log of one instance, over all its processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = deque[Line](maxlen=LINES_MAX)
        self.count = 0  # of all lines there ever were
        self._rest = b""
        self._file: BinaryIO | None = None
        self._bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what it printed, cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        while len(self._rest) > LINE_BYTES_MAX:
            self._add(self._rest[:LINE_BYTES_MAX])
            self._rest = self._rest[LINE_BYTES_MAX:]
        self._flush()

    def note(self, text: str) -> None:
        """Say something about it, behind what it printed."""
        if self._rest:
            self._add(self._rest)
            self._rest = b""
        self._add(f"{NOTED}{text}".encode(errors="replace"))
        self._flush()

    def tail(self, lines: int) -> list[Line]:
        return list(self._lines)[-lines:] if lines > 0 else []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add(self, line: bytes) -> None:
        now = time.time()
        for start in range(0, max(len(line), 1), LINE_BYTES_MAX):
            part = line[start : start + LINE_BYTES_MAX]
            self.count += 1
            self._lines.append(Line(now, part.decode(errors="replace")))
            self._write(part + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            if self._file is None or self._bytes + len(line) > FILE_BYTES_MAX:
                self._rotate()
            assert self._file is not None
            self._file.write(line)
            self._bytes += len(line)
        except OSError as error:  # a full disk costs the file, not the service
            log.warning("%s cannot be written: %s", self._path, error)

    def _rotate(self) -> None:
        self.close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._path.exists():
            self._path.replace(self._path.with_suffix(".old.log"))
        self._file, self._bytes = open(self._path, "wb", opener=_private), 0  # noqa: SIM115 - closed by `close`

    def _flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
