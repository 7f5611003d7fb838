"""Tables of numbers, whatever file they came from: which columns are features and which are labels.

Where the labels are is never guessed: the last column unless `target` says otherwise, and a table whose last columns
look one-hot is refused until `target` says so.
"""

import difflib
from typing import Final

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .checks import Dataset, Wanted, Where, dataset_of, samples_of, unlabelled

_LEAST: Final = {"onehot": 2, "values": 1}  # columns at the end that hold one label, or as many values


def from_table(
    path: Where, header: list[str] | None, table: npt.NDArray[np.float64], target: str, wanted: Wanted
) -> Dataset:
    """Split a table (n, columns) into samples and labels. Raises UsageError."""
    if target == "none" and (header is None or "none" not in header):
        if wanted.labels:
            raise UsageError(f"{path}: target 'none': without labels a model can only be taught by another ([distil])")
        return unlabelled(samples_of(path, "features", table), wanted.classes)
    features, labels = _split_columns(path, header, table, target)
    x, y = samples_of(path, "features", features), wanted.targets(path, "labels", labels)
    return dataset_of(path, x, y, wanted)


def _split_columns(
    path: Where, header: list[str] | None, table: npt.NDArray[np.float64], target: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Features (n, f) and labels, (n,) or (n, K) one-hot or values."""
    columns = table.shape[1]
    kind, _, count = target.partition(":")
    if count and kind in _LEAST:
        if not count.isdecimal() or not _LEAST[kind] <= int(count) < columns:
            raise UsageError(f"{path}: target {target!r}: give {kind}:K with K from {_LEAST[kind]} to {columns - 1}")
        return table[:, : -int(count)], table[:, -int(count) :]
    if target == "last" or (header is not None and target == header[-1]):
        if target == "last" and (count_seen := _one_hot_columns(table)):
            raise UsageError(
                f"{path}: the last {count_seen} columns look one-hot; say target='onehot:{count_seen}', or another "
                "number of classes, or the name of the label column, or target='values:1'"
            )
        return table[:, :-1], table[:, -1]
    column = _named_column(path, header, target)
    return np.delete(table, column, axis=1), table[:, column]


def _named_column(path: Where, header: list[str] | None, target: str) -> int:
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
