"""Speeds on roads, as sensors see them: what a forecaster is given, and two forecasts that need no learning together.

METR-LA (Li et al. 2018): 207 sensors of Los Angeles' motorways, a value every five minutes, 1,412 of them. A change is
what is forecast, from the last value on: a model that says nothing is persistence. All scales are fixed numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ..learning.data import Dataset
from .telling import require_file

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

STEP_MIN: Final = 5
AHEAD: Final = (3, 6, 12)  # steps: 15, 30 and 60 minutes
PAST: Final = 12  # steps that a forecast is made from: an hour
STEPS_A_DAY: Final = 288
_TRAINING: Final = 0.8  # of the time; the last fifth is the test
_CHANGE_MPH: Final = 10.0  # an ordinary change: one unit of what is forecast
_USUAL_MPH, _SPREAD_MPH = 60.0, 12.0  # of a free motorway


class Roads(NamedTuple):
    """What the sensors saw: speeds (S, T) in mph, where they stand (S, 2), and the step at which the test begins."""

    speed: Floats
    place: npt.NDArray[np.float64]
    cut: int

    @property
    def training(self) -> range:
        """The steps from which all of a forecast's future is before the test."""
        return range(PAST - 1, self.cut - AHEAD[-1])

    @property
    def test(self) -> range:
        return range(self.cut, self.speed.shape[1] - AHEAD[-1])

    def last_day(self) -> "Roads":
        """The same as if the sensors had been put up at the last midnight but for the test's."""
        start = self.cut // STEPS_A_DAY * STEPS_A_DAY
        return Roads(self.speed[:, start:], self.place, self.cut - start)


def read_roads(folder: Path) -> Roads:
    """Read them. Raises UsageError where they are not."""
    path = require_file(
        folder, "traffic_metr_la", "metr_la_5days.npz", source="METR-LA, from github.com/liyaguang/DCRNN"
    )
    try:
        with np.load(path, allow_pickle=False) as file:
            speed, place = file["speed"].astype(np.float32).T, file["latlon"].astype(np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: is not an .npz with `speed` and `latlon`: {error}.") from error
    return Roads(np.ascontiguousarray(speed), place, int(_TRAINING * speed.shape[1]))


def sites(place: npt.NDArray[np.float64], count: int) -> list[Whole]:
    """Divide sensors by where they stand, (S, 2): in halves along the longer side, until there are ``count`` (2^k)."""
    groups = [np.arange(len(place))]
    while len(groups) < count:
        groups = [half for group in groups for half in _halves(group, place)]
    return groups


def _halves(group: Whole, place: npt.NDArray[np.float64]) -> list[Whole]:
    longer = int(np.ptp(place[group], axis=0).argmax())
    return [np.sort(half) for half in np.array_split(group[np.argsort(place[group, longer], kind="stable")], 2)]


def seen(roads: Roads, sensors: Whole, steps: Sequence[int]) -> Floats:
    """What each sensor gives a forecaster at each step: (sensors, steps, 17).

    The past less the present, the present, the time of day, and of the sensor's training part mean and deviation.
    """
    at, speed = np.array(steps), roads.speed[sensors]
    now = speed[:, at, None]
    past = (speed[:, at[:, None] - np.arange(PAST)] - now) / _CHANGE_MPH
    angle = 2 * np.pi * (at % STEPS_A_DAY) / STEPS_A_DAY
    clock = np.broadcast_to(np.stack([np.sin(angle), np.cos(angle)], 1), (len(sensors), len(at), 2))
    known = speed[:, : roads.cut]
    road = np.stack([known.mean(1) - _USUAL_MPH, known.std(1)], 1)[:, None] / _SPREAD_MPH
    road = np.broadcast_to(road, (len(sensors), len(at), 2))
    return np.concatenate([past, (now - _USUAL_MPH) / _SPREAD_MPH, clock, road], 2).astype(np.float32)


def changes(roads: Roads, sensors: Whole, steps: Sequence[int]) -> Floats:
    """What came of it: (sensors, steps, 3), in tens of mph."""
    at, speed = np.array(steps), roads.speed[sensors]
    return (speed[:, at[:, None] + np.array(AHEAD)] - speed[:, at, None]) / np.float32(_CHANGE_MPH)


def dataset(roads: Roads, sensors: Whole) -> Dataset:
    """Return what some sensors saw, as samples (n, 17) and values (n, 3), with the last fifth as the test."""
    training, test = roads.training, roads.test
    return Dataset(
        x=_flat(seen(roads, sensors, training)),
        y=_flat(changes(roads, sensors, training)),
        classes=len(AHEAD),
        x_test=_flat(seen(roads, sensors, test)),
        y_test=_flat(changes(roads, sensors, test)),
    )


def _flat(array: Floats) -> Floats:
    return array.reshape(-1, array.shape[2])


def errors_mph(said: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean absolute error of changes (..., 3), by how far ahead: (3,)."""
    wrong: npt.NDArray[np.float64] = np.abs(said - truth).reshape(-1, len(AHEAD)).mean(0).astype(np.float64)
    return _CHANGE_MPH * wrong


def linear_errors_mph(roads: Roads) -> npt.NDArray[np.float64]:
    """The shared AR(12): for each horizon one linear regression on the last hour, for all sensors together; (3,)."""
    every = np.arange(len(roads.speed))
    (x, y), (x_test, y_test) = (
        (_hours(roads, steps), _flat(changes(roads, every, steps))) for steps in (roads.training, roads.test)
    )
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    return errors_mph(x_test @ weights, y_test)


def _hours(roads: Roads, steps: range) -> npt.NDArray[np.float64]:
    past = roads.speed[:, np.array(steps)[:, None] - np.arange(PAST)].reshape(-1, PAST)
    return np.column_stack([past, np.ones(len(past))]).astype(np.float64)


def forecast_mph(roads: Roads, sensors: Whole, steps: Sequence[int], change: npt.NDArray[Any]) -> Floats:
    """Turn a model's answers for the nearest horizon, (sensors * steps, 3), into speeds: (sensors, steps)."""
    now = roads.speed[sensors][:, np.array(steps)]
    speed: Floats = now + np.float32(_CHANGE_MPH) * change[:, 0].reshape(now.shape).astype(np.float32)
    return speed
