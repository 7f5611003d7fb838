"""What every kind of file must turn out to be: finite samples and whole-number labels, or a sentence that says why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from ...limits import WIDTH_MAX
from ...objective import Objective, is_of_classes

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Targets = Labels | Values
Where = Path | str  # what messages call the source
UNLABELLED: Final = -1  # in place of a class


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Samples that one node holds, and the ones it keeps aside to test on."""

    x: Floats  # (n, *feature_shape)
    y: Targets  # int64 (n,), 0 to classes - 1, or -1 where a teacher's word is enough; or values, float32 (n, classes)
    classes: int  # one more than the highest label seen, unless more were announced; of values: how many a sample has
    x_test: Floats | None = None  # (t, *feature_shape)
    y_test: Targets | None = None  # (t,) or (t, classes)
    labelled: bool = True  # whether any of y says something
    taught: Floats | None = None  # (n, k): what a teacher gave for x, where there is one

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.x.shape[1:]


class Wanted(NamedTuple):
    """What a task wants to read: labels for this objective, of so many classes, if that was announced."""

    objective: Objective = "cross_entropy"
    classes: int | None = None
    labels: bool = True  # whether there must be one for each sample

    def targets(self, path: Where, name: str, raw: npt.NDArray[np.generic]) -> Targets:
        """Return labels as this objective takes them. Raises UsageError that names the row that is wrong."""
        if is_of_classes(self.objective):
            return labels_of(path, name, raw, self.classes, least=0 if self.labels else UNLABELLED)
        return values_of(path, name, raw, self.objective)


def samples_of(path: Where, name: str, raw: npt.NDArray[np.generic]) -> Floats:
    """Return samples as float32 (n, ...). Raises UsageError that names the row that is wrong."""
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


def labels_of(path: Where, name: str, raw: npt.NDArray[np.generic], classes: int | None, *, least: int = 0) -> Labels:
    """Return labels as int64 (n,), from whole numbers (n,) or one-hot rows (n, k). Raises UsageError."""
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
    if not (good := (y == np.floor(y)) & (y >= least) & (y < top)).all():
        row = int(np.argmin(good))
        raise UsageError(
            f"{path}: `{name}` is {y[row]:g} at row {row} (from 0); labels are whole numbers 0 to {top - 1}"
        )
    return y.astype(np.int64)


def _from_one_hot(path: Where, name: str, raw: npt.NDArray[np.float64]) -> Labels:
    if not (good := ((raw == 0) | (raw == 1)).all(axis=1) & (raw.sum(axis=1) == 1)).all():
        row = int(np.argmin(good))
        raise UsageError(f"{path}: `{name}` is not one-hot at row {row} (from 0): one 1 and else 0 in {raw.shape[1]}")
    y: Labels = np.argmax(raw, axis=1).astype(np.int64)
    return y


def values_of(path: Where, name: str, raw: npt.NDArray[np.generic], objective: Objective) -> Values:
    """Return values as float32 (n, k), from numbers (n,) or (n, k). Raises UsageError."""
    if raw.dtype.kind not in "fiub":
        raise UsageError(f"{path}: `{name}` holds {raw.dtype}, not numbers; convert it to float32")
    if raw.ndim not in (1, 2) or raw.size == 0 or raw.size > WIDTH_MAX * len(raw):
        raise UsageError(f"{path}: `{name}` has shape {raw.shape}; it must be (samples,) or (samples, values)")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity
        values = raw.reshape(len(raw), -1).astype(np.float32)
    good = np.isfinite(values)
    if objective == "binary_cross_entropy":
        good &= (values >= 0) & (values <= 1)
    if not (whole := good.all(axis=1)).all():
        row = int(np.argmin(whole))
        wrong = values[row][~good[row]][0]
        what = "0 (no) to 1 (yes)" if objective == "binary_cross_entropy" else "finite numbers"
        raise UsageError(f"{path}: `{name}` is {wrong:g} at row {row} (from 0); for {objective!r} they are {what}")
    return values


def require_classes(y: Targets) -> None:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise UsageError(
            f"the labels are values, {y.dtype} {y.shape}; the objective 'cross_entropy' takes whole numbers of classes"
        )


def require_same_length(path: Where, x_name: str, x: Floats, y_name: str, y: Targets) -> None:
    if len(x) != len(y):
        raise UsageError(f"{path}: `{x_name}` has {len(x)} rows, `{y_name}` has {len(y)}; each sample needs its label")


def unlabelled(
    x: Floats, classes: int | None = None, x_test: Floats | None = None, y_test: Targets | None = None
) -> Dataset:
    """Return samples (n, ...) without labels, for tasks in which a teacher says what is to be learned."""
    y = np.full(len(x), UNLABELLED, dtype=np.int64)
    return Dataset(x=x, y=y, classes=classes or 0, x_test=x_test, y_test=y_test, labelled=False)


def dataset_of(
    path: Where,
    x: Floats,
    y: Targets,
    wanted: Wanted,
    x_test: Floats | None = None,
    y_test: Targets | None = None,
) -> Dataset:
    if x_test is None and len(y) < 2:
        raise UsageError(f"{path}: holds 1 sample, and a test part must be held out; give 2 or more")
    if not is_of_classes(wanted.objective):
        if y_test is not None and y_test.shape[1:] != y.shape[1:]:
            raise UsageError(
                f"{path}: `y` has {y.shape[1]} values a sample, `y_test` {y_test.shape[1]}; make them equal"
            )
        return Dataset(x=x, y=y, classes=y.shape[1], x_test=x_test, y_test=y_test)
    classes = wanted.classes
    seen = 1 + int(max(y.max(), -1 if y_test is None else y_test.max()))
    if classes is not None and seen > classes:
        raise UsageError(f"{path}: holds label {seen - 1}; labels are whole numbers 0 to {classes - 1}")
    return Dataset(x=x, y=y, classes=max(2, classes or seen), x_test=x_test, y_test=y_test)
