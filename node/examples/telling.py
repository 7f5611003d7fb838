"""How an example is told: sentences, tables, and claims that hold or do not, which is what the command returns."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ...mesh.errors import LeptonError, UsageError, single

_FOLDER: Final = Path("../shared/data")  # where they lie beside a checkout
_WIDTH: Final = 110

Row = tuple[str, ...]


class Tale:
    """What one run of an example says, and whether it kept its word."""

    def __init__(self, console: Console | None = None) -> None:
        self.claims: dict[str, bool] = {}
        self.figures: dict[str, float] = {}
        self._console = console or Console(width=_WIDTH, highlight=False)

    def step(self, title: str) -> None:
        """Begin a part of the story."""
        self._console.print(f"\n[bold]{title}[/]")

    def say(self, text: str) -> None:
        self._console.print(Padding(text, (0, 0, 0, 2)))

    def table(self, title: str, columns: Row, rows: list[Row], *, marked: str = "") -> None:
        """Print a table; the row that begins with ``marked`` stands out."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == marked else "")
        self._console.print()
        self._console.print(table)

    def claim(self, sentence: str, *, holds: bool) -> None:
        """Say what the example is there to show, and whether this run showed it."""
        self.claims[sentence] = holds
        self._console.print(f"{'[green]held[/]  ' if holds else '[red]FAILED[/]'} {sentence}")

    @property
    def held(self) -> bool:
        return bool(self.claims) and all(self.claims.values())


# Takes the folder of real data, a folder for the nodes, whether to be quick, and whom to tell.
Example = Callable[[Path, Path, bool, Tale], Awaitable[None]]


def command(example: Example) -> click.Command:
    """Make an example a command: returns 0 when all that it claims held, 1 when something did not or went wrong."""

    @click.command(help=(sys.modules[example.__module__].__doc__ or "").partition("\n")[0])
    @click.option("--data", type=click.Path(path_type=Path), default=_FOLDER, show_default=True,
                  help="The folder of real data.")  # fmt: skip
    @click.option("--quick", is_flag=True, help="Shortened, as the tests play it.")
    def main(data: Path, quick: bool) -> None:  # noqa: FBT001 - click passes flags by name
        sys.exit(0 if play(example, data, quick=quick).held else 1)

    return main


def play(example: Example, data: Path, *, quick: bool, tale: Tale | None = None) -> Tale:
    """Run an example in a temporary folder that is gone afterwards, and return what it told."""
    tale = tale or Tale()
    folder = Path(tempfile.mkdtemp(prefix="lepton-example-"))
    try:
        with _quiet():
            trio.run(example, data, folder, quick, tale)
    except (LeptonError, BaseExceptionGroup) as error:
        cause = single(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(cause, LeptonError):
            raise
        click.echo(f"This example could not go on: {cause}", err=True)
        tale.claims["it ran to its end"] = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tale


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the nodes' warnings, of a round that was late or of a device that is gone, out of the story."""
    ours = logging.getLogger("lepton")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)


def require_file(folder: Path, *parts: str, source: str) -> Path:
    """Return a file of real data. Raises UsageError that says what it is and where it can be had."""
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise UsageError(f"there is no {path}. It is {source}. Name the folder that holds {'/'.join(parts)} by --data.")
    return path


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
