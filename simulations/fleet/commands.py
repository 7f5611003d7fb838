"""The fleet's commands: `lepton-sim learn` plays a scenario, `sweep` many of them, `compare` lays runs side by side."""

import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import click

from ...mesh.errors import LeptonError, UsageError

_FAILED: Final = 1  # exit statuses
_MISUSED: Final = 2
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

_Folder: Final = click.Path(file_okay=False, path_type=Path)
_DATA: Final = click.option("--data", type=_Folder, help="Where data lie that Lepton does not carry.")
_ADDRESS: Final = click.option("--address", help="Of a Dask scheduler that runs, as in tcp://10.0.0.5:8786.")
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print a line of JSON a run, for other programs.")


@click.command()
@click.argument("scenario", metavar="FILE_OR_NAME")
@click.option("--seed", type=click.IntRange(min=0), help="Other luck: other parts of the data, other partners.")
@click.option("--rounds", type=click.IntRange(min=1), help="Play so many rounds, whatever the scenario says.")
@click.option("--nodes", type=click.IntRange(min=1), help="Of so many nodes, whatever the scenario says.")
@_DATA
@click.option("--out", type=_Folder, help="Write outcome.json, report.html, rounds.csv and PNGs here.")
@click.option("--resume", is_flag=True, help="Go on with what --out holds of this run.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--engine", type=click.Choice(["here", "dask"]), default="here", show_default=True, help="Who trains.")
@_ADDRESS
@click.option("--jobs", type=click.IntRange(min=1), help="Dask workers that are started here, without --address.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of torch, in this process.")
@_JSON
def learn(
    scenario: str, seed: int | None, rounds: int | None, nodes: int | None, data: Path | None, out: Path | None,
    device: str, engine: str, address: str | None, jobs: int | None, threads: int, *, resume: bool, as_json: bool,
) -> None:  # fmt: skip
    """Let a fleet learn: a TOML file, or a scenario that ships with Lepton, by its name. Prints how well it did.

    Exit status: 0, 1 when the training failed, 2 when the scenario cannot be played, 130 when it was interrupted.
    """
    from . import cluster, playing, progress, reading, references

    with _errors():
        if resume and out is None:
            raise UsageError("What is to be resumed? Name the folder of the run with --out.")
        changes = {"seed": seed, "rounds": rounds, "nodes": nodes}
        variants = reading.load(scenario, {key: value for key, value in changes.items() if value is not None})
        if engine == "here" and (address or jobs):
            raise UsageError("Workers are Dask's: say --engine dask.")
        workers = cluster.Cluster(address, jobs) if engine == "dask" else None
        player = playing.Player(
            watch=progress.watch(), data=data, out=out, resume=resume, device=device, threads=threads, cluster=workers
        )  # fmt: skip
        try:
            outcomes = player.play(variants)
        except playing.Interrupted:
            _stop(_how_to_go_on(out), _INTERRUPTED)
        first = next(iter(variants.values()))
        _show(outcomes, Path(scenario).stem, first.about, out, as_json=as_json)
        if not as_json:
            print(*references.lines_for(first, data), sep="\n")


@click.command()
@click.argument("runs", metavar="FOLDER_OR_FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=_Folder, help="Write report.html, rounds.csv and PNGs here.")
@click.option("--title", default="Comparison", show_default=True, help="What stands above the report.")
@_JSON
def compare(runs: tuple[Path, ...], out: Path | None, title: str, *, as_json: bool) -> None:
    """Lay runs side by side: folders that `learn --out` wrote, or their outcome.json files.

    Exit status: 0, or 2 when a file cannot be read or written.
    """
    from .report import archive, table

    with _errors():
        outcomes = archive.gather(runs)
        _show(outcomes, title, "", out, as_json=as_json)
        if not as_json and (differing := table.differing(outcomes)):
            print("\nThey differ in " + ", ".join(differing) + ".")


@click.command()
@click.argument("scenario", metavar="FILE_OR_NAME")
@click.option("--variant", help="Which of the scenario's variants; the first, if nothing is said.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="So many, from the scenario's on."
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE,...", help="Try each value: train.momentum=0,0.9")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes at once; as many as there are cores, if nothing is said."
)
@click.option("--engine", type=click.Choice(["pool", "dask"]), default="pool", show_default=True)
@_ADDRESS
@_DATA
@click.option("--out", type=_Folder, help="Keep each finished run here, and write the report; begun again, it goes on.")
@_JSON
def sweep(
    scenario: str, variant: str | None, seeds: int, sets: tuple[str, ...], jobs: int | None,
    engine: Literal["pool", "dask"], address: str | None, data: Path | None, out: Path | None, *, as_json: bool,
) -> None:  # fmt: skip
    """Play seeds x settings in parallel. Prints mean ± standard deviation over seeds for each setting.

    Exit status: 0, 1 when a run failed, 2 when the sweep cannot be played, 130 when it was interrupted.
    """
    from . import progress, reading, sweeping
    from .report import archive

    with _errors():
        base = _chosen(reading.load(scenario), variant)
        over = {**_values(sets), "seed": range(base.seed, base.seed + seeds)}
        where = sweeping.Where(engine=engine, address=address, jobs=jobs, data=data, out=out)
        try:
            with progress.watch() as watch:
                swept = sweeping.watched(base, over, where, watch)
        except KeyboardInterrupt:
            _stop(_how_to_go_on(out, again="the same command"), _INTERRUPTED)
        means = swept.means()
        print(archive.lines_json(means) if as_json else swept.table())
        if out is not None and means:
            lines = sweeping.show(swept, f"{Path(scenario).stem}, over {seeds} seeds", out)
            print(*lines, sep="\n", file=sys.stderr if as_json else sys.stdout)
        if swept.failed:
            sys.exit(_FAILED)


def _show(outcomes: Mapping[str, Any], title: str, about: str, out: Path | None, *, as_json: bool) -> None:
    from .report import archive, folder, table

    if as_json:
        print(archive.lines_json(outcomes))
    else:
        print(f"{title}: {about}\n\n{table.text(outcomes)}" if about else table.text(outcomes))
    if out is not None:
        lines = folder.show(outcomes, title, out)
        print("", *lines, sep="\n", file=sys.stderr if as_json else sys.stdout)


def _chosen(variants: Mapping[str, Any], name: str | None) -> Any:  # noqa: ANN401 - a Scenario, imported late
    if name is not None and name not in variants:
        raise UsageError(f"There is no variant {name!r}; there are {', '.join(variants)}.")
    return variants[name] if name is not None else next(iter(variants.values()))


def _values(sets: tuple[str, ...]) -> dict[str, list[Any]]:
    """Read KEY=VALUE,VALUE: numbers and booleans as TOML has them, else words."""
    found: dict[str, list[Any]] = {}
    for text in sets:
        key, given, values = text.partition("=")
        if not given or not values:
            raise UsageError(f"--set {text}: say which values to try, as in --set train.momentum=0,0.9")
        found[key.strip()] = [_value(value.strip()) for value in values.split(",")]
    return found


def _value(text: str) -> Any:  # noqa: ANN401 - whatever a setting may be
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _how_to_go_on(out: Path | None, again: str = "") -> str:
    if out is None:
        return "Interrupted. Nothing is kept without --out."
    command = shlex.join(["lepton-sim", *sys.argv[1:], *([] if again or "--resume" in sys.argv else ["--resume"])])
    return f"Interrupted; {out} keeps what is done. To go on: {command}"


@contextmanager
def _errors() -> Iterator[None]:
    """Say in a sentence what went wrong."""
    try:
        yield
    except UsageError as error:
        _stop(str(error), _MISUSED)
    except LeptonError as error:
        _stop(str(error), _FAILED)


def _stop(why: str, status: int) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(status)
