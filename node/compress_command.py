"""`lepton-node compress`: a language model's folder made smaller, and what that changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..mesh.errors import UsageError
from .command import friendly, loading

if TYPE_CHECKING:
    from .compression.comparing import Side

_TEXT_BYTES_MAX: Final = 64 * 1024 * 1024  # 16 million tokens; a few thousand are used


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--to", "precision", default="int4", type=click.Choice(["int8", "int4"]), show_default=True, help="Of the weights."
)
@click.option(
    "--data",
    default=None,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A text to calibrate on; its last fifth is kept to measure on. Default: what the model itself writes.",
)
@click.option("--out", default=None, type=click.Path(path_type=Path), help="A new folder.  [default: FOLDER-int4]")
@click.option("--steps", default=None, type=int, help="To tune scales and norms with.  [default: 100 with int4]")
@click.option("--seed", default=0, type=int, show_default=True, help="Of what the model writes, and of the tuning.")
@friendly
def compress(folder: Path, precision: str, data: Path | None, out: Path | None, steps: int | None, seed: int) -> None:
    """Round the weights of the language model in FOLDER so that it answers nearly as before.

    Makes a folder in the same layout, which `serve` takes as it is, and says what that changed: the size, how well the
    model foretells a text, and how quickly it answers here.
    """
    with loading():
        from .compression.comparing import compared
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name the one that holds config.json and model.safetensors.")
    out = (out or folder.with_name(f"{folder.resolve().name}-{precision}")).expanduser()
    text = None if data is None else _text(data.expanduser())
    click.echo("Calibrating ...")
    before, after, measured_on = compared(
        folder, out, bits=4 if precision == "int4" else 8, text=text, seed=seed, steps=steps
    )
    _table(before, after)
    click.echo(f"Perplexity is measured on {measured_on}.")
    click.echo(f"Serve it: lepton-node serve {out}")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _TEXT_BYTES_MAX:
            raise UsageError(f"{path} is larger than the {_TEXT_BYTES_MAX:,} bytes that are read; give a part of it.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}.") from error


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
