"""`lepton-node train`: a task from a file or from options, watched until it is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from ..mesh.errors import UsageError
from .command import ask, friendly, home_option, loading

# Where in a task's file each option belongs.
_PLACES: Final = {
    "data": ("data",),
    "objective": ("objective",),
    "policy": ("policy",),
    "seed": ("seed",),
    "baseline": ("baseline",),
    "model": ("model", "architecture"),
    "hidden": ("model", "hidden"),
    "activation": ("model", "hidden_activation"),
    "classes": ("model", "classes"),
    "optimiser": ("train", "optimiser"),
    "rounds": ("budget", "rounds"),
    "codec": ("averaging", "codec"),
    "members": ("averaging", "members"),
    "copies": ("serve", "copies"),
}


@click.command()
@click.argument("task", metavar="NAME|TASK.toml")
@click.option("--data", default=None, help="The data set, by the name that nodes gave it with `up --data NAME=FILE`.")
@click.option(
    "--policy",
    default=None,
    help="trusted; private: only sums are seen; robust: bad members are left out.  [default: trusted]",
)
@click.option("--model", default=None, help="mlp, cnn, lstm, or package.module:factory.  [default: mlp]")
@click.option("--hidden", default=None, type=int, help="Hidden units (mlp, lstm) or channels (cnn).  [default: 64]")
@click.option("--activation", default=None, help="Of hidden units (mlp): sigmoid or relu.  [default: sigmoid]")
@click.option(
    "--classes", default=None, type=int, help="How many classes there are, if this device's part has not all."
)
@click.option(
    "--objective",
    default=None,
    help="cross_entropy: classes; binary_cross_entropy: yes or no; mse, mae, huber: values.  [default: cross_entropy]",
)
@click.option("--optimiser", default=None, help="sgd, adam, adamw.  [default: sgd]")
@click.option("--rounds", default=None, type=int, help="Exchanges with neighbours.  [default: 100]")
@click.option(
    "--codec", default=None, help="How updates travel: float32, float16, bfloat16, int8, int4.  [default: int8]"
)
@click.option(
    "--members", default=None, type=int, help="Begin when this many are ready. Default: all that have the data."
)
@click.option(
    "--replicas",
    "--copies",
    "copies",
    default=None,
    type=int,
    help="On how many devices each layer is served afterwards.  [default: 2]",
)
@click.option("--baseline", is_flag=True, default=None, help="Also train each device's model alone, to compare.")
@click.option("--seed", default=None, type=int, help="[default: 0]")
@click.option("--plain", is_flag=True, help="One line per round instead of a live table.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per round and per change, the result last.")
@click.option(
    "--plot", type=click.Path(path_type=Path), default=None, metavar="FILE.png", help="Draw the curves at the end."
)
@home_option
@friendly
def train(task: str, plain: bool, as_json: bool, plot: Path | None, home: Path, **options: Any) -> None:  # noqa: ANN401, FBT001
    """Train a model with every node that has the data set, and serve it afterwards.

    What to train is said in a task's file, or by a name and options. Options count more than the file. Ctrl-C stops
    watching, not the training.
    """
    with loading():
        import msgspec

        from .curves import Curves
        from .learning.task import load_task, task_from
        from .watch import Watch

    said = _placed(options)
    if task.endswith(".toml"):
        asked = load_task(Path(task), said)
    elif "data" in said:
        asked = task_from({"name": task, **said}, f"The task {task!r}")
    else:
        raise UsageError(f"Which data is {task!r} learned from? Say --data NAME, or name a task's file: TASK.toml.")
    curves = Curves(plot) if plot is not None else None
    with Watch(asked.budget.rounds, asked.policy, plain=plain, as_json=as_json, curves=curves) as watch:
        result, _ = ask(home, "train", {"task": msgspec.to_builtins(asked)}, on_progress=watch.hear)
        watch.finish(result)


def _placed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, laid out as in a task's file."""
    laid: dict[str, Any] = {}
    for option, (*tables, key) in _PLACES.items():
        if options[option] is not None:
            place = laid
            for table in tables:
                place = place.setdefault(table, {})
            place[key] = options[option]
    return laid
