"""`lepton-sim crowd`: a thousand members for an hour, or any other crowd that a TOML file describes."""

import dataclasses
import sys
from pathlib import Path

import click

from ...mesh.errors import UsageError
from .. import report
from ..world import Violation
from . import scenario
from .run import play


@click.command()
@click.argument("scenario_file", metavar="[FILE_OR_NAME]", default="thousand")
@click.option("--seed", type=click.IntRange(min=0), help="Another history of the same crowd.")
def crowd(scenario_file: str, seed: int | None) -> None:
    """Play a mesh of many members: who is here, who lives, and what they say. Prints its figures.

    The machines are the deployed ones; who may be a member is taken for granted. A thousand members for an hour take
    minutes. Exit status: 0 when every invariant held, 1 when one broke, 2 when the crowd cannot be played.
    """
    try:
        read = scenario.load(scenario_file)
        figures = play(read, seed=seed)
    except UsageError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except Violation as error:
        again = f"lepton-sim crowd {scenario_file}" + (f" --seed {seed}" if seed is not None else "")
        click.echo(f"{error}\nPlay it again: {again}", err=True)
        sys.exit(1)
    click.echo(report.table(Path(scenario_file).stem, read.about, dataclasses.asdict(figures)))
