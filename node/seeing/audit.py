"""The audit log: who came in, who was refused or thrown out, what was deployed and which commands were given, and when.

Two files of JSON lines in the node's folder, only ever added to: what members did, and whom the door refused. A
stranger can cause refusals at will, so those have a file and a bound of their own and push out nothing else; the same
refusal is written once a minute. Each file is bounded: when it is full it becomes the older half, and the one before
it goes.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from . import request

What = Literal[
    "started", "stopped", "joined", "appeared", "refused", "revoked", "invited", "deployed", "withdrawn", "command"
]
KINDS: Final[tuple[str, ...]] = get_args(What)
FILE: Final = "audit.jsonl"
REFUSALS_FILE: Final = "audit-refused.jsonl"
BYTES_MAX: Final = 1024 * 1024  # of each half: 4,000 entries and more
TEXT_MAX: Final = 1000  # characters of one field: a refusal's reason has as many
_REPEAT_S: Final = 60.0  # the same refusal is written once in this time
_REFUSALS_S: Final = 1.0  # between any two refusals that are written, once the first ones of a rush are
_RUSH: Final = 32
_SEEN_MAX: Final = 256
_SPANS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened."""

    at: float  # Unix seconds by this device's clock
    what: What
    who: str = ""  # the peer that it is about
    by: str = ""  # the peer that did it; empty: this node
    device: str = ""  # what `who` calls itself
    name: str = ""  # of what was deployed, or the command
    detail: str = ""
    request: str = ""
    also: int = 0  # refusals before this one that were not written


class Audit:
    """Writes both files. Should the disk be full, the log says so and the node goes on."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._files = _Bounded(folder / FILE), _Bounded(folder / REFUSALS_FILE)
        self._clock = clock
        self._refused: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._room, self._room_at, self._passed_over = float(_RUSH), clock(), 0
        self.written = 0  # so far; grows with each entry

    def note(self, what: What, **about: str) -> None:
        """Write down what happened."""
        said = {name: text[:TEXT_MAX] for name, text in about.items() if text}
        entry = Entry(at=round(self._clock(), 3), what=what, request=request.current())
        self._write(msgspec.structs.replace(entry, **said), self._files[0])

    def refused(self, who: str, reason: str, device: str = "") -> None:
        """Write down a refusal, unless the same was written just now or too many are."""
        now, key = self._clock(), (who, reason)
        self._room = min(_RUSH, self._room + max(0.0, now - self._room_at) / _REFUSALS_S)
        self._room_at = now
        if abs(now - self._refused.get(key, -_REPEAT_S)) < _REPEAT_S or self._room < 1:
            self._passed_over += 1
            return
        self._room -= 1
        self._refused[key] = now
        self._refused.move_to_end(key)
        if len(self._refused) > _SEEN_MAX:
            self._refused.popitem(last=False)
        also, self._passed_over = self._passed_over, 0
        entry = Entry(at=round(now, 3), what="refused", who=who, device=device, detail=reason[:TEXT_MAX], also=also)
        self._write(entry, self._files[1])

    def _write(self, entry: Entry, file: "_Bounded") -> None:
        self.written += 1
        try:
            file.append(msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            log.error("the audit log cannot be written: %s", error)  # noqa: TRY400 - its text says it all


class _Bounded:
    """One file that is added to, and its older half."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # commands may come from several threads of a program

    def append(self, line: bytes) -> None:
        with self._lock:
            if self._path.exists() and self._path.stat().st_size + len(line) > BYTES_MAX:
                self._path.replace(older(self._path))
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)


def older(path: Path) -> Path:
    """Return where the older half of a file is."""
    return path.with_suffix(".old.jsonl")


def invited(role: str, uses: int, lifetime_s: float) -> str:
    """Say what an invite is good for."""
    size, word = next((its for its in _SPANS if lifetime_s >= its[0]), (1, "second"))
    return f"as {role}, for {_many(uses, 'device')} and {_many(round(lifetime_s / size, 1), word)}"


def _many(count: float, word: str) -> str:
    return f"{count:g} {word}{'' if count == 1 else 's'}"


def read(folder: Path, *, last: int | None = None) -> list[Entry]:
    """Return what is in a folder's audit log, the oldest first; a line that was cut off or damaged is passed over."""
    entries = [entry for name in (FILE, REFUSALS_FILE) for entry in _entries(folder / name)]
    entries.sort(key=lambda entry: entry.at)
    return entries if last is None else entries[max(0, len(entries) - last) :]


def _entries(path: Path) -> Iterator[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    for half in (older(path), path):
        try:
            lines = half.read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, ValueError):
                continue
