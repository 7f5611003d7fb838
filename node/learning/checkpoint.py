"""A task's state on disk, so that a node that was killed goes on from the last round and not from the first.

Invariant: whenever the process dies, at least the last checkpoint whose `save` returned can be loaded. A checkpoint is
written under a name of its own, synced, renamed into place, and only then are older ones removed, but never the newest
that is known to be good. A file that is cut short or changed does not match its own SHA-256 and is passed over.

A file: SHA-256 of all that follows (32 bytes), magic (8), header length (4, big-endian), msgpack header, safetensors
with the tensors ``vector``, ``momentum``, ``correction`` and ``local``.
"""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import safetensors.numpy

from ...mesh.errors import LeptonError, UsageError
from ..files import clear_unfinished, write_whole
from ..shapes import Vector
from .losses import Metrics
from .trainer import TrainerState

_MAGIC: Final = b"LEPTON\x00\x02"  # the last byte is the version of the format
_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 4
_NAME: Final = re.compile(r"checkpoint-(\d{12})\.lepton")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """Where one node stands in a task after ``round``."""

    round: int
    vector: Vector  # (D,)
    trainer_state: TrainerState
    metrics: Metrics | None = None  # of ``vector``; None when it was not evaluated


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A checkpoint, and a sentence for each newer one that had to be passed over."""

    checkpoint: Checkpoint
    skipped: tuple[str, ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    round: int
    step: int
    metrics: Metrics | None


class CheckpointStore:
    """The checkpoints of one task, the newest two."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._good: Path | None = None  # the newest that this store has written or read
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            clear_unfinished(self._folder)
        except OSError as error:
            reason = error.strerror or error
            raise LeptonError(f"{folder}: cannot keep checkpoints there: {reason}; give a folder") from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep ``checkpoint`` as the newest, and the one before it; on disk once this returns.

        Raises LeptonError when the disk will not; the earlier ones are still there then.
        """
        older = self._files()
        number = 1 + (_number(older[-1]) if older else 0)
        path = self._folder / f"checkpoint-{number:012d}.lepton"
        write_whole(path, encode(checkpoint))
        previous = self._good or (older[-1] if older else None)
        self._good = path
        for file in older:
            if file != previous:
                with contextlib.suppress(OSError):  # the new one is safe; an old one too many does no harm
                    file.unlink()

    def load_latest(self) -> Loaded | None:
        """The newest checkpoint that is whole, with why newer ones were not used; None where none was ever saved.

        Raises LeptonError when there are some and none can be used: to start again at round 0 is the user's decision.
        """
        skipped: list[str] = []
        for path in reversed(self._files()):
            try:
                checkpoint = decode(path.read_bytes())
            except OSError as error:
                skipped.append(f"{path.name}: {error.strerror or error}")
            except LeptonError as error:
                skipped.append(f"{path.name}: {error}")
            else:
                self._good = path
                return Loaded(checkpoint=checkpoint, skipped=tuple(skipped))
        if skipped:
            reasons = "; ".join(skipped)
            raise LeptonError(
                f"{self._folder}: no checkpoint can be used ({reasons}); move the folder away to start anew"
            )
        return None

    def _files(self) -> list[Path]:
        """All checkpoints here, oldest first."""
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's file."""
    state = checkpoint.trainer_state
    header = msgspec.msgpack.encode(_Header(checkpoint.round, state.step, checkpoint.metrics))
    tensors = {"correction": state.correction, "local": state.local, "momentum": state.momentum}
    body = safetensors.numpy.save(tensors | {"vector": checkpoint.vector})
    content = _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "big") + header + body
    return hashlib.sha256(content).digest() + content


def decode(data: bytes) -> Checkpoint:
    """The checkpoint in a file's bytes; raises UsageError, saying why, when they are not exactly what was written."""
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if not content.startswith(_MAGIC):
        raise UsageError("it is cut short or not a checkpoint of this version")
    if hashlib.sha256(content).digest() != digest:
        raise UsageError("it is cut short or was changed: its SHA-256 does not match")
    start = len(_MAGIC) + _LENGTH_BYTES
    end = start + int.from_bytes(content[len(_MAGIC) : start], "big")
    try:
        header = msgspec.msgpack.decode(content[start:end], type=_Header)
        tensors = safetensors.numpy.load(content[end:])
        vector, momentum = _vector(tensors["vector"]), _vector(tensors["momentum"])
        correction, local = _vector(tensors["correction"]), _vector(tensors["local"])
    except (msgspec.DecodeError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"its content cannot be read: {error}") from error
    state = TrainerState(step=header.step, momentum=momentum, correction=correction, local=local)
    return Checkpoint(round=header.round, vector=vector, trainer_state=state, metrics=header.metrics)


def _vector(tensor: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Vector:
    if tensor.dtype != np.float32 or tensor.ndim != 1:
        raise ValueError(f"float32 (D,) expected, found {tensor.dtype} {tensor.shape}")
    return tensor.astype(np.float32)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None  # `_files` gives no others
    return int(match[1])
