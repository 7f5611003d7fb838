"""`lepton-node compress`: a model made smaller, and what that changed; or a search for one that is as asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..mesh.errors import UsageError
from .command import friendly, loading

if TYPE_CHECKING:
    from .compression.comparing import Side
    from .compression.search.compressing import Found
    from .compression.search.picking import Tried

_WIDE: Final = 120  # columns of a table of candidates: a narrower terminal breaks its lines, and a file does not mind
_TIME: Final = click.FloatRange(min=0)
_COUNT: Final = click.IntRange(min=1)
_STEPS: Final = click.IntRange(min=0)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="What it must keep (repeatable): size=4MB or size=0.25x, latency=5ms or latency=0.5x, accuracy=-0.5 (points "
    "that may be lost), of a language model perplexity=+5%.",
)
@click.option(
    "--to", "precision", default=None, type=click.Choice(["int8", "int4"]), help="Only round to it, and search nothing."
)
@click.option(
    "--data",
    default=None,
    metavar="FILE",
    help="A text for a language model, else samples as `up --data` takes them. A fifth, or their test part, is kept to "
    "measure on. Default for a language model: what it writes itself.",
)
@click.option("--out", default=None, type=click.Path(path_type=Path), help="A new folder.  [default: beside MODEL]")
@click.option("--plot", default=None, type=click.Path(path_type=Path), help="Draw the front into this .png or .svg.")
@click.option("--budget-s", default=900.0, type=_TIME, show_default=True, help="Begin no candidate after so long.")
@click.option("--candidates", default=32, type=_COUNT, show_default=True, help="Measure no more than these.")
@click.option("--keep-best", is_flag=True, help="Write the nearest one where none keeps the targets.")
@click.option("--steps", default=None, type=_STEPS, help="Of training, for each candidate that is trained.")
@click.option("--threads", default=None, type=_COUNT, help="To work with.  [default: 1, for language models all]")
@click.option("--seed", default=0, type=int, show_default=True, help="Of what is drawn, and of training.")
@friendly
def compress(
    model: Path, targets: tuple[str, ...], precision: str | None, data: str | None, out: Path | None, **options: Any  # noqa: ANN401
) -> None:  # fmt: skip
    """Make MODEL smaller: a language model's folder, or a file that `export` wrote.

    With --target it tries combinations of smaller students, pruning and rounding, prints what each one takes and loses,
    and saves the best that keeps the targets. With --to, as without either, it only rounds a language model. The folder
    that it makes is one that `serve` takes.
    """
    model = model.expanduser()
    if targets and precision is not None:
        raise UsageError("--target searches what to do, --to says it: give one of them.")
    if not model.exists():
        raise UsageError(f"{model} is not there; name a language model's folder or a file that `export` wrote.")
    name = f"{model.resolve().with_suffix('').name if model.is_file() else model.resolve().name}"
    precision = precision or ("" if targets else "int4")
    out = (out or model.resolve().with_name(f"{name}-{precision or 'small'}")).expanduser()
    if model.is_dir() and precision:
        _rounded(model, out, precision, data, options["steps"], options["seed"])
    else:
        _searched(model, targets, precision, data, out, **options)


def _rounded(folder: Path, out: Path, precision: str, data: str | None, steps: int | None, seed: int) -> None:
    with loading():
        from .compression.comparing import compared
        from .compression.folder import require_floats
        from .compression.search.compressing import text_of
        from .compression.whole import require_free
    require_floats(folder)
    require_free(out)
    text = None if data is None else text_of(data)
    click.echo("Calibrating ...")
    before, after, measured_on = compared(
        folder, out, bits=4 if precision == "int4" else 8, text=text, seed=seed, steps=steps
    )
    _table(before, after)
    click.echo(f"Perplexity is measured on {measured_on}.")
    click.echo(f"Serve it: lepton-node serve {out}")


def _searched(
    model: Path, targets: tuple[str, ...], precision: str, data: str | None, out: Path, *, plot: Path | None,
    budget_s: float, candidates: int, keep_best: bool, steps: int | None, threads: int | None, seed: int,
) -> None:  # fmt: skip
    with loading():
        from .compression.search.compressing import TargetMissed, compress
        from .compression.search.drawing import draw, require_plot
        from .compression.search.recipes import Round
    if plot is not None:
        require_plot(plot)
    recipes = ((Round(bits=4 if precision == "int4" else 8),),) if precision else None
    try:
        found = compress(
            model, target=targets, data=data, out=out, budget_s=budget_s, candidates_max=candidates, seed=seed,
            steps=steps, threads=threads, keep_best=keep_best, on_tried=_tell, recipes=recipes,
        )  # fmt: skip
    except TargetMissed as error:
        _print(error.found)
        if plot is not None:
            draw(error.found.outcome, error.found.quality, plot)
        raise
    _print(found)
    if plot is not None:
        draw(found.outcome, found.quality, plot)
        click.echo(f"The front is drawn in {plot}.")
    click.echo(f"Serve it: lepton-node serve {out}")


def _tell(each: "Tried") -> None:
    from .compression.search.recipes import said

    if each.figures is not None:
        click.echo(f"{said(each.recipe)}: {each.figures.size_bytes:,} bytes, {each.figures.lost:+.2f} lost")


def _print(found: "Found") -> None:
    from rich.console import Console

    from .compression.search.drawing import table_of

    console = Console()
    Console(width=max(console.width, _WIDE)).print(table_of(found.outcome, found.quality))
    click.echo(f"{found.quality[0].upper()}{found.quality[1:]} is measured on {found.measured_on}.")
    if found.outcome.picked is None and found.manifest is not None:
        click.echo("No candidate keeps the targets; the nearest one was written.")


def _table(before: "Side", after: "Side") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "before", "after", "", box=None)
    for name, form, old, new in (
        ("precision", "{}", before.precision, after.precision),
        ("size, MB", "{:,.2f}", before.size_bytes / 1e6, after.size_bytes / 1e6),
        ("perplexity", "{:.3f}", before.perplexity, after.perplexity),
        ("tokens/s", "{:,.0f}", before.tokens_per_s, after.tokens_per_s),
    ):
        table.add_row(name, form.format(old), form.format(new), _change(old, new))
    Console().print(table)


def _change(old: Any, new: Any) -> str:  # noqa: ANN401
    return "" if isinstance(old, str) else f"{100 * (new / old - 1):+.1f} %"
