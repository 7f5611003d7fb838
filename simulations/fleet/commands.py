"""The fleet's commands: `lepton-sim compare` lays saved runs side by side."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from ...mesh.errors import UsageError


@click.command()
@click.argument("runs", metavar="FOLDER_OR_FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Write report.html, rounds.csv, PNGs here."
)
@click.option("--title", default="Comparison", show_default=True, help="What stands above the report.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON a run, for other programs.")
def compare(runs: tuple[Path, ...], out: Path | None, title: str, *, as_json: bool) -> None:
    """Lay runs side by side: folders that `learn --out` wrote, or their outcome.json files.

    Exit status: 0, or 2 when a file cannot be read or written.
    """
    from .report import archive, folder, table

    try:
        outcomes = archive.gather(runs)
        print(archive.lines_json(outcomes) if as_json else table.text(outcomes))
        if not as_json and (differing := table.differing(outcomes)):
            print("\nThey differ in " + ", ".join(differing) + ".")
        if out is not None:
            print(*folder.show(outcomes, title, out), sep="\n", file=sys.stderr if as_json else sys.stdout)
    except UsageError as error:
        _stop(str(error), 2)


def _stop(why: str, status: int) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(status)
