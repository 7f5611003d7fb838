"""What people do at home, and whether anybody is in a room: from what cheap sensors say, minute by minute.

Both data sets are of one home and one room over many days. **A day stands for a home** of its own, which is the least
that homes differ by. Inputs are flags, shares of time and the clock, of known range; those of the room's instruments
are standardised by all training samples, as in `tables.py`.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....mesh.errors import UsageError
from .scores import of_yes, recall
from .source import Floats, Source, file_in, standardised

MINUTES_A_DAY = 1440
BACK_MIN = (5, 15, 60)  # how far back shares of time go
_TRAINING_DAYS = 10  # of 14; the last four are everybody's test
_Row = tuple[datetime, datetime, str]


def adl(folder: Path | None) -> Source:
    """Nine activities from twelve sensors (Ordonez et al. 2013): each minute that has one, ten days of homes.

    Inputs (50,): which sensors are on, for what share of the last 5, 15 and 60 minutes each was, the time of day.
    """
    lines = [_rows(file_in(folder, "ordonez_adl", f"OrdonezA_{kind}.txt")) for kind in ("ADLs", "Sensors")]
    first = datetime.combine(lines[0][0][0].date(), datetime.min.time())
    minutes = MINUTES_A_DAY * (1 + (max(end for _, end, _ in lines[0]) - first) // timedelta(days=1))
    on, activities = (_minutes(rows, first, minutes) for rows in reversed(lines))
    at = np.flatnonzero(activities.any(1))
    x, y, day = _felt(on)[at], activities[at].argmax(1), at // MINUTES_A_DAY
    test = day >= _TRAINING_DAYS
    return Source(
        inputs=x[~test],
        labels=y[~test],
        test_inputs=x[test],
        test_labels=y[test],
        classes=activities.shape[1],
        names=tuple(f"home {index}" for index in range(_TRAINING_DAYS)),
        silos=day[~test],
        score=recall,
    )


def _rows(path: Path) -> list[_Row]:
    """Start, end and what: of an activity its name, of a sensor where and in which room."""
    try:
        cells = [re.split(r"\t+", line.strip()) for line in path.read_text("utf-8").splitlines()[2:]]
        return [
            (datetime.fromisoformat(start.strip()), datetime.fromisoformat(end.strip()), " ".join((what, *rest[-1:])))
            for start, end, what, *rest in cells
        ]
    except ValueError as error:
        raise UsageError(f"{path}: is not a table of start, end and what: {error}.") from error


def _minutes(rows: list[_Row], first: datetime, minutes: int) -> npt.NDArray[np.bool_]:
    """Return what was going on in each minute, (minutes, kinds)."""
    kinds = sorted({what for _, _, what in rows})
    going = np.zeros((minutes, len(kinds)), np.bool_)
    for start, end, what in rows:
        begin, last = ((moment - first) // timedelta(minutes=1) for moment in (start, end))
        going[begin : last + 1, kinds.index(what)] = True
    return going


def _felt(on: npt.NDArray[np.bool_]) -> Floats:
    total = np.concatenate([np.zeros((max(BACK_MIN), on.shape[1])), np.cumsum(on, 0)])
    ends = total[max(BACK_MIN) :]
    shares = [(ends - total[max(BACK_MIN) - back : -back]) / back for back in BACK_MIN]
    angle = 2 * np.pi * np.arange(len(on)) / MINUTES_A_DAY
    return np.column_stack([on, *shares, np.sin(angle), np.cos(angle)]).astype(np.float32)


def occupancy(folder: Path | None) -> Source:
    """Whether an office is occupied (Candanedo & Feldheim 2016), (4,): temperature, humidity, CO2, humidity ratio.

    Light is left out: people switch it on, so with it nothing is left to learn. Seven days of the training file are
    seven rooms; the test is the other file, two days before.
    """
    days, tables = zip(*(_period(file_in(folder, "occupancy", name)) for name in _PERIODS), strict=True)
    counts = [len(table) for table in tables]
    training = np.arange(sum(counts)) < counts[0]
    both = np.concatenate(tables)
    x, y = standardised(both[:, :-1], training), both[:, -1].astype(np.int64)
    names, silos = np.unique(days[0], return_inverse=True)
    return Source(
        inputs=x[training],
        labels=y[training],
        test_inputs=x[~training],
        test_labels=y[~training],
        classes=2,
        names=tuple(map(str, names)),
        silos=silos.astype(np.int64),
        score=of_yes,
    )


_PERIODS = ("datatraining.txt", "datatest.txt")
_COLUMNS = (2, 3, 5, 6, 7)  # all but the number, the date and the light


def _period(path: Path) -> tuple[list[str], npt.NDArray[np.float64]]:
    try:
        cells = [line.split(",") for line in path.read_text("utf-8").splitlines()[1:]]
        table = np.array([[float(row[column]) for column in _COLUMNS] for row in cells])
    except (ValueError, IndexError) as error:
        raise UsageError(f"{path}: is not a table of the room's instruments: {error}.") from error
    return [row[1].strip('"').partition(" ")[0] for row in cells], table
