r"""A service's folder as one file, and back: the same folder gives the same bytes, so the same digest.

    "lepton-bundle-1\n", the index's length in 4 bytes, the index as JSON, then the files' contents one after the other

Our own format, for it can say nothing else than files with names and sizes: no links, no devices, no owners, no times,
no compression. Invariants: what is unpacked takes as many bytes as the bundle has; every file lies inside the folder;
no two names are one; a folder under a digest is whole. `spec.json` is the service's description, made when it is
deployed, so that hosts know it without running its code.
"""

import fnmatch
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

import msgspec

from ....mesh import limits
from ....mesh.errors import LeptonError, PeerError, UsageError
from ....mesh.messages import Natural
from ...files import sync_folder
from ..spec import ServiceSpec
from .folder import MANIFEST

SPEC: Final = "spec.json"
_MAGIC: Final = b"lepton-bundle-1\n"
_LENGTH_BYTES: Final = 4
# Portable names: what Windows and macOS cannot have, or take for another file, is refused where it is packed.
_PART: Final = re.compile(r"[A-Za-z0-9_+@=,-][A-Za-z0-9_.+@=, -]{0,99}")
_LEFT_OUT: Final = (".*", "__pycache__", "*.pyc", "*.pyo", "*.egg-info", "node_modules", "venv")
_UNPACKING: Final = ".unpacking-"

PathText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One file of a bundle."""

    path: PathText  # from the folder, with slashes
    size_bytes: Natural
    executable: bool = False


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them, by their paths."""

    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1, max_length=limits.BUNDLE_FILES_MAX)]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was checked, with where each file's content lies in it."""

    data: bytes
    files: tuple[tuple[File, int], ...]

    def content(self, path: str) -> memoryview | None:
        """Return a file's bytes."""
        found = next((place for place in self.files if place[0].path == path), None)
        return None if found is None else memoryview(self.data)[found[1] : found[1] + found[0].size_bytes]


# -- making one -------------------------------------------------------------------------------------------------------


def pack_folder(folder: Path, spec: ServiceSpec, *, leave_out: Sequence[str] = ()) -> bytes:
    """Return a folder as a bundle. Raises UsageError that names the file which cannot be in it."""
    found = {SPEC: (msgspec.json.format(msgspec.json.encode(spec), indent=1), False)}
    size = len(found[SPEC][0])
    for path in _walk(folder, folder, leave_out):
        name = path.relative_to(folder).as_posix()
        if name == SPEC:
            raise UsageError(f"{path}: {SPEC} is written when a service is deployed; give yours another name.")
        _require_name(name, f"{path}: ")
        size += path.stat().st_size
        if size > limits.BUNDLE_BYTES_MAX or len(found) >= limits.BUNDLE_FILES_MAX:
            raise UsageError(_too_large(folder))
        content = path.read_bytes()
        found[name] = (content, bool(path.stat().st_mode & stat.S_IXUSR))
    files = tuple(File(name, len(content), runs) for name, (content, runs) in sorted(found.items()))
    index = msgspec.json.encode(Index(files))
    head = _MAGIC + len(index).to_bytes(_LENGTH_BYTES, "big") + index
    data = b"".join([head, *(content for _, (content, _) in sorted(found.items()))])
    try:
        read_bundle(data)
    except PeerError as error:
        raise UsageError(f"{folder} makes no bundle: {error}") from error
    return data


def _walk(folder: Path, top: Path, leave_out: Sequence[str]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}.") from error
    for entry in entries:
        path = Path(entry.path)
        if _is_left_out(path.relative_to(top), leave_out):
            continue
        if entry.is_symlink():
            raise UsageError(f"{path} is a link: put the file itself there, or leave it out in {MANIFEST}.")
        if entry.is_dir():
            yield from _walk(path, top, leave_out)
        elif entry.is_file():
            yield path
        else:
            raise UsageError(f"{path} is no ordinary file: leave it out in {MANIFEST}.")


def _is_left_out(path: Path, leave_out: Sequence[str]) -> bool:
    patterns = (*_LEFT_OUT, *leave_out)
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (path.name, path.as_posix()))


def _too_large(folder: Path) -> str:
    return (
        f"{folder} has more than {limits.BUNDLE_FILES_MAX} files or {limits.BUNDLE_BYTES_MAX // limits.MIB} MiB: name "
        f"under leave_out in {MANIFEST} what does not belong to the code; models are served by `lepton-node serve`."
    )


# -- reading one ------------------------------------------------------------------------------------------------------


def read_bundle(data: bytes) -> Bundle:
    """Check a bundle that came from anywhere. Raises PeerError when it is none, or would not stay in its folder."""
    if len(data) > limits.BUNDLE_BYTES_MAX:
        raise PeerError(f"A bundle of {len(data):,} B is larger than any may be.")
    begin = len(_MAGIC) + _LENGTH_BYTES
    if not data.startswith(_MAGIC) or len(data) < begin:
        raise PeerError("This is no bundle of a service.")
    length = int.from_bytes(data[len(_MAGIC) : begin], "big")
    if length > limits.BUNDLE_INDEX_BYTES_MAX or begin + length > len(data):
        raise PeerError(f"The bundle's index is said to have {length:,} B.")
    try:
        index = msgspec.json.decode(data[begin : begin + length], type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"The bundle's index is not valid: {error}.") from error
    _require_names([file.path for file in index.files])
    places, at = [], begin + length
    for file in index.files:
        places.append((file, at))
        at += file.size_bytes
    if at != len(data):
        raise PeerError(f"The bundle has {len(data):,} B where its files say {at:,}.")
    return Bundle(data, tuple(places))


def spec_of(bundle: Bundle) -> ServiceSpec:
    """Return the description inside a bundle. Raises PeerError when there is none that makes sense."""
    content = bundle.content(SPEC)
    if content is None:
        raise PeerError(f"The bundle has no {SPEC}.")
    try:
        return msgspec.json.decode(bytes(content), type=ServiceSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"The bundle's {SPEC} is not valid: {error}.") from error


def _require_names(names: Sequence[str]) -> None:
    if list(names) != sorted(set(names)):
        raise PeerError("The bundle's files are not in order, or one is there twice.")
    try:
        for name in names:
            _require_name(name)
    except UsageError as error:
        raise PeerError(str(error)) from error
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    folded = {name.casefold() for name in {*names, *folders}}
    if folders & set(names) or len(folded) != len({*names, *folders}):
        raise PeerError(
            "Of two of the bundle's files one is the other's folder, or they differ in letters' case alone."
        )


def _require_name(name: str, where: str = "") -> None:
    parts = name.split("/")
    if len(parts) > limits.BUNDLE_DEPTH_MAX:
        raise UsageError(f"{where}{name[:200]!r} lies deeper than {limits.BUNDLE_DEPTH_MAX} folders.")
    for part in parts:
        if _PART.fullmatch(part) is None or part.endswith((".", " ")):
            raise UsageError(
                f"{where}{part[:200]!r} cannot be a name in a bundle: use 1 to 100 of a-z, A-Z, 0-9 and _.+@=,- with "
                "no dot first or last."
            )


# -- unpacking --------------------------------------------------------------------------------------------------------


def unpack_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's files into a folder that is not there yet, which then is whole. Raises LeptonError."""
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNPACKING, dir=folder.parent))  # mode 0700
        try:
            for file, _ in bundle.files:
                path = temporary / file.path
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                content = bundle.content(file.path)
                assert content is not None
                path.write_bytes(content)
                path.chmod(0o700 if file.executable else 0o600)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        if folder.is_dir():  # somebody was quicker
            return
        raise LeptonError(f"{folder}: cannot be written: {error.strerror or error}; free space.") from error


def clear(folder: Path, keep: frozenset[str]) -> None:
    """Remove unpacked bundles that nothing needs any more, and what a killed process left half-done."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
