"""Outcomes on disk: JSON that is checked when it is read, whole or not there, and rounds as CSV for a spreadsheet."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from ....mesh.errors import UsageError
from ..outcome import Outcome, Row

NAME: Final = "outcome.json"
SIZE_BYTES_MAX: Final = 512 * 2**20  # a million rounds at 300 bytes, and a million nodes with names
OUTCOMES_MAX: Final = 10_000  # in one folder: a sweep; what is beyond is somebody's disk
_FLOATS: Final = tuple(field.name for field in msgspec.structs.fields(Row) if field.type is float)


def dump(outcome: Outcome) -> bytes:
    """Return the outcome as JSON. What is no number (a loss that ran away) is null: JSON knows neither NaN nor inf."""
    return msgspec.json.encode(outcome)


def parse(text: bytes | str, where: str = NAME) -> Outcome:
    """Check JSON against the schema. Raises UsageError that names the file and the field."""
    try:
        found = msgspec.json.decode(text)
        return msgspec.convert(_with_nan(found), Outcome, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is no outcome of a learning run: {error}.") from error


def save(outcome: Outcome, file: Path) -> None:
    """Write the outcome in one piece. Raises UsageError where the disk says no."""
    write(file, dump(outcome))


def load(file: Path) -> Outcome:
    """Read one outcome. Raises UsageError that says what is wrong with the file."""
    try:
        if file.stat().st_size > SIZE_BYTES_MAX:
            raise UsageError(f"{file} is larger than {SIZE_BYTES_MAX // 2**20} MiB: no outcome of a run is.")
        text = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}.") from error
    return parse(text, str(file))


def gather(paths: Iterable[Path]) -> dict[str, Outcome]:
    """Read outcomes from files, or from folders that `learn` or `sweep` wrote, by label. Raises UsageError."""
    found = list(dict.fromkeys(file for path in paths for file in _files(path)))
    if len(found) > OUTCOMES_MAX:
        raise UsageError(f"{len(found):,} outcomes are more than the {OUTCOMES_MAX:,} that are compared at once.")
    outcomes: dict[str, Outcome] = {}
    for file in found:
        outcome = load(file)
        place = file.parent.name if file.name == NAME else file.stem
        labels = (outcome.name, f"{outcome.name} ({place})", f"{outcome.name} ({file})")
        outcomes[next(label for label in labels if label not in outcomes)] = outcome
    return outcomes


def rounds_csv(outcomes: Mapping[str, Outcome]) -> str:
    """Return all rows of all runs, the run's label first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [field for field in Row.__struct_fields__ if field != "extra"]
    extras = measures(outcomes)
    writer.writerow(["run", *fields, *map(_plain, extras)])
    for label, outcome in outcomes.items():
        for row in outcome.rows:
            measured = (row.extra.get(name, "") for name in extras)
            writer.writerow([_plain(label), *(getattr(row, field) for field in fields), *measured])
    return text.getvalue()


def measures(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return the names of what these runs' data measure beside quality, in the order in which they come."""
    return list(dict.fromkeys(name for outcome in outcomes.values() for row in outcome.rows for name in row.extra))


def lines_json(outcomes: Mapping[str, Outcome]) -> str:
    """Return one line of JSON a run, for other programs."""
    return "\n".join(json.dumps({"label": label} | _builtins(outcome)) for label, outcome in outcomes.items())


def write(file: Path, content: bytes | str) -> None:
    """Write a file whole, or leave what was there. Raises UsageError."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(file)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {error.strerror or error}. Name another --out folder.") from error


def _builtins(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(outcome))  # by way of JSON: no NaN
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / NAME).is_file():
        return [path / NAME]
    below = sorted(path.glob(f"*/{NAME}"))
    if not below:
        raise UsageError(f"{path} holds no {NAME}: name a folder that `lepton-sim learn --out` wrote.")
    return below


def _plain(label: str) -> str:
    """Return a label that no spreadsheet takes for a formula."""
    return f"'{label}" if label[:1] in {"=", "+", "-", "@", "\t", "\r"} else label


def _with_nan(found: object) -> object:
    """Put NaN where `dump` wrote null for a number."""
    if isinstance(found, dict):
        rows = found.get("rows")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                row.update((key, math.nan) for key in _FLOATS if key in row and row[key] is None)
                if isinstance(extra := row.get("extra"), dict):
                    extra.update((key, math.nan) for key, value in extra.items() if value is None)
        if isinstance(final := found.get("final"), list):
            found["final"] = [math.nan if value is None else value for value in final]
    return found
