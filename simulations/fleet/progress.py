"""How far a run is: a bar on a terminal, and a few lines where nobody watches, on standard error beside the results."""

import sys
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from .outcome import Row
from .report.table import number

_LINES: Final = 10  # a run, where there is no terminal


class Watch(AbstractContextManager["Watch"], Protocol):
    """Hears how far runs are."""

    def begin(self, name: str, total: int) -> None:
        """Begin with the next run."""
        ...

    def note(self, done: int, row: Row | None = None) -> None:
        """Hear that so many rounds (or cells) are over, and how good the fleet is where it was looked at."""
        ...


def watch() -> Watch:
    """Return what fits standard error."""
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Lines()


class Bar:
    """One line a run, that moves."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(), Remaining(),
        )  # fmt: skip
        self._bars = Progress(*columns, console=console)
        self._task = TaskID(0)

    def begin(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(escape(name), total=total, said="")

    def note(self, done: int, row: Row | None = None) -> None:
        if row is None:
            self._bars.update(self._task, completed=done)
        else:
            self._bars.update(self._task, completed=done, said=_said(row))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


class Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._name, self._total, self._next, self._row = "", 1, 1, ""

    def begin(self, name: str, total: int) -> None:
        self._name, self._total, self._next, self._row = name, total, 1, ""

    def note(self, done: int, row: Row | None = None) -> None:
        if row is not None:
            self._row = f": {_said(row)}"
        if done * _LINES >= self._next * self._total or done == self._total:
            self._next = done * _LINES // self._total + 1
            print(f"{self._name}: {done:,} of {self._total:,}{self._row}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _said(row: Row) -> str:
    return f"mean {number(row.mean)}, worst {number(row.worst)}, best {number(row.best)}"
