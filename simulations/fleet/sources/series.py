"""Time series: from an hour of the past to what comes, each sensor a silo, the last fifth of the time for the test.

Changes are predicted, from the last value on, so a model of zeros is persistence: what is now stays. Speeds are scaled
by fixed numbers that all sensors know beforehand; the series of NAB each by its own training part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .source import Floats, Score, Source, arrays_in, file_in

PAST = 12  # steps: an hour of five minutes each
AHEAD = (3, 6, 12)  # steps: 15, 30 and 60 minutes
TRAINING = 0.8  # of the time
CHANGE_MPH = 10.0  # an ordinary change of speed: one unit of what is predicted
USUAL_MPH, SPREAD_MPH = 60.0, 12.0  # of the speed itself, as a free motorway has it
STEPS_A_DAY = 288
_NAB = ("TravelTime_387", "occupancy_6005", "speed_6005")


def traffic(folder: Path | None) -> Source:
    """Speeds of METR-LA's 207 sensors (Li et al. 2018): 12 past steps and the time of day, to 15, 30 and 60 min ahead.

    Inputs (17,): the past less the present in tens of mph, the present itself, sine and cosine of the time of day, and
    of the sensor's own training part the mean and the deviation, which tell roads apart.
    Labels (3,): the change until then, in tens of mph.
    """
    (found,) = arrays_in(file_in(folder, "traffic_metr_la", "metr_la_5days.npz"), "speed")
    speed = np.asarray(found, np.float32).T  # (sensors, steps)
    if speed.ndim != 2 or speed.shape[1] < STEPS_A_DAY:
        raise UsageError(f"traffic_metr_la: speeds are (steps, sensors) of a day or more, not {speed.T.shape}.")
    steps = speed.shape[1]
    cut = int(TRAINING * steps)
    return _source(
        [_speeds(speed, cut, range(PAST - 1, cut - AHEAD[-1])), _speeds(speed, cut, range(cut, steps - AHEAD[-1]))],
        tuple(f"sensor {index}" for index in range(len(speed))),
        score=mean_errors_mph,
    )


def _speeds(speed: Floats, cut: int, present: range) -> tuple[Floats, Floats]:
    """Samples of every sensor at these steps: (sensors, steps, 17) and (sensors, steps, 3)."""
    at = np.array(present)
    now = speed[:, at, None]
    past = (speed[:, at[:, None] - np.arange(PAST)] - now) / CHANGE_MPH
    angle = 2 * np.pi * (at % STEPS_A_DAY) / STEPS_A_DAY
    clock = np.broadcast_to(np.stack([np.sin(angle), np.cos(angle)], 1), (len(speed), len(at), 2))
    ahead = (speed[:, at[:, None] + np.array(AHEAD)] - now) / CHANGE_MPH
    road = np.stack([speed[:, :cut].mean(1) - USUAL_MPH, speed[:, :cut].std(1)], 1)[:, None] / SPREAD_MPH
    road = np.broadcast_to(road, (len(speed), len(at), 2))
    inputs = np.concatenate([past, (now - USUAL_MPH) / SPREAD_MPH, clock, road], 2)
    return inputs.astype(np.float32), ahead.astype(np.float32)


def mean_errors_mph(outputs: Floats, labels: npt.NDArray[Any], _marks: Floats) -> Mapping[str, float]:
    """Mean absolute error by how far ahead."""
    errors = CHANGE_MPH * np.abs(outputs - labels).mean(0)
    return {f"MAE {5 * steps} min, mph": float(error) for steps, error in zip(AHEAD, errors, strict=True)}


def nab(folder: Path | None) -> Source:
    """Three traffic series of the Numenta benchmark: 12 past values to the next; inputs (13,), labels (1,)."""
    parts: list[list[tuple[Floats, Floats]]] = []
    for name in _NAB:
        path = file_in(folder, "nab", f"{name}.csv")
        try:
            values = np.array([float(line.split(",")[1]) for line in path.read_text("utf-8").splitlines()[1:]])
        except (ValueError, IndexError) as error:
            raise UsageError(f"{path}: is not a table of timestamp and value: {error}.") from error
        cut = int(TRAINING * len(values))
        values = (values - values[:cut].mean()) / values[:cut].std()
        parts.append([_next(values, range(PAST - 1, cut - 1)), _next(values, range(cut, len(values) - 1))])
    short = [min(len(part[which][0]) for part in parts) for which in (0, 1)]
    both = [tuple(np.stack([part[which][k][: short[which]] for part in parts]) for k in (0, 1)) for which in (0, 1)]
    return _source([(x, y) for x, y in both], _NAB, score=_beside_persistence)


def _next(values: npt.NDArray[np.float64], present: range) -> tuple[Floats, Floats]:
    at = np.array(present)
    now = values[at, None]
    inputs = np.concatenate([values[at[:, None] - np.arange(PAST)] - now, now], 1)
    return inputs.astype(np.float32), (values[at + 1, None] - now).astype(np.float32)


def _beside_persistence(outputs: Floats, labels: npt.NDArray[Any], _marks: Floats) -> Mapping[str, float]:
    return {"MAE / persistence": float(np.abs(outputs - labels).mean() / np.abs(labels).mean())}


def _source(parts: list[tuple[Floats, Floats]], names: tuple[str, ...], *, score: Score) -> Source:
    (x, y), (x_test, y_test) = parts
    silos, test_silos = (np.repeat(np.arange(len(part)), part.shape[1]) for part in (x, x_test))
    flat = [part.reshape(-1, part.shape[2]) for part in (x, y, x_test, y_test)]
    return Source(
        inputs=flat[0],
        labels=flat[1],
        test_inputs=flat[2],
        test_labels=flat[3],
        classes=y.shape[2],
        names=names,
        silos=silos,
        test_silos=test_silos,
        score=score,
    )
