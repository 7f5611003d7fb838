"""A layer's tensors out of its blobs, mapped and not copied: what is not touched is never read.

For a blob that was fetched the file in the store is mapped, for a published one the ranges of the owner's own files.
"""

import mmap
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import torch

from ...mesh.errors import LeptonError, UsageError
from ...mesh.limits import LAYER_HEADER_BYTES_MAX
from ..deployments import BlobRef, Manifest
from .store import BlobStore
from .stored import DTYPES, StoredTensor
from .tensor_files import Tensor, read_header

# Tensors that lie this near in a file share one mapping, which costs a file descriptor; further apart they do not, so
# that no mapping is much larger than what is wanted of it.
_GAP_BYTES: Final = 16 * 1024 * 1024


def layer_contents(store: BlobStore, manifest: Manifest, index: int) -> dict[str, Tensor]:
    """Which tensors a layer has, with dtypes and shapes, out of its blobs' headers alone; blobs must be here.

    Raises LeptonError when one is not here or is no safetensors file.
    """
    found: dict[str, Tensor] = {}
    for ref in _layer(manifest, index):
        found.update(_contents(store, ref))
    return found


def open_layer(
    store: BlobStore, manifest: Manifest, index: int, names: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """Open a layer's tensors, or those of ``names``, under their names in the model; its blobs must be here.

    They are mapped: nothing is read before it is used, and what is written to one stays in this process. The first
    time in a process the blobs are checked whole. Raises LeptonError when one is not here, was damaged, or its owner's
    file was changed since it was published.
    """
    found: dict[str, torch.Tensor] = {}
    for ref in _layer(manifest, index):
        store.require_intact(ref)
        contents = _contents(store, ref)
        wanted = contents if names is None else {name: contents[name] for name in contents if name in names}
        found.update(_opened(store, ref, wanted))
    return found


def stored_layer(store: BlobStore, manifest: Manifest, index: int) -> dict[str, StoredTensor]:
    """Do as `open_layer`, for tensors that are read once: they stay on disk until rows are asked for."""
    found: dict[str, StoredTensor] = {}
    for ref in _layer(manifest, index):
        store.require_intact(ref)
        read, what = partial(store.read, ref), f"The blob {ref.digest[:8]}… of a layer"
        found |= {name: StoredTensor(read, tensor, what) for name, tensor in _contents(store, ref).items()}
    return found


def _layer(manifest: Manifest, index: int) -> tuple[BlobRef, ...]:
    if not 0 <= index < len(manifest.layers):
        raise UsageError(f"there is no layer {index}: the model has {len(manifest.layers)}")
    return manifest.layers[index]


def _contents(store: BlobStore, ref: BlobRef) -> dict[str, Tensor]:
    what = f"the blob {ref.digest[:8]}… of a layer"
    return read_header(partial(store.read, ref), ref.size_bytes, what, header_bytes_max=LAYER_HEADER_BYTES_MAX)


def _opened(store: BlobStore, ref: BlobRef, wanted: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    virtual = store.virtual(ref)
    placed: dict[Path, list[tuple[int, str]]] = {}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in wanted.items():
        if not tensor.size_bytes:
            found[name] = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
            continue
        path, start = store.path(ref) if virtual is None else Path(), tensor.start
        if virtual is not None:  # each tensor is one span there
            path, start, _ = next(virtual.places(tensor.start, tensor.size_bytes))
        placed.setdefault(path, []).append((start, name))
    for path, places in placed.items():
        for run in _runs(sorted(places), wanted):
            found.update(_mapped(path, run, wanted))
    return {name: found[name] for name in wanted}


def _runs(places: list[tuple[int, str]], wanted: dict[str, Tensor]) -> list[list[tuple[int, str]]]:
    """Group tensors that lie near to each other."""
    runs: list[list[tuple[int, str]]] = []
    end = -1
    for start, name in places:
        if not runs or start - end > _GAP_BYTES:
            runs.append([])
        runs[-1].append((start, name))
        end = max(end, start + wanted[name].size_bytes)
    return runs


def _mapped(path: Path, run: list[tuple[int, str]], wanted: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    first = run[0][0] // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    end = max(start + wanted[name].size_bytes for start, name in run)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), end - first, access=mmap.ACCESS_COPY, offset=first)
    except (OSError, ValueError) as error:
        raise LeptonError(f"{path}: cannot be mapped into memory: {error}") from error
    return {name: _tensor(mapped, start - first, wanted[name]) for start, name in run}


def _tensor(mapped: mmap.mmap, offset: int, tensor: Tensor) -> torch.Tensor:
    dtype = DTYPES[tensor.dtype]
    raw = torch.frombuffer(mapped, dtype=torch.uint8, count=tensor.size_bytes, offset=offset)
    if offset % dtype.itemsize:  # some writers do not align: then it is copied, alone
        raw = raw.clone()
    return raw.view(dtype).reshape(tensor.shape)
