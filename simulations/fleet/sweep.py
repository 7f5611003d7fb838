"""A sweep: seeds x settings, on a pool of processes or a cluster, each finished cell on disk at once.

    swept = sweep(Scenario(about="a try", nodes=64, rounds=20), over={"seed": range(5), "train.momentum": [0.0, 0.9]})
    print(swept.table())

A cell is played by the same function wherever that is, on one thread, so all engines give the same bits.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ...mesh.errors import LeptonError, UsageError
from .cells import Cell, Engine, Played, grid
from .outcome import Outcome, Row
from .report import archive, table
from .scenario import Scenario

EngineName = Literal["pool", "dask"]
Done = Callable[[Cell, str], None]  # a cell is done, and why it failed if it did

_FLOATS: Final = tuple(one.name for one in msgspec.structs.fields(Row) if one.type is float)


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of a sweep."""

    cells: tuple[Cell, ...]
    outcomes: Mapping[Cell, Outcome] = field(default_factory=dict)
    failed: Mapping[Cell, str] = field(default_factory=dict)

    def by_setting(self) -> dict[str, list[Outcome]]:
        """Return the outcomes of each setting, one a seed."""
        found: dict[str, list[Outcome]] = {cell.setting: [] for cell in self.cells}
        for cell in self.cells:
            if cell in self.outcomes:
                found[cell.setting].append(self.outcomes[cell])
        return found

    def means(self) -> dict[str, Outcome]:
        """Return one outcome a setting: means over its seeds; worst and best are those seeds' means."""
        return {setting: mean_of(runs, setting) for setting, runs in self.by_setting().items() if runs}

    def table(self) -> str:
        """Return mean ± standard deviation over seeds, a line for each setting."""
        head = ("setting", "seeds", "mean", "worst node", "best node", "loss", "MB a node", "simulated")
        rows = [self._line(setting, runs) for setting, runs in self.by_setting().items()]
        lines = [table.aligned([head, *rows])]
        if self.failed:
            lines += ["", *(f"{cell.name} failed: {why}" for cell, why in self.failed.items())]
        return "\n".join(lines)

    def csv(self) -> str:
        """Return the last row of every cell."""
        return archive.rounds_csv(
            {
                cell.name: msgspec.structs.replace(self.outcomes[cell], rows=self.outcomes[cell].rows[-1:])
                for cell in self.cells
                if cell in self.outcomes
            }
        )

    def _line(self, setting: str, runs: list[Outcome]) -> tuple[str, ...]:
        last = [run.rows[-1] for run in runs if run.rows]
        if not last:
            return (setting, "0", *("none",) * 6)
        columns = ([getattr(row, key) for row in last] for key in ("mean", "worst", "best", "loss"))
        return (
            setting,
            str(len(last)),
            *map(spread, columns),
            table.megabytes(statistics.fmean(row.megabytes_sent for row in last)),
            table.duration(statistics.fmean(row.seconds for row in last)),
        )


def sweep(
    scenario: Scenario,
    over: Mapping[str, Iterable[Any]],
    *,
    engine: EngineName = "pool",
    address: str | None = None,
    jobs: int | None = None,
    out: Path | None = None,
    data: Path | None = None,
    done: Done | None = None,
) -> Swept:
    """Play every combination of ``over``, which has values by dotted setting, as in `{"averaging.topology": ["ring"]}`.

    With ``out``, finished cells are kept there, and a sweep that is begun again plays only what is missing. ``data`` is
    the folder of data that Lepton does not carry; ``address`` is of a Dask scheduler. A cell that fails does not end
    the sweep: see `Swept.failed`.

    Raises UsageError for settings that there are not, LinkError when no scheduler answers.
    """
    cells = tuple(grid(scenario, over))
    outcomes = {cell: kept for cell in cells if (kept := _kept(cell, out)) is not None}
    failed: dict[Cell, str] = {}
    for cell in outcomes:
        _tell(done, cell, "")
    left = [cell for cell in cells if cell not in outcomes]
    if left:
        with closing(engine_of(engine, address, jobs).play(left, data)) as results:
            for played in results:
                _take(played, out, outcomes, failed)
                _tell(done, played.cell, played.failed)
    return Swept(cells, outcomes, failed)


def engine_of(name: EngineName, address: str | None, jobs: int | None) -> Engine:
    """Return where cells are played. Raises UsageError."""
    from .cluster import Cluster
    from .pool import Pool

    if name == "dask":
        return Cluster(address, jobs)
    if address is not None:
        raise UsageError("An address is of a Dask scheduler: give it with the engine `dask`.")
    return Pool(jobs)


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation of a sample, or the one value that there is."""
    mean = table.number(statistics.fmean(values))
    return f"{mean} ± {table.number(statistics.stdev(values))}" if len(values) > 1 else mean


def mean_of(runs: list[Outcome], name: str) -> Outcome:
    """Return the mean over runs that differ in their seed alone, row by row; worst and best are the runs' means."""
    rows = [_mean_row(rows) for rows in zip(*(run.rows for run in runs), strict=False)]
    final = tuple(value for run in runs for value in run.final)
    return msgspec.structs.replace(runs[0], name=name, rows=tuple(rows), final=final, names=())


def _mean_row(rows: tuple[Row, ...]) -> Row:
    means = {key: statistics.fmean(getattr(row, key) for row in rows) for key in _FLOATS}
    extra = {key: statistics.fmean(row.extra.get(key, float("nan")) for row in rows) for key in rows[0].extra}
    here = round(statistics.fmean(row.here for row in rows))
    ends = {"worst": min(row.mean for row in rows), "best": max(row.mean for row in rows)}
    return Row(**(means | ends), round=rows[0].round, here=here, extra=extra)


def _kept(cell: Cell, out: Path | None) -> Outcome | None:
    """Return what is on disk of a cell; what cannot be read is played again."""
    if out is None or not (file := place_of(cell, out)).is_file():
        return None
    try:
        outcome = archive.load(file)
    except LeptonError:
        return None
    return outcome if outcome.scenario == cell.scenario else None


def _take(played: Played, out: Path | None, outcomes: dict[Cell, Outcome], failed: dict[Cell, str]) -> None:
    if played.failed:
        failed[played.cell] = played.failed
        return
    outcomes[played.cell] = archive.parse(played.outcome, played.cell.name)
    if out is not None:
        archive.write(place_of(played.cell, out), played.outcome)


def _tell(done: Done | None, cell: Cell, why: str) -> None:
    if done is not None:
        done(cell, why)


def place_of(cell: Cell, out: Path) -> Path:
    """Return where a cell is kept: a folder that people can read, and that no other scenario's cell has."""
    return out / "cells" / f"{re.sub(r'[^A-Za-z0-9.=_-]+', '-', cell.name)[:80]}-{cell.key}" / archive.NAME
