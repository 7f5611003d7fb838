"""A model's folder in the Hugging Face layout: which file holds which tensor, read layer by layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...mesh.errors import UsageError
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
        raise UsageError(f"{folder} holds no config.json that can be read: {error}.") from error


def read_layers(folder: Path, config: LanguageConfig) -> Callable[[int], dict[str, Tensor]]:
    """Return what `load_engine` asks for: a function that reads one layer's tensors and nothing else."""
    where = _files(folder)
    wanted: list[list[str]] = [[] for _ in range(layers(config))]
    for name in where:
        for layer in layer_of(name, config):
            wanted[layer].append(name)

    def read(layer: int) -> dict[str, Tensor]:
        return {name: _tensor(folder / where[name], name) for name in wanted[layer]}

    return read


def _files(folder: Path) -> dict[str, str]:
    """Return each tensor's name with the name of its file, which is one in this folder."""
    if not (folder / _INDEX).exists():
        try:
            with safe_open(folder / _SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), _SINGLE)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{folder} holds no {_SINGLE} that can be read: {error}.") from error
    try:
        names = msgspec.convert(json.loads((folder / _INDEX).read_bytes()), _Index).weight_map
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"{folder / _INDEX} cannot be read: {error}.") from error
    if strange := next((name for name in names.values() if Path(name).name != name), None):
        raise UsageError(f"{folder / _INDEX} names {strange[:64]!r}, which is not a file of its folder.")
    return names


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{name} cannot be read from {path}: {error}.") from error
