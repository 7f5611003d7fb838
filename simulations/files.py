"""Scenarios as files: TOML in, frozen structs out; whatever is wrong is named, with the nearest that would be right."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..mesh.errors import UsageError
from ..node.config import check_keys, check_values, did_you_mean, sentence

Kind = TypeVar("Kind", bound=msgspec.Struct)


def path_of(file_or_name: str, shipped: Mapping[str, Path], what: str = "scenario") -> Path:
    """Return the shipped scenario of this name, or this file. Raises UsageError where there is neither."""
    path = shipped.get(file_or_name, Path(file_or_name))
    if not path.is_file():
        hint = did_you_mean(file_or_name, list(shipped))
        raise UsageError(f"There is no {what} and no file {file_or_name!r}.{hint}")
    return path


def parsed(path: Path) -> dict[str, Any]:
    """Read TOML. Raises UsageError where it is none."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is not a readable TOML file: {error}.") from error


def converted(found: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    """Check keys and values. Raises UsageError."""
    check_keys(where, found, kind)
    check_values(where, found, kind)
    try:
        return msgspec.convert(found, kind, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {sentence(error)}.") from error
