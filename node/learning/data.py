"""A user's data file becomes samples and labels, or one sentence that says what is wrong with it and what to do.

Labels are the whole numbers 0 to k-1, or one-hot rows. Names as labels are refused: nodes that hold different classes
would number them differently, and nobody would notice.

Where the labels are is never guessed: in an .npz they are `y`; in a .csv they are the last column unless `target` says
otherwise. A .csv whose last columns look one-hot is refused until `target` says so.
"""

import csv
import difflib
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ..limits import WIDTH_MAX

TEST_SHARE: Final = 0.2  # held out when a file has no test part
TEST_SEED: Final = 0  # the same samples every time, else a restarted node would be tested on what it trained on

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Samples that one node holds, and the ones it keeps aside to test on."""

    x: Floats  # (n, *feature_shape)
    y: Labels  # (n,), 0 to classes - 1
    classes: int  # one more than the highest label seen, unless more were announced
    x_test: Floats | None = None  # (t, *feature_shape)
    y_test: Labels | None = None  # (t,)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.x.shape[1:]


class DataFile(NamedTuple):
    """A file to learn from, and for a ``.csv`` which of its columns are labels."""

    path: Path
    target: str | None

    def load(self, classes: int | None = None) -> Dataset:
        """Read it as `load_data` does."""
        return load_data(self.path, target=self.target, classes=classes)


def data_file(text: str, folder: Path) -> DataFile:
    """Read ``FILE`` or ``FILE@TARGET`` as configurations write it, relative to ``folder``."""
    path, separator, target = text.rpartition("@")
    if not separator or (folder / text).exists():
        return DataFile(folder / text, None)
    return DataFile(folder / path, target)


def load_data(path: str | Path, *, target: str | None = None, classes: int | None = None) -> Dataset:
    """Read an ``.npz`` or a ``.csv``.

    ``.npz``: ``x`` (n, ...), ``y`` (n,) whole numbers or (n, k) one-hot, and perhaps ``x_test`` and ``y_test``.
    ``.csv``: one sample a line, a header or none, separated by commas, semicolons or tabs. ``target`` names the label
    column, or is ``last`` (the default), or ``onehot:K`` for K one-hot columns at the end.
    ``classes`` announces how many there are, for a file that holds only some of them. Without a test part a fifth is
    held out, the same fifth every time.

    Raises UsageError, naming the file, what is wrong with it and where.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of an .npz or a .csv")
    kind = path.suffix.lower()
    if kind not in (".npz", ".csv"):
        raise UsageError(f"{path}: Lepton reads .npz and .csv, not {kind or 'a file without an ending'}")
    if kind == ".npz" and target is not None:
        raise UsageError(f"{path}: `target` is for .csv files; in an .npz the labels are the array `y`")
    try:
        dataset = _from_npz(path, classes) if kind == ".npz" else _from_csv(path, target or "last", classes)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return dataset if dataset.x_test is not None else hold_out(dataset, TEST_SHARE, TEST_SEED)


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Move a random ``share`` of the samples, at least one, to the test part; ``seed`` says which."""
    order = np.random.default_rng(seed).permutation(len(dataset.y))
    size = max(1, round(share * len(order)))
    if size >= len(order):
        raise UsageError(f"{len(order)} samples are too few to hold any out for a test; give 2 or more")
    test, train = np.sort(order[:size]), np.sort(order[size:])
    x, y = dataset.x, dataset.y
    return Dataset(x=x[train], y=y[train], classes=dataset.classes, x_test=x[test], y_test=y[test])


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 flattened to (64,), in [0, 1], a fifth of them for the test."""
    from sklearn.datasets import load_digits  # a second to import, for this one function

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32)  # 16 is the darkest
    return hold_out(Dataset(x=x, y=labels.astype(np.int64), classes=10), TEST_SHARE, seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples to be answered, and what they really are where the file says it."""

    x: Floats  # (n, *feature_shape)
    y: Labels | None  # (n,)


def load_samples(path: str | Path, *, target: str | None = None) -> Samples:
    """Read samples to predict: ``x`` and perhaps ``y`` of an ``.npz``, or a ``.csv``.

    A ``.csv`` holds features alone, unless ``target`` names its label columns as in `load_data`.
    Raises UsageError, naming the file, what is wrong with it and where.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of an .npz or a .csv")
    try:
        if path.suffix.lower() == ".csv":
            if target is not None:
                dataset = _from_csv(path, target, None)
                return Samples(x=dataset.x, y=dataset.y)
            header, first_line, cells = _read_csv(path)
            return Samples(x=_samples(path, "features", _numbers(path, header, first_line, cells)), y=None)
        if path.suffix.lower() != ".npz":
            raise UsageError(f"{path}: Lepton reads .npz and .csv, not {path.suffix or 'a file without an ending'}")
        arrays = _read_npz(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if "x" not in arrays:
        raise UsageError(f"{path}: has no array `x`; save with np.savez(path, x=...)")
    x = _samples(path, "x", arrays["x"])
    y = _labels(path, "y", arrays["y"], None) if "y" in arrays else None
    if y is not None:
        _same_length(path, "x", x, "y", y)
    return Samples(x=x, y=y)


# -- npz ---------------------------------------------------------------------------------------------------------------


def _from_npz(path: Path, classes: int | None) -> Dataset:
    arrays = _read_npz(path)
    if missing := [name for name in ("x", "y") if name not in arrays]:
        found = ", ".join(sorted(arrays)) or "none"
        raise UsageError(
            f"{path}: has no array `{missing[0]}` (it has {found}); save with np.savez(path, x=..., y=...)"
        )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise UsageError(f"{path}: has only one of `x_test` and `y_test`; give both or neither")
    x, y = _samples(path, "x", arrays["x"]), _labels(path, "y", arrays["y"], classes)
    _same_length(path, "x", x, "y", y)
    if "x_test" not in arrays:
        return _dataset(path, x, y, classes)
    x_test, y_test = _samples(path, "x_test", arrays["x_test"]), _labels(path, "y_test", arrays["y_test"], classes)
    _same_length(path, "x_test", x_test, "y_test", y_test)
    if x_test.shape[1:] != x.shape[1:]:
        raise UsageError(f"{path}: samples of `x` are {x.shape[1:]}, of `x_test` {x_test.shape[1:]}; make them equal")
    return _dataset(path, x, y, classes, x_test, y_test)


def _read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with path.open("rb") as file:  # given a path, np.load leaves the file open when it is damaged
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{path}: is a single array, not an .npz; save with np.savez(path, x=..., y=...)")
            return {name: archive[name] for name in archive.files if name in ("x", "y", "x_test", "y_test")}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path}: is not an .npz of plain arrays, or is damaged ({error}); save it again") from error


def _samples(path: Path, name: str, raw: npt.NDArray[np.generic]) -> Floats:
    if raw.dtype.kind not in "fiub":
        raise UsageError(f"{path}: `{name}` holds {raw.dtype}, not numbers; convert it to float32")
    if raw.ndim < 2:
        raise UsageError(f"{path}: `{name}` has shape {raw.shape}; it must be (samples, features) or (samples, H, W)")
    if raw.size == 0:
        raise UsageError(f"{path}: `{name}` is empty, shape {raw.shape}; give one sample or more")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, reported below
        x = raw.astype(np.float32)
    if not (finite := np.isfinite(x.reshape(len(x), -1)).all(axis=1)).all():
        row = int(np.argmin(finite))
        raise UsageError(f"{path}: `{name}` has NaN or infinity at row {row} (from 0); drop the row or fill it in")
    return x


def _labels(path: Path, name: str, raw: npt.NDArray[np.generic], classes: int | None) -> Labels:
    if raw.dtype.kind not in "fiub":
        raise UsageError(f"{path}: `{name}` holds {raw.dtype}; labels are whole numbers from 0, the same on all nodes")
    if raw.ndim == 2 and raw.shape[1] > 1:
        return _from_one_hot(path, name, raw.astype(np.float64))
    if raw.ndim not in (1, 2):
        raise UsageError(
            f"{path}: `{name}` has shape {raw.shape}; it must be (samples,), or (samples, classes) one-hot"
        )
    y = raw.astype(np.float64).ravel()
    top = WIDTH_MAX if classes is None else classes
    if not (good := (y == np.floor(y)) & (y >= 0) & (y < top)).all():
        row = int(np.argmin(good))
        raise UsageError(
            f"{path}: `{name}` is {y[row]:g} at row {row} (from 0); labels are whole numbers 0 to {top - 1}"
        )
    return y.astype(np.int64)


def _from_one_hot(path: Path, name: str, raw: npt.NDArray[np.float64]) -> Labels:
    if not (good := ((raw == 0) | (raw == 1)).all(axis=1) & (raw.sum(axis=1) == 1)).all():
        row = int(np.argmin(good))
        raise UsageError(f"{path}: `{name}` is not one-hot at row {row} (from 0): one 1 and else 0 in {raw.shape[1]}")
    y: Labels = np.argmax(raw, axis=1).astype(np.int64)
    return y


def _same_length(path: Path, x_name: str, x: Floats, y_name: str, y: Labels) -> None:
    if len(x) != len(y):
        raise UsageError(f"{path}: `{x_name}` has {len(x)} rows, `{y_name}` has {len(y)}; each sample needs its label")


def _dataset(
    path: Path,
    x: Floats,
    y: Labels,
    classes: int | None,
    x_test: Floats | None = None,
    y_test: Labels | None = None,
) -> Dataset:
    seen = 1 + int(max(y.max(), -1 if y_test is None else y_test.max()))
    if classes is not None and seen > classes:
        raise UsageError(f"{path}: holds label {seen - 1}; labels are whole numbers 0 to {classes - 1}")
    if x_test is None and len(y) < 2:
        raise UsageError(f"{path}: holds 1 sample, and a test part must be held out; give 2 or more")
    return Dataset(x=x, y=y, classes=max(2, classes or seen), x_test=x_test, y_test=y_test)


# -- csv ---------------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, target: str, classes: int | None) -> Dataset:
    header, first_line, cells = _read_csv(path)
    table = _numbers(path, header, first_line, cells)  # (n, columns)
    features, labels = _split_columns(path, header, table, target)
    x, y = _samples(path, "features", features), _labels(path, "labels", labels, classes)
    return _dataset(path, x, y, classes)


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


def _split_columns(
    path: Path, header: list[str] | None, table: npt.NDArray[np.float64], target: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Features (n, f) and labels, (n,) or (n, K) one-hot."""
    columns = table.shape[1]
    if target.startswith("onehot:"):
        count = target.removeprefix("onehot:")
        if not count.isdecimal() or not 2 <= int(count) < columns:
            raise UsageError(f"{path}: target {target!r}: give onehot:K with K from 2 to {columns - 1}")
        return table[:, : -int(count)], table[:, -int(count) :]
    if target == "last" or (header is not None and target == header[-1]):
        if target == "last" and (count_seen := _one_hot_columns(table)):
            raise UsageError(
                f"{path}: the last {count_seen} columns look one-hot; say target='onehot:{count_seen}', or another "
                "number of classes, or the name of the label column"
            )
        return table[:, :-1], table[:, -1]
    column = _named_column(path, header, target)
    return np.delete(table, column, axis=1), table[:, column]


def _named_column(path: Path, header: list[str] | None, target: str) -> int:
    if header is None:
        raise UsageError(f"{path}: has no header, so no column {target!r}; leave target out or say onehot:K")
    if header.count(target) > 1:
        raise UsageError(f"{path}: has {header.count(target)} columns {target!r}; rename one")
    if target not in header:
        near = difflib.get_close_matches(target, header, n=1, cutoff=0) or header
        raise UsageError(f"{path}: has no column {target!r}; the nearest is {near[0]!r}")
    return header.index(target)


def _one_hot_columns(table: npt.NDArray[np.float64]) -> int:
    """How many of the last columns (3 or more, the fewest that do) hold one 1 and else 0 in every row; 0 if none do.

    Two are not enough: a yes-or-no feature before a yes-or-no label may well be its opposite.
    """
    ones, count = np.zeros(len(table)), 0
    for column in table.T[:0:-1]:  # from the last to the second
        if not ((column == 0) | (column == 1)).all():
            return 0
        ones, count = ones + column, count + 1
        if count >= 3 and (ones == 1).all():
            return count
    return 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
