"""The simulator's command line: `lepton-sim run NAME` plays a scenario, `hunt` looks for faults."""

import dataclasses
import sys
from pathlib import Path
from typing import NoReturn

import click

from ..mesh.errors import UsageError
from . import report, scenario
from .crowd.command import crowd
from .fleet import commands as fleet
from .hunt_commands import draw, hunt
from .run import Broken, simulate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Play scenarios of a mesh, with every fault in them, on virtual time: the same seed, the same history."""


main.add_command(fleet.learn)
main.add_command(fleet.compare)
main.add_command(fleet.sweep)
main.add_command(hunt)
main.add_command(draw)


@main.command()
@click.argument("scenario_file", metavar="FILE_OR_NAME")
@click.option("--seed", type=click.IntRange(min=0), help="Another history of the same scenario.")
@click.option("--transcript", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole story to a file.")
def run(scenario_file: str, seed: int | None, transcript: Path | None) -> None:
    """Play a scenario: a TOML file, or one that ships with Lepton, by its name. Prints its figures.

    Exit status: 0 when every invariant held, 1 when one broke, 2 when the scenario cannot be played.
    """
    try:
        read = scenario.load(scenario_file)
        outcome = simulate(read, seed=seed, name=scenario_file)
    except UsageError as error:
        _stop(str(error), 2)
    except Broken as error:
        _write(transcript, error.transcript)
        _stop(str(error), 1)
    else:
        _write(transcript, outcome.transcript)
        print(report.table(Path(scenario_file).stem, read.about, dataclasses.asdict(outcome.figures)))


@main.command(name="list")
def list_() -> None:
    """List the scenarios that ship with Lepton: those of meshes, and those of fleets that learn."""
    from .fleet import reading  # loads torch

    for name in scenario.shipped():
        print(f"{name:<14}  {scenario.load(name).about}")
    print("\nFor `lepton-sim learn`:\n")
    for name in reading.shipped():
        print(f"{name:<14}  {next(iter(reading.load(name).values())).about}")


main.add_command(crowd)


def _write(file: Path | None, lines: tuple[str, ...]) -> None:
    if file is not None:
        try:
            file.write_text(report.transcript(lines), "utf-8")
        except OSError as error:
            _stop(f"The transcript cannot be written: {error}.", 2)


def _stop(why: str, status: int) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main(prog_name="lepton-sim")
