"""Cameras over a road that learn what an empty road looks like; whatever they cannot reconstruct is an alarm.

**Made of one clip**: eight views are cut from it, side by side and every other one mirrored, as if eight cameras hung
there. Each was on watch in one of the clip's four stretches without a car, and trains on that alone; it is tested on
all other frames. The trap is the exposure, which follows the cars and lags behind them: to a camera that has only seen
the road in even light a dark road is out of the ordinary, and only two of the eight were on watch when it was dark.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .scores import error_of_reconstruction
from .source import Floats, Source, arrays_in, file_in

VIEWS = 8
_WIDTH, _SHIFT = 33, 5  # of a view, and from one to the next but one, in pixels of the halved frame (27, 48)
_MIDDLE, _CONTRAST = 0.45, 5.0  # of grey in [0, 1]: inputs are about -2 to 3


def video(folder: Path | None) -> Source:
    """Frames as pixels (891,), which are their own labels; marks (1,): whether a car is there."""
    path = file_in(folder, "video", "car_96x54.npz")
    found, present = arrays_in(path, "frames", "present")
    if found.shape[1:] != (54, 96) or len(present) != len(found):
        raise UsageError(f"{path}: frames are (n, 54, 96), each with `present`; not {found.shape}.")
    frames = np.asarray(found, np.float32).reshape(-1, 27, 2, 48, 2).mean((2, 4)) / 255
    car = np.asarray(present) > 0
    views = [_view(frames, index) for index in range(VIEWS)]
    watches = [_watch(car, index) for index in range(VIEWS)]
    x, x_test = (np.concatenate([view[mask] for view, mask in zip(views, masks, strict=True)]) for masks in (
        watches, [~watch for watch in watches]
    ))  # fmt: skip
    silos, test_silos = (
        np.repeat(np.arange(VIEWS), [np.count_nonzero(watch == kind) for watch in watches]) for kind in (True, False)
    )
    return Source(
        inputs=x,
        labels=x,
        test_inputs=x_test,
        test_labels=x_test,
        classes=x.shape[1],
        names=tuple(f"camera {index}" for index in range(VIEWS)),
        silos=silos,
        test_silos=test_silos,
        marks=np.concatenate([car[~watch] for watch in watches]).astype(np.float32)[:, None],
        score=error_of_reconstruction,
    )


def _view(frames: Floats, index: int) -> Floats:
    left = index // 2 * _SHIFT
    view = frames[:, :, left : left + _WIDTH]
    view = view[:, :, ::-1] if index % 2 else view
    return scaled(view.reshape(len(view), -1))


def scaled(pixels: npt.NDArray[np.floating]) -> Floats:
    """Return grey in [0, 1] as the model takes it."""
    inputs: Floats = ((pixels - _MIDDLE) * _CONTRAST).astype(np.float32)
    return inputs


def pixels_of(inputs: Floats) -> Floats:
    """Return the grey again."""
    return inputs / np.float32(_CONTRAST) + np.float32(_MIDDLE)


def _watch(car: npt.NDArray[np.bool_], index: int) -> npt.NDArray[np.bool_]:
    """Return the frames of the stretch without a car in which this one was on watch."""
    changes = np.flatnonzero(np.diff(car)) + 1
    edges = np.concatenate([[0], changes, [len(car)]])
    empty = [(start, end) for start, end in pairwise(edges) if not car[start]]
    start, end = empty[(index // 2 + index) % len(empty)]  # a view and its mirror image watch at different times
    frames = np.arange(len(car))
    inside: npt.NDArray[np.bool_] = (frames >= start) & (frames < end)
    return inside
