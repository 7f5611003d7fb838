"""A sweep as its command shows it: a bar over the cells, and a report of means over seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .cells import Cell, grid
from .progress import Watch
from .report import archive, folder
from .scenario import Scenario
from .sweep import EngineName, Swept, sweep

CELLS_CSV: Final = "cells.csv"
_CAPTION: Final = (
    "All are means over seeds; worst and best, and the bands, are the means of the worst seed and of the best."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where cells are played and kept; as `sweep` has them."""

    engine: EngineName
    address: str | None
    jobs: int | None
    data: Path | None
    out: Path | None


def watched(scenario: Scenario, over: Mapping[str, Iterable[Any]], where: Where, watch: Watch) -> Swept:
    """Play a sweep, and tell ``watch`` of every cell. Raises as `sweep` does."""
    over = {key: list(values) for key, values in over.items()}
    watch.begin("runs", len(grid(scenario, over)))
    finished = 0

    def done(_cell: Cell, _why: str) -> None:
        nonlocal finished
        finished += 1
        watch.note(finished)

    return sweep(
        scenario, over, engine=where.engine, address=where.address, jobs=where.jobs, out=where.out, data=where.data,
        done=done,
    )  # fmt: skip


def show(swept: Swept, title: str, out: Path) -> list[str]:
    """Write the report of the settings' means, and the last row of every run; return lines that say where."""
    archive.write(out / CELLS_CSV, swept.csv())
    return ["", *folder.show(swept.means(), title, out, caption=_CAPTION), f"Every run's end: {out / CELLS_CSV}"]
