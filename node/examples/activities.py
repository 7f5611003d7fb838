"""What somebody does at home, from twelve cheap sensors, minute by minute: Ordonez and others 2013, home A.

One person's home over fourteen days. **A day, or two, stand for the home of one device**: that is the least by which
homes differ. The last four days are everybody's test.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...mesh.errors import UsageError
from ..learning.data import Dataset
from .telling import require_file

DAY_MIN: Final = 1440
TRAINING_DAYS: Final = 10
_BACK_MIN: Final = (5, 15, 60)  # how far back the share of time goes that a sensor was on

Whole = npt.NDArray[np.int64]
_Row = tuple[datetime, datetime, str]


class Home(NamedTuple):
    """Minutes that have an activity: what the sensors say (n, 50), the activity (n,), which minute it is."""

    x: npt.NDArray[np.float32]
    y: Whole
    minute: Whole
    names: tuple[str, ...]

    @property
    def is_test(self) -> npt.NDArray[np.bool_]:
        return self.minute >= TRAINING_DAYS * DAY_MIN


def read_home(folder: Path) -> Home:
    """Read it. Raises UsageError where it is not."""
    said, felt = (
        _rows(require_file(folder, "ordonez_adl", f"OrdonezA_{kind}.txt", source="`Activities of Daily Living`, UCI"))
        for kind in ("ADLs", "Sensors")
    )
    first = datetime.combine(said[0][0].date(), datetime.min.time())
    minutes = DAY_MIN * (1 + (max(end for _, end, _ in said) - first) // timedelta(days=1))
    names, activities = _going_on(said, first, minutes)
    at = np.flatnonzero(activities.any(1))
    return Home(_inputs(_going_on(felt, first, minutes)[1])[at], activities[at].argmax(1), at, names)


def shared_out(home: Home, devices: int) -> list[Dataset]:
    """Give each device its days, (n, 50) with activities (n,); all are tested on the same four days."""
    day, test = home.minute // DAY_MIN, home.is_test
    return [_of(home, ~test & (day * devices // TRAINING_DAYS == index), test) for index in range(devices)]


def whole(home: Home) -> Dataset:
    """Return all training days in one place."""
    return _of(home, ~home.is_test, home.is_test)


def _of(home: Home, which: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]) -> Dataset:
    return Dataset(x=home.x[which], y=home.y[which], classes=len(home.names), x_test=home.x[test], y_test=home.y[test])


def _rows(path: Path) -> list[_Row]:
    """Start, end and what: of an activity its name, of a sensor where it is, and in which room."""
    try:
        cells = [re.split(r"\t+", line.strip()) for line in path.read_text("utf-8").splitlines()[2:]]
        return [
            (datetime.fromisoformat(start.strip()), datetime.fromisoformat(end.strip()), " ".join((what, *rest[-1:])))
            for start, end, what, *rest in cells
        ]
    except ValueError as error:
        raise UsageError(f"{path}: is not a table of start, end and what: {error}.") from error


def _going_on(rows: list[_Row], first: datetime, minutes: int) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
    """Return what kinds there are, and what was going on in each minute: (minutes, kinds)."""
    kinds = sorted({what for _, _, what in rows})
    going = np.zeros((minutes, len(kinds)), np.bool_)
    for start, end, what in rows:
        begin, last = ((moment - first) // timedelta(minutes=1) for moment in (start, end))
        going[begin : last + 1, kinds.index(what)] = True
    return tuple(kinds), going


def _inputs(on: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Which sensors are on, for what share of the last minutes each was, and the time of day."""
    total = np.concatenate([np.zeros((max(_BACK_MIN), on.shape[1])), np.cumsum(on, 0)])
    ends = total[max(_BACK_MIN) :]
    shares = [(ends - total[max(_BACK_MIN) - back : -back]) / back for back in _BACK_MIN]
    angle = 2 * np.pi * np.arange(len(on)) / DAY_MIN
    return np.column_stack([on, *shares, np.sin(angle), np.cos(angle)]).astype(np.float32)
