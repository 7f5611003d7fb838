"""The commands of the hunt: `hunt` looks for a seed that breaks a promise, `draw` writes down what a seed brings."""

import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from ..mesh.errors import UsageError
from . import scenario
from .drawing import draw as drawn
from .hunting import Found, Hunt, Hunted
from .writing import as_toml

_DEFAULT: Final = "hunt"
_MINUTE_S: Final = 60.0


class SeedRange(click.ParamType[Iterable[int]]):
    """`A..B`, both included, or `A` alone: from there on."""

    name = "A..B"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Iterable[int]:
        first, dots, last = str(value).partition("..")
        if not first.isdecimal() or (dots and not (last.isdecimal() and int(first) <= int(last))):
            self.fail(f"{value!r} is no range of seeds: write 1..500, or 1 to begin there.", param, ctx)
        return range(int(first), int(last) + 1) if dots else itertools.count(int(first))


@click.command()
@click.argument("scenario_file", metavar="[FILE_OR_NAME]", default=_DEFAULT)
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, help="How long to look.")
@click.option("--seeds", type=SeedRange(), default="1", show_default=True, help="Which seeds to play, in this order.")
@click.option("--jobs", type=click.IntRange(1, 256), help="How many seeds at once.  [default: a seed for each core]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="Where to write the scenario that breaks.  [default: here]",
)
def hunt(scenario_file: str, minutes: float, seeds: Iterable[int], jobs: int | None, out: Path) -> None:
    """Play seed after seed until a promise is broken, find the least that breaks it, and say how to see it again.

    Exit status: 0 when every seed held, 1 when one broke, 2 when the scenario cannot be played, 130 when interrupted.
    """
    try:
        read = scenario.load(scenario_file)
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    hunting = Hunt(read, _tell)
    try:
        hunted = hunting.run(seeds, until=time.monotonic() + minutes * _MINUTE_S, jobs=jobs or os.cpu_count() or 1)
    except KeyboardInterrupt:
        print(f"\nInterrupted after {hunting.progress}.", file=sys.stderr)
        sys.exit(130)
    _report(hunted, out, Path(scenario_file).stem)


def _tell(what: str) -> None:
    """Say how far it got: over and over in one line where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)
    else:
        print(what, file=sys.stderr, flush=True)


def _report(hunted: Hunted, out: Path, name: str) -> None:
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if hunted.found is None:
        hours = hunted.virtual_s / 3600
        print(f"{hunted.seeds} seeds of {name}, {hours:.1f} h of virtual time: every invariant held.")
        return
    found = hunted.found
    file = out / f"{name}-{found.seed}.toml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(as_toml(found.scenario, comment=_comment(found)), "utf-8")
    except OSError as error:
        print(f"The scenario that breaks cannot be written: {error}.", file=sys.stderr)
        print(as_toml(found.scenario))
        sys.exit(2)
    print(f"Seed {found.seed} of {name}: {found.what}")
    size = f"{len(found.scenario.all_faults)} faults, {found.scenario.nodes} devices"
    print(f"The least that breaks it too ({size}, {found.scenario.duration_s:g} s): {found.said}")
    print(f"Replay it with: lepton-sim run {file} --seed {found.seed} --transcript story.txt")
    sys.exit(1)


def _comment(found: Found) -> str:
    return f"Found by `lepton-sim hunt`, seed {found.seed}, and made small:\n{found.said}"


@click.command()
@click.argument("scenario_file", metavar="FILE_OR_NAME")
@click.option("--seed", type=click.IntRange(min=0), help="Whose faults; without it, the scenario's own seed.")
def draw(scenario_file: str, seed: int | None) -> None:
    """Print a scenario with the faults written out that a seed brings, as TOML."""
    try:
        read = scenario.load(scenario_file)
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(as_toml(drawn(read, read.seed if seed is None else seed)), end="")
