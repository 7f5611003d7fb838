"""A model's folder in the Hugging Face layout: which file holds which tensor, read slice by slice."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from ...mesh.errors import LeptonError, UsageError
from ..blobs.stored import StoredTensor
from ..blobs.tensor_files import read_header
from .config import LanguageConfig, parse_config
from .layout import layer_of, layers

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_config(folder: Path) -> LanguageConfig:
    """Read the folder's `config.json`. Raises UsageError when it is missing or not understood."""
    try:
        return parse_config((folder / "config.json").read_bytes())
    except OSError as error:
        raise UsageError(f"{folder} holds no config.json that can be read: {error.strerror or error}.") from error


def read_layers(folder: Path, config: LanguageConfig) -> Callable[[int], dict[str, StoredTensor]]:
    """Return what `load_engine` asks for: a function that finds one layer's tensors, none of them read yet.

    Raises UsageError when the folder's files are not those of one such model.
    """
    wanted: list[dict[str, StoredTensor]] = [{} for _ in range(layers(config))]
    for name, tensor in _tensors(folder).items():
        for layer in layer_of(name, config):
            wanted[layer][name] = tensor
    return lambda layer: wanted[layer]


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    if not (folder / _INDEX).exists():
        return _opened(folder / _SINGLE)
    try:
        names = msgspec.convert(json.loads((folder / _INDEX).read_bytes()), _Index).weight_map
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"{folder / _INDEX} cannot be read: {_reason(error)}.") from error
    if strange := next((name for name in names.values() if Path(name).name != name), None):
        raise UsageError(f"{folder / _INDEX} names {strange[:64]!r}, which is not a file of its folder.")
    files = {file: _opened(folder / file) for file in sorted(set(names.values()))}
    if missing := next((name for name, file in names.items() if name not in files[file]), None):
        raise UsageError(f"{folder / names[missing]} does not hold {missing[:128]!r}, as {_INDEX} says.")
    return {name: files[file][name] for name, file in names.items()}


def _opened(path: Path) -> dict[str, StoredTensor]:
    read = partial(_read, path)
    try:
        header = read_header(read, path.stat().st_size, path.name)
    except (OSError, LeptonError) as error:
        raise UsageError(f"{path.parent} holds no {path.name} that can be read: {_reason(error)}.") from error
    return {name: StoredTensor(read, tensor, str(path)) for name, tensor in header.items()}


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _read(path: Path, start: int, size_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size_bytes)
    except OSError as error:
        raise LeptonError(f"{path} cannot be read: {error.strerror or error}.") from error
