"""A scenario as a TOML file: what is not as ever, one line a key, readable by `reading` and by people."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .scenario import Scenario


def as_toml(scenario: Scenario, *, comment: str = "") -> str:
    """Return a file that is read as this very scenario. ``comment``: its first lines."""
    found = msgspec.to_builtins(scenario)
    lines = [f"# {line}" for line in comment.splitlines()] + list(_keys(found))
    for key, value in found.items():
        for table in value if _is_tables(value) else [value]:
            if isinstance(table, Mapping) and table:
                lines += ["", f"[[{key}]]" if _is_tables(value) else f"[{key}]", *_keys(table)]
    return "\n".join(lines) + "\n"


def _keys(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{key} = {_value(value)}"


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return msgspec.json.encode(value).decode()  # JSON's texts are TOML's basic strings
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case _:
            return repr(value)
