"""Comma-separated text: one sample a line, a header or none, separated by commas, semicolons or tabs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError


def read_csv(path: Path) -> tuple[list[str] | None, npt.NDArray[np.float64]]:
    """Return the header, if there is one, and the numbers, (n, columns). Raises UsageError that names the cell."""
    header, first_line, cells = _read_csv(path)
    return header, _numbers(path, header, first_line, cells)


def _read_csv(path: Path) -> tuple[list[str] | None, int, list[list[str]]]:
    """The header if there is one, the line number of the first sample, and the samples' cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not text ({error.reason} at byte {error.start}); save it as CSV, UTF-8"
        ) from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)  # the comma where none occurs
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise UsageError(f"{path}: is not a CSV file: {error}") from error
    while rows and not any(rows[-1]):  # blank lines at the end
        rows.pop()
    header = [name.strip() for name in rows.pop(0)] if rows and not all(map(_is_number, rows[0])) else None
    if not rows:
        raise UsageError(f"{path}: holds no samples; give a line for each, features and then the label")
    return header, 1 if header is None else 2, rows


def _numbers(
    path: Path, header: list[str] | None, first_line: int, rows: Sequence[Sequence[str]]
) -> npt.NDArray[np.float64]:
    columns = len(rows[0] if header is None else header)
    if columns < 2:
        raise UsageError(f"{path}: has {columns} column; give features and a label, separated by commas")
    table = np.empty((len(rows), columns), dtype=np.float64)
    for number, row in enumerate(rows):
        if len(row) != columns:
            place = f"line {first_line + number}"
            raise UsageError(f"{path}: {place} has {len(row)} columns, the first line has {columns}; mend that line")
        try:
            table[number] = [float(cell) for cell in row]
            bad = not np.isfinite(table[number]).all()
        except ValueError:
            bad = True
        if bad:
            raise _bad_cell(path, header, first_line + number, row)
    return table


def _bad_cell(path: Path, header: list[str] | None, line: int, row: Sequence[str]) -> UsageError:
    column = next(i for i, cell in enumerate(row) if not _is_number(cell) or not np.isfinite(float(cell)))
    name = f"column {column + 1}" if header is None else f"column `{header[column]}`"
    what = f"{row[column]!r} is not a finite number" if row[column].strip() else "the cell is empty"
    return UsageError(f"{path}: line {line}, {name}: {what}; use numbers only, and labels from 0")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
