"""A folder in the Hugging Face layout as a manifest and blobs: by layer, out of the owner's own files, hashed once.

`config.json`, tokenizer files, and `model.safetensors` or shards with `model.safetensors.index.json`. Nothing of it is
executed, and no path that a file names leads out of the folder.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ...mesh.errors import LeptonError, UsageError
from ..deployments import CONFIG_CHARACTERS_MAX, LAYERS_MAX, BlobRef, FileName, Kind, Manifest
from .manifests import manifest_bytes
from .store import IN_MEMORY_BYTES_MAX, BlobStore
from .tensor_files import Tensor, header_of, in_order, read_header
from .virtual import SourceFile, Span, Virtual

# What a tokenizer and a configuration are made of, in the repositories of the families that we serve.
FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "program.json",
)  # fmt: skip
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_INDEX_BYTES_MAX: Final = 16 * 1024 * 1024  # 100,000 tensors at 100 B
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HASHING_MAX: Final = 4  # blobs hashed at once: SHA-256 of two cores already reads faster than most disks


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What `publish_folder` made."""

    ref: BlobRef  # of the manifest, itself a blob
    manifest: Manifest
    layers: tuple[dict[str, Tensor], ...]  # what each has: dtypes, shapes, sizes


class _Found(NamedTuple):
    path: Path
    tensor: Tensor


def publish_folder(
    store: BlobStore,
    folder: str | Path,
    layer_of: Callable[[str], Sequence[int]],
    layers: int,
    *,
    kind: Kind = "causal_lm",
    within: Path | None = None,
) -> Published:
    """Make a model's folder known to a store, for peers to fetch and for `open_layer`. Reads every weight once.

    ``layer_of`` says which layers, 0 up to ``layers``, need a tensor of that name: none drops it, two or more make it
    a blob of its own. Symbolic links may lead to anywhere below ``within``; the folder itself, if it is not given.
    Call it in a thread. Raises UsageError that names the file and what is wrong with it, LeptonError from the disk.
    """
    folder = Path(folder)
    root = (within or folder).resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one that has config.json and model.safetensors")
    if not 1 <= layers <= LAYERS_MAX:
        raise UsageError(f"a model of {layers} layers cannot be served: it may have 1 to {LAYERS_MAX}")
    files = {name: (folder / name) for name in FILES if (folder / name).exists()}
    config = _config(folder, root)
    found = _tensors(folder, root)
    groups = _grouped(found, layer_of, layers)
    names = sorted(groups)
    with ThreadPoolExecutor(min(_HASHING_MAX, os.cpu_count() or 1)) as pool:
        refs = pool.map(lambda group: store.register(_virtual(groups[group], found)), names)
        blobs = dict(zip(names, refs, strict=True))
    manifest = Manifest(
        kind=kind,
        config=config,
        files={name: store.put(_small(path, root)) for name, path in files.items()},
        layers=tuple(tuple(blobs[group] for group in names if index in group) for index in range(layers)),
    )
    contents = tuple(
        {name: found[name].tensor for group in names if index in group for name in groups[group]}
        for index in range(layers)
    )
    return Published(ref=store.put(manifest_bytes(manifest)), manifest=manifest, layers=contents)


def folder_tensors(folder: str | Path, *, within: Path | None = None) -> dict[str, Tensor]:
    """Which tensors the model in a folder has. Raises UsageError."""
    root = (within or Path(folder)).resolve()
    return {name: found.tensor for name, found in _tensors(Path(folder), root).items()}


def _config(folder: Path, root: Path) -> str:
    data = _small(folder / "config.json", root, bytes_max=CONFIG_CHARACTERS_MAX)
    try:
        text = data.decode("utf-8")
        if not isinstance(json.loads(text), dict):
            raise UsageError(f"{folder / 'config.json'} is not a model's configuration: it has to be a JSON object")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{folder / 'config.json'} is not valid JSON: {str(error)[:200]}") from error
    return text


def _grouped(
    found: Mapping[str, _Found], layer_of: Callable[[str], Sequence[int]], layers: int
) -> dict[tuple[int, ...], list[str]]:
    """Put tensors that the same layers need together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(found):
        needed = tuple(sorted(set(layer_of(name))))
        if any(not 0 <= index < layers for index in needed):
            raise UsageError(f"tensor {name!r} belongs to layers {needed} of a model that has {layers}")
        if needed:
            groups.setdefault(needed, []).append(name)
    return groups


def _virtual(names: Iterable[str], found: Mapping[str, _Found]) -> Virtual:
    tensors = {name: found[name].tensor for name in names}
    paths = sorted({found[name].path for name in names})
    spans = tuple(
        Span(paths.index(found[name].path), tensors[name].start, tensors[name].size_bytes) for name in in_order(tensors)
    )
    return Virtual(header_of(tensors), tuple(SourceFile.of(path) for path in paths), spans)


# -- files of the folder -----------------------------------------------------------------------------------------------


def _tensors(folder: Path, root: Path) -> dict[str, _Found]:
    """Every tensor of the model, and the file that has it."""
    if (folder / INDEX).exists():
        return _indexed(folder, root)
    if not (folder / WEIGHTS).exists():
        raise _no_weights(folder)
    path = _inside(folder / WEIGHTS, root)
    return {name: _Found(path, tensor) for name, tensor in _header(path).items()}


def _indexed(folder: Path, root: Path) -> dict[str, _Found]:
    path = folder / INDEX
    try:
        index: Any = msgspec.json.decode(_small(path, root, bytes_max=_INDEX_BYTES_MAX))
        files = msgspec.convert(index["weight_map"], dict[str, FileName])
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is no index of safetensors files beside it, each named without a folder: {str(error)[:200]}"
        ) from error
    headers = {name: _header(_inside(folder / name, root)) for name in sorted(set(files.values()))}
    found = {}
    for tensor, name in files.items():
        if tensor not in headers[name]:
            raise UsageError(f"{path} says that {tensor[:200]!r} is in {name}, which does not have it")
        found[tensor] = _Found((folder / name).resolve(), headers[name][tensor])
    return found


def _header(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:

            def read(start: int, size_bytes: int) -> bytes:
                file.seek(start)
                return file.read(size_bytes)

            return read_header(read, path.stat().st_size, str(path))
    except OSError as error:
        raise LeptonError(f"{path}: cannot be read: {error.strerror or error}") from error


def _small(path: Path, root: Path, *, bytes_max: int = IN_MEMORY_BYTES_MAX) -> bytes:
    path = _inside(path, root)
    try:
        if (size := path.stat().st_size) > bytes_max:
            raise UsageError(f"{path} has {size:,} bytes, more than the {bytes_max:,} that such a file may have")
        return path.read_bytes()
    except OSError as error:
        raise LeptonError(f"{path}: cannot be read: {error.strerror or error}") from error


def _inside(path: Path, root: Path) -> Path:
    """Return the real file. Raises UsageError when it is not there or a link leads out of the model's folder."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{path} is not there, and the model needs it") from error
    if not real.is_relative_to(root):
        raise UsageError(f"{path} is a link that leads out of the model's folder, to {real}: put the file itself there")
    if not real.is_file():
        raise UsageError(f"{path} is not a file")
    return real


def _no_weights(folder: Path) -> UsageError:
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if not pickled:
        return UsageError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")
    return UsageError(
        f"{folder} has its weights only in {pickled[0]}, a pickle, which could run any program when it is read, so it "
        "is not. Where you trust it, convert it once: "
        f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')"
        f".save_pretrained('{folder}-safetensors')\", then copy the tokenizer files there"
    )
