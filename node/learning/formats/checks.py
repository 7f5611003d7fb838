"""What every kind of file must turn out to be: finite samples and whole-number labels, or a sentence that says why."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from ...limits import WIDTH_MAX

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Where = Path | str  # what messages call the source


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


def labels_of(path: Where, name: str, raw: npt.NDArray[np.generic], classes: int | None) -> Labels:
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
    if not (good := (y == np.floor(y)) & (y >= 0) & (y < top)).all():
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


def require_same_length(path: Where, x_name: str, x: Floats, y_name: str, y: Labels) -> None:
    if len(x) != len(y):
        raise UsageError(f"{path}: `{x_name}` has {len(x)} rows, `{y_name}` has {len(y)}; each sample needs its label")


def dataset_of(
    path: Where,
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
