"""What answers are worth in the unit of their subject: pure functions of outputs (t, K), labels and marks (t, M)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .source import Floats

Array = npt.NDArray[Any]


def area_under_curve(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> float:
    """How often a positive sample scores above a negative one, (n,) and (n,); 0.5 where either is missing."""
    negative = np.sort(scores[~positive])
    wanted = scores[positive]
    if not len(negative) or not len(wanted):
        return 0.5
    below = np.searchsorted(negative, wanted, "left") + np.searchsorted(negative, wanted, "right")
    return float(below.mean()) / 2 / len(negative)


def of_yes(outputs: Floats, labels: Array, _marks: Floats) -> Mapping[str, float]:
    """Two classes: how well the second is told from the first, whatever the threshold."""
    return {"AUC": area_under_curve(outputs[:, 1] - outputs[:, 0], labels == 1)}


def recall(outputs: Floats, labels: Array, _marks: Floats) -> Mapping[str, float]:
    """How many of each class are found, mean over the classes: a rare activity counts like a frequent one."""
    right = outputs.argmax(1) == labels
    found = [float(right[labels == label].mean()) for label in np.unique(labels)]
    return {"recall": float(np.mean(found))}


def error_of_reconstruction(outputs: Floats, labels: Array, marks: Floats) -> Mapping[str, float]:
    """What cannot be reconstructed is out of the ordinary; the first mark says whether it is."""
    errors = np.square(outputs - labels).mean(1)
    return {"AUC": area_under_curve(errors, marks[:, 0] > 0)}
