"""Incidents on a road: a speed far below what was forecast for it, twice in a row. Pure functions of arrays.

Nobody has labelled such data. So incidents are planted, to know how many are found; and whatever is reported on the
roads as they were counts as a false alarm, though some of it will have been an incident.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .speeds import AHEAD, STEPS_A_DAY, Roads

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

_DEVIATIONS: Final = 4.0  # of what the forecast is usually wrong by at this sensor
_SLOW: Final = 0.5  # of the road's mean speed: a fall from fast to less fast is no incident
_IN_TIME: Final = 6  # steps: found within half an hour counts
_EARLIEST_H, _LATEST_H = 6, 20  # hours of the day in which incidents are planted
_LEFT: Final = 0.2  # of the speed, in an incident
_LONG: Final = (6, 13)  # steps: half an hour to an hour
_LEAD: Final = AHEAD[0]


class Found(NamedTuple):
    """What a detector found of planted incidents, and how often it spoke on roads that were left alone."""

    recall: float
    minutes: float  # until it was found, the median
    false_per_sensor_day: float


def plant(roads: Roads, rng: np.random.Generator) -> tuple[Roads, Whole]:
    """Plant one incident at each sensor in the test part: the speed falls to a crawl. Also the steps it begins at."""
    speed, steps = roads.speed.copy(), np.array(roads.test)
    hours = steps % STEPS_A_DAY / (STEPS_A_DAY / 24)
    may = steps[(hours >= _EARLIEST_H) & (hours < _LATEST_H) & (steps < steps[-1] - _LONG[1] - 2 * _IN_TIME)]
    starts = rng.choice(may, len(speed))
    for sensor, (start, length) in enumerate(zip(starts, rng.integers(*_LONG, len(speed)), strict=True)):
        share = np.array([0.6, *[_LEFT] * length, 0.5, 0.8], np.float32)  # not from one step to the next
        speed[sensor, start : start + len(share)] *= share
    return roads._replace(speed=speed), starts


def limits_mph(forecast: Floats, speed: Floats) -> Floats:
    """How far below its forecast a sensor's speed may be: (S,), from what was wrong before, both (S, n)."""
    limit: Floats = _DEVIATIONS * np.sqrt(np.square(speed - forecast).mean(1))
    return limit


def alarms(forecast: Floats, speed: Floats, limits: Floats, usual: Floats) -> Flags:
    """Whether there is an alarm at each step (S, n): far below the forecast and slow, as it was the step before."""
    far = (forecast - speed > limits[:, None]) & (speed < _SLOW * usual[:, None])
    twice: Flags = far & np.pad(far[:, :-1], ((0, 0), (1, 0)))
    return twice


def judged(planted: Flags, untouched: Flags, starts: Whole, first: int) -> Found:
    """Judge alarms (S, n), whose first column is the step ``first``, on planted and on untouched roads."""
    times = [np.flatnonzero(row) + first - start for row, start in zip(planted, starts, strict=True)]
    late = [found[(found >= 0) & (found <= _IN_TIME)] for found in times]
    delays = [5.0 * (found[0] + 1) for found in late if len(found)]
    days = untouched.size / STEPS_A_DAY
    return Found(len(delays) / len(starts), float(np.median(delays or [np.nan])), float(begun(untouched).sum() / days))


def begun(flags: Flags) -> Flags:
    """Return where an alarm begins."""
    starts: Flags = flags & ~np.pad(flags[:, :-1], ((0, 0), (1, 0)))
    return starts


def later(steps: range) -> npt.NDArray[np.int64]:
    """Return the steps that forecasts made at these are for."""
    return np.array(steps) + _LEAD
