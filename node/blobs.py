"""Content-addressed bytes in a folder: a blob's name is the SHA-256 of what it holds, so nobody can pass off another.

Invariant: what `BlobStore.get` returns has the hash that was asked for, and a file under a blob's name was once whole:
bytes are written beside it, synced and then renamed. One process uses one folder.

Layers travel as blobs in safetensors: raw numbers behind a small header, never pickled, and the same tensors always
give the same bytes. `read_layer_blob` takes a stranger's bytes and gives what the schema promised, or PeerError.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from ..mesh.errors import LeptonError, PeerError, UsageError
from ..mesh.limits import BODY_BYTES_MAX, HEADER_BYTES_MAX
from .files import clear_unfinished, write_whole
from .models import Schema

# The largest layer that a model may have (see `models.PARAMETERS_MAX`) with its header.
BLOB_BYTES_MAX: Final = BODY_BYTES_MAX + HEADER_BYTES_MAX
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_LENGTH_BYTES: Final = 8  # safetensors: a little-endian 64-bit header length comes first


class BlobStore:
    """The blobs of one node, a file each."""

    def __init__(self, path: str | Path, *, blob_bytes_max: int = BLOB_BYTES_MAX) -> None:
        self._folder = Path(path)
        self._blob_bytes_max = blob_bytes_max
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            clear_unfinished(self._folder)
        except OSError as error:
            raise LeptonError(f"{path}: cannot keep blobs there: {error.strerror or error}; give a folder") from error

    def put(self, data: bytes) -> str:
        """Keep ``data``; its name, 64 hex digits. Raises UsageError when it is too large, LeptonError from the disk."""
        if len(data) > self._blob_bytes_max:
            raise UsageError(f"a blob of {len(data):,} bytes is more than the {self._blob_bytes_max:,} allowed")
        name = hashlib.sha256(data).hexdigest()
        try:
            if self._file(name).read_bytes() == data:
                return name
        except OSError:
            pass  # not there, or not readable: written anew
        write_whole(self._file(name), data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of that name.

        Raises LeptonError, naming the blob, when it is not here or its file was damaged; a damaged one is removed, so
        that it can be fetched again. Raises UsageError for what cannot be a blob's name.
        """
        path = self._file(name)
        try:
            # One that is too large cannot be what was put: not worth reading.
            data = b"" if path.stat().st_size > self._blob_bytes_max else path.read_bytes()
        except FileNotFoundError:
            raise LeptonError(f"blob {name} is not here; fetch it from a node that holds it") from None
        except OSError as error:
            raise LeptonError(f"blob {name} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != name:
            self.remove(name)
            raise LeptonError(f"blob {name} was damaged on disk and is removed; fetch it again from another node")
        return data

    def has(self, name: str) -> bool:
        """Whether a file of that name is here; only `get` says whether it is intact."""
        return self._file(name).is_file()

    def names(self) -> frozenset[str]:
        """The names of all blobs here."""
        return frozenset(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def remove(self, name: str) -> None:
        """Forget a blob; nothing happens when it is not here."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is not a blob's name: 64 digits 0-9 a-f are")
        return self._folder / name


def layer_blob(tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """One layer's tensors as safetensors; equal tensors give equal bytes, in whatever order and layout they come."""
    return safetensors.numpy.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def read_layer_blob(data: bytes, schema: Schema) -> dict[str, torch.Tensor]:
    """The tensors in ``data``, copied out: exactly those of ``schema`` in name, dtype and shape, all finite.

    Raises PeerError for anything else, and nothing but PeerError whatever the bytes are.
    """
    _check_size(data, schema)
    try:
        found = safetensors.numpy.load(data)
    except Exception as error:  # the parser's own, and what a strange header makes Python raise: a stranger's bytes
        raise PeerError(f"a layer's blob is not valid safetensors: {error}") from error
    if found.keys() != schema.keys():
        raise PeerError(f"a layer's blob holds tensors {sorted(found)[:8]}, expected {sorted(schema)}")
    return {name: _tensor(name, found[name], *schema[name]) for name in schema}


def _check_size(data: bytes, schema: Schema) -> None:
    header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or header > HEADER_BYTES_MAX:
        raise PeerError("a layer's blob has no header, or a larger one than allowed")
    body = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in schema.values())
    if len(data) != (expected := _LENGTH_BYTES + header + body):
        raise PeerError(f"a layer's blob has {len(data):,} bytes where its layer has {expected:,}")


def _tensor(name: str, array: npt.NDArray[np.generic], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    if array.dtype.name != dtype or array.shape != shape:
        raise PeerError(f"tensor {name!r} of a layer's blob is {array.dtype} {array.shape}, expected {dtype} {shape}")
    if not np.isfinite(array).all():
        raise PeerError(f"tensor {name!r} of a layer's blob holds NaN or infinity")
    return torch.from_numpy(array.copy())
