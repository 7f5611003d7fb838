"""Measurements of patients and rooms: a row each, columns of very different scales.

Every column is standardised by the mean and deviation of all training samples. No node of a real mesh has these alone;
they are sums, which it would add up before it begins to learn.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .scores import of_yes
from .source import Floats, Source, Whole, file_in, held_out, standardised

_Table = npt.NDArray[np.float64]
_COUNTS = slice(2, 16)  # lesions, at several confidences: skewed, so their logarithms are taken
_MANY_LESIONS, _DISC = 2, 17
_HOSPITALS = ("town, old camera", "clinic, old camera", "town, new camera", "clinic, new camera")
# An optic disc that seems small was taken with a wide field: two fifths of the pictures. A clinic gets those patients
# whom others refer to it, the two fifths with most lesions.
_OLD_CAMERAS, _IN_TOWN = 0.4, 0.6
_TEST = 0.4  # of the hospitals' patients: with a fifth, the smallest would be tested on 36


def breast_cancer(_folder: Path | None) -> Source:
    """scikit-learn's 569 tumours, 30 features, benign or malignant; a fifth is held out."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _of_two(x, y.astype(np.int64))


def diabetes(_folder: Path | None) -> Source:
    """scikit-learn's 442 diabetics, 10 features, how the illness went on in a year: a value, in hundreds of points."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    test = held_out(len(y))
    x, y = standardised(x, ~test), ((y - 150) / 100).astype(np.float32)[:, None]  # 25 to 346 points
    return Source(inputs=x[~test], labels=y[~test], test_inputs=x[test], test_labels=y[test], classes=1)


def retinopathy(folder: Path | None) -> Source:
    """1,151 patients' eyes, 19 features, diabetic retinopathy or not (Antal & Hajdu 2014); a fifth is held out."""
    table = _eyes(folder)
    return _of_two(table[:, :-1], table[:, -1].astype(np.int64))


def hospitals(folder: Path | None) -> Source:
    """The patients of `retinopathy` in four hospitals, which differ in size, in camera, and in how ill people are.

    The data do not say who was examined where. So **this division is ours**: by the apparent size of the optic disc,
    which a camera's field of view determines, and by the number of lesions found, as a clinic sees more serious cases.
    """
    table = _eyes(folder)
    new, clinic = (
        table[:, column] > np.quantile(table[:, column], share)
        for column, share in ((_DISC, _OLD_CAMERAS), (_MANY_LESIONS, _IN_TOWN))
    )
    silos = (2 * new + clinic).astype(np.int64)
    return _of_two(table[:, :-1], table[:, -1].astype(np.int64), silos, _HOSPITALS, _TEST)


def _eyes(folder: Path | None) -> _Table:
    path = file_in(folder, "diabetic_retinopathy", "messidor_features.arff")
    _, _, rows = path.read_text("utf-8").partition("@data")
    try:
        table = np.array([[float(cell) for cell in row.split(",")] for row in rows.split()])
    except ValueError as error:
        raise UsageError(f"{path}: is not a table of numbers: {error}.") from error
    table[:, _COUNTS] = np.log1p(table[:, _COUNTS])
    return table


def _of_two(x: _Table, y: Whole, silos: Whole | None = None, names: tuple[str, ...] = (), share: float = 0.2) -> Source:
    test = held_out(len(y), share)
    inputs: Floats = standardised(x, ~test)
    return Source(
        inputs=inputs[~test],
        labels=y[~test],
        test_inputs=inputs[test],
        test_labels=y[test],
        classes=2,
        names=names,
        silos=None if silos is None else silos[~test],
        test_silos=None if silos is None else silos[test],
        score=of_yes,
    )
