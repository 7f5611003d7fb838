"""A user's data become samples and labels, or one sentence that says what is wrong with them and what to do.

Labels are the whole numbers 0 to k-1, or one-hot rows; any numbers, where values are to be predicted.
Names as labels are refused: nodes that hold different classes would number them differently, and nobody would notice.

Where the labels are is never guessed: in an .npz they are `y`; in a table the last column unless `target` says
otherwise; in a folder of images the names of its folders, which `target` lists in the order that all nodes agree on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ..objective import Objective, is_of_classes
from .formats.checks import (
    Dataset,
    Floats,
    Targets,
    Wanted,
    require_classes,
    require_same_length,
    samples_of,
    unlabelled,
)  # fmt: skip

__all__ = ["DataSource", "Dataset", "data_source", "digits", "hold_out", "load_data", "load_samples", "unlabelled"]

TEST_SHARE: Final = 0.2  # held out when a source has no test part
TEST_SEED: Final = 0  # the same samples every time, else a restarted node would be tested on what it trained on

_KINDS: Final = "an .npz, a .csv, a .parquet, a folder of images, or package.module:function"


class DataSource(NamedTuple):
    """Where to learn from, as a path or ``package.module:function``, and how to read the labels."""

    where: str
    target: str | None

    def load(
        self, classes: int | None = None, objective: Objective = "cross_entropy", *, labels: bool = True
    ) -> Dataset:
        """Read it as `load_data` does."""
        return load_data(self.where, target=self.target, classes=classes, objective=objective, labels=labels)

    def check(self) -> str:
        """Read it, for classes or for values, whichever it holds; say so if only values, or nothing, can be learned.

        Raises UsageError where it holds no samples either.
        """
        try:
            self.load()
        except UsageError as of_classes:
            try:
                self.load(objective="mse")
            except UsageError:
                return self._check_samples(of_classes)
            return f"only values can be learned from these data, not classes: {of_classes}"
        return ""

    def _check_samples(self, why: UsageError) -> str:
        try:
            self.load(labels=False)
        except UsageError:
            raise why from None
        return f"from these data a model can only be taught by another ([distil]): {why}"


def data_source(text: str, folder: Path) -> DataSource:
    """Read ``FILE``, ``FILE@TARGET`` or ``package.module:function`` as configurations write it, from ``folder``."""
    path, separator, target = text.rpartition("@")
    if not separator or (folder / text).exists():
        return DataSource(text if _is_function(text, folder) else str(folder / text), None)
    return DataSource(str(folder / path), target)


def _is_function(text: str, folder: Path) -> bool:
    module, separator, name = text.partition(":")
    named = all(part.isidentifier() for part in (*module.split("."), name))
    return bool(separator) and named and not (folder / text).exists()


def load_data(
    where: str | Path,
    *,
    target: str | None = None,
    classes: int | None = None,
    objective: Objective = "cross_entropy",
    labels: bool = True,
) -> Dataset:
    """Read an ``.npz``, a ``.csv``, a ``.parquet``, a folder of images, or what a function of yours returns.

    ``.npz``: ``x`` (n, ...), ``y`` (n,) whole numbers or (n, k) one-hot, and perhaps ``x_test`` and ``y_test``. For
    an ``objective`` other than cross-entropy ``y`` is (n,) or (n, k) numbers, whatever the kind of source.
    ``.csv``, ``.parquet``: ``target`` names the label column, or is ``last`` (the default), or ``onehot:K`` for K
    one-hot columns at the end, ``values:K`` for K columns of values there. A folder: one folder of images a class;
    ``target`` is ``HxW`` and, unless the folders are called 0, 1, 2 ..., ``:`` and the classes in order. A function
    returns a Dataset, or (x, y), or (x, y, x_test, y_test).
    ``classes`` announces how many there are, for a source that holds only some of them. Without a test part a fifth is
    held out, the same fifth every time. With ``labels`` False there may be none, for a teacher to say: an .npz without
    `y`, ``target`` ``none``, a function that returns (x,); single classes may be -1.

    Raises UsageError, naming the source, what is wrong with it and where.
    """
    try:
        dataset = _reader(str(where), target)(Wanted(objective, classes, labels))
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror or error}") from error
    return dataset if dataset.x_test is not None else hold_out(dataset, TEST_SHARE, TEST_SEED)


def _reader(where: str, target: str | None) -> Callable[[Wanted], Dataset]:
    """Return what reads a source, given what is wanted of its labels. Imports what is heavy only then."""
    path = Path(where)
    if _is_function(where, Path()):
        from .formats.function import from_function

        return lambda wanted: from_function(where, wanted)
    if path.is_dir():
        from .formats.images import from_images

        return lambda wanted: from_images(path, target, wanted)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give {_KINDS}")
    match path.suffix.lower():
        case ".npz" if target is not None:
            raise UsageError(f"{path}: `target` is for tables and images; in an .npz the labels are the array `y`")
        case ".npz":
            from .formats.npz import from_npz

            return lambda wanted: from_npz(path, wanted)
        case ".csv" | ".parquet":
            from .formats.table import from_table

            return lambda wanted: from_table(path, *_read_table(path), target or "last", wanted)
        case kind:
            raise UsageError(f"{path}: Lepton reads {_KINDS}; not {kind or 'a file without an ending'}")


def _read_table(path: Path) -> tuple[list[str] | None, npt.NDArray[np.float64]]:
    if path.suffix.lower() == ".parquet":
        from .formats.parquet import read_parquet

        return read_parquet(path)
    from .formats.comma import read_csv

    return read_csv(path)


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Move a random ``share`` of the samples, at least one, to the test part; ``seed`` says which."""
    order = np.random.default_rng(seed).permutation(len(dataset.y))
    size = max(1, round(share * len(order)))
    if size >= len(order):
        raise UsageError(f"{len(order)} samples are too few to hold any out for a test; give 2 or more")
    test, train = np.sort(order[:size]), np.sort(order[size:])
    x, y = dataset.x, dataset.y
    return Dataset(
        x=x[train],
        y=y[train],
        classes=dataset.classes,
        x_test=x[test],
        y_test=y[test],
        labelled=dataset.labelled,
    )


def outputs_of(dataset: Dataset, objective: Objective, *, announced: int = 0) -> int:
    """Return how many numbers a model of these data answers to a sample. Raises UsageError for values as classes."""
    if not dataset.labelled:
        if not announced:
            raise UsageError("data without labels do not say how many numbers a model answers: say `model.classes`")
        return announced
    if is_of_classes(objective):
        require_classes(dataset.y)
        return max(announced, dataset.classes)
    return 1 if dataset.y.ndim == 1 else int(dataset.y.shape[1])


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
    y: Targets | None  # (n,), or values (n, k)


def load_samples(path: str | Path, *, target: str | None = None, objective: Objective = "cross_entropy") -> Samples:
    """Read samples to predict: ``x`` and perhaps ``y`` of an ``.npz``, or a ``.csv`` or ``.parquet``.

    A table holds features alone, unless ``target`` names its label columns as in `load_data`. ``objective`` is that of
    the model which will answer.
    Raises UsageError, naming the file, what is wrong with it and where.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of an .npz, a .csv or a .parquet")
    try:
        if path.suffix.lower() == ".npz":
            return _npz_samples(path, Wanted(objective))
        if path.suffix.lower() not in {".csv", ".parquet"}:
            ending = path.suffix or "a file without an ending"
            raise UsageError(f"{path}: Lepton reads .npz, .csv and .parquet, not {ending}")
        header, table = _read_table(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if target is None:
        return Samples(x=samples_of(path, "features", table), y=None)
    from .formats.table import from_table

    dataset = from_table(path, header, table, target, Wanted(objective))
    return Samples(x=dataset.x, y=dataset.y)


def _npz_samples(path: Path, wanted: Wanted) -> Samples:
    from .formats.npz import read_npz

    arrays = read_npz(path)
    if "x" not in arrays:
        raise UsageError(f"{path}: has no array `x`; save with np.savez(path, x=...)")
    x = samples_of(path, "x", arrays["x"])
    y = wanted.targets(path, "y", arrays["y"]) if "y" in arrays else None
    if y is not None:
        require_same_length(path, "x", x, "y", y)
    return Samples(x=x, y=y)
