"""The command line: one command for each thing that an owner does. Imports what is heavy only when it is used."""

import functools
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click

from ..mesh.errors import LeptonError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

_P = ParamSpec("_P")
_R = TypeVar("_R")
_INTERRUPTED: Final = 130  # the shell's convention for Ctrl-C
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd])")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("~/.lepton"),
    envvar="LEPTON_HOME",
    show_default=True,
    help="The node's data folder: identity, grants, weights, checkpoints.",
)
_interface_option = click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="ADDRESS",
    help="Use only the interface with this address for discovery (repeatable). Default: all.",
)


def _friendly(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn our errors into one sentence and an exit status; a user's mistake never shows a traceback."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except (LeptonError, KeyboardInterrupt, BaseExceptionGroup) as error:
            cause = _cause(error)
            if isinstance(cause, KeyboardInterrupt):
                _say_interrupted()
                sys.exit(_INTERRUPTED)
            if not isinstance(cause, LeptonError):
                raise
            click.echo(f"lepton-node: {cause}", err=True)
            sys.exit(EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)

    return run


def _cause(error: BaseException) -> BaseException:
    """Return what the owner has to hear of: an interrupt first, then our own error if there is nothing but ours."""
    leaves = list(_leaves(error))
    interrupts = [leaf for leaf in leaves if isinstance(leaf, KeyboardInterrupt)]
    foreign = [leaf for leaf in leaves if not isinstance(leaf, LeptonError)]
    return [*interrupts, *foreign, *leaves][0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


def _say_interrupted() -> None:
    os.write(sys.stderr.fileno(), b"lepton-node: interrupted\n")


@contextmanager
def _loading() -> Iterator[None]:
    """Import what is heavy. An interrupt here ends the process at once: nothing is done yet that wants an orderly end.

    Inside a half-made module it would come out as anything, a traceback of somebody else's among it.
    """

    def leave(_signal: int, _frame: object) -> None:
        _say_interrupted()
        os._exit(_INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Three machines: `mesh create home`, `up` and `invite` on one; `join CODE` and `up` on the others.",
)
@click.version_option(package_name="lepton-node")
def main() -> None:
    """Turn the devices that you have into one AI, with no server in the middle.

    Every device runs one node. Nodes of a mesh find each other on the local network, prove that they belong, train
    models on data that never leaves its device, and serve models that are too large for any one of them.

    It is not a cloud client and has no central coordinator: any device may be switched off at any time.
    """


# -- the mesh ----------------------------------------------------------------------------------------------------------


@main.group()
def mesh() -> None:
    """Make a mesh and look at it."""


@mesh.command("create")
@click.argument("name")
@_home_option
@_friendly
def mesh_create(name: str, home: Path) -> None:
    """Make a mesh called NAME. Its root key stays in this device's folder."""
    from .setup import create_mesh

    root = create_mesh(home, name)
    click.echo(f"Made the mesh {name!r}. This device is its first admin; the root key stays in {home.expanduser()}.")
    click.echo(f"Its id: {root}")
    click.echo("Next: `lepton-node up` here, and `lepton-node invite` for each device that may join.")


@main.command()
@click.option("--role", default="member", show_default=True, help="client, trainer, member or admin.")
@click.option("--uses", default=1, show_default=True, type=click.IntRange(min=1), help="How many devices may use it.")
@click.option("--expires", default="1h", show_default=True, help="Until when it is good: 30m, 1h, 2d.")
@_home_option
@_friendly
def invite(role: str, uses: int, expires: str, home: Path) -> None:
    """Print a code with which another device can join, once and for a while."""
    lifetime_s = _duration_s(expires)
    try:
        code, _ = _ask(home, "invite", {"role": role, "uses": uses, "lifetime_s": lifetime_s})
    except _no_node_runs():
        code = _invite_offline(home, role=role, uses=uses, lifetime_s=lifetime_s)
        click.echo("No node runs here: start it with `lepton-node up` before the code is used.", err=True)
    click.echo(code)


@main.command()
@click.argument("code")
@click.option("--timeout", "timeout_s", default=20.0, show_default=True, help="Seconds to look for the mesh.")
@_home_option
@_interface_option
@_friendly
def join(code: str, timeout_s: float, home: Path, interfaces: tuple[str, ...]) -> None:
    """Join a mesh with the CODE that `lepton-node invite` printed on one of its devices."""
    with _loading():
        import trio

        from .setup import join_mesh

    name = trio.run(functools.partial(join_mesh, home, code, interfaces=interfaces, timeout_s=timeout_s))
    click.echo(f"Joined the mesh {name!r}. Next: `lepton-node up`.")


# -- the node ----------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--name", default=None, help="What people call this device.")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Where to listen (repeatable). Default: everywhere.")
@click.option("--memory", default=None, metavar="SIZE", help="Weights that this device may hold for serving: 512MB.")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="NAME=FILE[@TARGET]",
    help="A data set to learn from: .npz, or .csv whose labels are the last column, or TARGET: a name, or onehot:K.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@_home_option
@_interface_option
@_friendly
def up(
    name: str | None,
    listen: tuple[str, ...],
    memory: str | None,
    data: tuple[str, ...],
    verbose: bool,  # noqa: FBT001 - click passes flags by name
    home: Path,
    interfaces: tuple[str, ...],
) -> None:
    """Run this device's node until Ctrl-C. Settings come from node.toml in the folder; options override them."""
    _log_to_stderr(verbose=verbose)
    overrides: dict[str, Any] = {}
    if name:
        overrides["name"] = name
    if listen:
        overrides["listen"] = list(listen)
    if interfaces:
        overrides["interfaces"] = list(interfaces)
        if not listen:
            overrides["listen"] = [f"[{address}]:0" if ":" in address else f"{address}:0" for address in interfaces]
    if memory:
        overrides["serve"] = {"memory": memory}
    files = dict(_data_option(item) for item in data)
    _check(home, overrides)
    with _loading():
        import trio

        from . import control, node  # noqa: F401 - loaded here, used below
    trio.run(_run_node, home, overrides, files)


def _check(home: Path, overrides: Mapping[str, Any]) -> None:
    """Say what is wrong with the folder or the configuration now, not after the seconds that loading torch takes."""
    from .config import load_config
    from .home import Home

    folder = Home(home)
    _ = load_config(folder.path / "node.toml", overrides).memory_bytes
    folder.credentials()
    folder.identity()


async def _run_node(home: Path, overrides: Mapping[str, Any], files: Mapping[str, str]) -> None:
    import trio

    from .control import serve_control
    from .node import Node

    up, stop = trio.Event(), trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as outer:

            async def wait_for_signals() -> None:
                async for _ in signals:
                    if stop.is_set() or not up.is_set():  # in the middle of starting, or asked again while it stops
                        outer.cancel_scope.cancel()
                    stop.set()

            outer.start_soon(wait_for_signals)
            async with Node(home, data=files, **overrides) as node, trio.open_nursery() as nursery:
                await nursery.start(serve_control, node, stop)
                status = node.status()
                click.echo(f"{node.device} is up in the mesh {status['mesh']!r} as {status['me']}.")
                click.echo(f"Listening on {', '.join(status['addresses'])}. Ctrl-C stops it.")
                up.set()
                await stop.wait()
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
    click.echo("Stopped.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything that the node knows as JSON.")
@_home_option
@_friendly
def status(as_json: bool, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Show who is here, what is served and what is being learned."""
    said, _ = _ask(home, "status")
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(f"Mesh [bold]{said['mesh']}[/bold], this node {said['me'][-8:]}")
    for table in _status_tables(said):
        console.print(table)


@main.command()
@_home_option
@_friendly
def down(home: Path) -> None:
    """Stop the node that runs with this folder."""
    _ask(home, "stop")
    click.echo("The node is stopping.")


# -- learning and answering --------------------------------------------------------------------------------------------


@main.command()
@click.argument("name")
@click.option("--data", required=True, help="The data set, by the name that nodes gave it with `up --data NAME=FILE`.")
@click.option("--model", default="mlp", show_default=True, help="Architecture: mlp or cnn.")
@click.option("--hidden", default=64, show_default=True, help="Hidden units (mlp) or channels (cnn).")
@click.option("--activation", default="sigmoid", show_default=True, help="Of hidden units (mlp): sigmoid or relu.")
@click.option(
    "--classes", default=None, type=int, help="How many classes there are, if this device's part has not all."
)
@click.option("--rounds", default=100, show_default=True, help="Exchanges with neighbours.")
@click.option("--codec", default="int8", show_default=True, help="How updates travel: float32, float16, int8 or int4.")
@click.option(
    "--members", default=None, type=int, help="Begin when this many are ready. Default: all that have the data."
)
@click.option("--copies", default=2, show_default=True, help="On how many devices each layer is served afterwards.")
@click.option("--baseline", is_flag=True, help="Also train each device's model alone, to compare.")
@click.option("--seed", default=0, show_default=True)
@click.option("--plain", is_flag=True, help="One line per change instead of a live table.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per change, the result last.")
@_home_option
@_friendly
def train(
    name: str,
    data: str,
    model: str,
    hidden: int,
    activation: str,
    classes: int | None,
    rounds: int,
    codec: str,
    members: int | None,
    copies: int,
    baseline: bool,  # noqa: FBT001 - click passes flags by name
    seed: int,
    plain: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    home: Path,
) -> None:
    """Train a model called NAME with every node that has the data set, and serve it afterwards.

    Ctrl-C stops watching, not the training.
    """
    arguments = {
        "name": name,
        "data": data,
        "model": model,
        "hidden": hidden,
        "hidden_activation": activation,
        "classes": classes,
        "rounds": rounds,
        "codec_name": codec,
        "members_min": members,
        "copies": copies,
        "baseline": baseline,
        "seed": seed,
    }
    with _loading():
        from .watch import Watch

    with Watch(rounds, plain=plain, as_json=as_json) as watch:
        result, _ = _ask(home, "train", arguments, on_progress=watch.show)
        watch.finish(result)


@main.command()
@click.argument("model")
@click.option(
    "--data", "file", required=True, type=click.Path(path_type=Path), help="Samples: .npz with x (and y), or .csv."
)
@click.option("--target", default=None, help="Which columns of a .csv are labels, if any: last, a name, or onehot:K.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the probabilities to this .npy file.")
@click.option("--json", "as_json", is_flag=True, help="Print the predicted classes as JSON.")
@_home_option
@_friendly
def predict(model: str, file: Path, target: str | None, out: Path | None, as_json: bool, home: Path) -> None:  # noqa: FBT001
    """Have the mesh answer the samples in a file with MODEL."""
    with _loading():
        import numpy as np

        from .learning.data import load_samples

    samples = load_samples(file, target=target)
    _, (probabilities,) = _ask(home, "predict", {"model": model}, arrays=[samples.x])
    classes = probabilities.argmax(axis=1)
    if out is not None:
        try:
            np.save(out, probabilities)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror or error}; name another file.") from error
    if as_json:
        click.echo(json.dumps([int(c) for c in classes]))
    else:
        for index, c in enumerate(classes):
            click.echo(f"{index}\t{c}\t{probabilities[index, c]:.4f}")
    if samples.y is not None:
        right = int((classes == samples.y).sum())
        click.echo(f"{right} of {len(samples.y)} right ({right / len(samples.y):.1%})", err=as_json)


@main.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write.")
@_home_option
@_friendly
def export(model: str, out: Path, home: Path) -> None:
    """Write all of MODEL, gathered from the mesh, to one .safetensors file."""
    with _loading():
        from .export import save_model

    spec, layers = _ask(home, "export", {"model": model})
    save_model(out, spec, [bytes(layer) for layer in layers])
    click.echo(f"Wrote {model!r} to {out}.")


# -- how it is done ----------------------------------------------------------------------------------------------------


def _ask(
    home: Path,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    arrays: Any = (),  # noqa: ANN401 - numpy arrays, whose type would import numpy
    on_progress: Callable[[Any], None] | None = None,
) -> tuple[Any, Any]:
    with _loading():
        import trio

        from .control import Control

    return trio.run(
        functools.partial(Control(home.expanduser()).ask, command, arguments, arrays, on_progress=on_progress)
    )


def _no_node_runs() -> type[LeptonError]:
    from .control import NoNode

    return NoNode


def _invite_offline(home: Path, *, role: str, uses: int, lifetime_s: float) -> str:
    """Open an invite while no node runs, for the node to honour once it does."""
    from .setup import open_invite

    return open_invite(home, role=role, uses=uses, lifetime_s=lifetime_s)


def _duration_s(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        msg = f"{text!r} is not a time; write a number and s, m, h or d, as in 30m."
        raise UsageError(msg)
    return float(match[1]) * _UNITS[match[2]]


def _data_option(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        msg = f"--data takes NAME=FILE, as in --data digits=part.npz; got {item!r}."
        raise UsageError(msg)
    return name, path


def _status_tables(said: Mapping[str, Any]) -> list["Table"]:
    from rich.table import Table

    peers = Table("node", "device", "memory for serving", "data", title="Here")
    for peer in said["peers"]:
        this = " (this)" if peer["here"] else ""
        peers.add_row(peer["id"][-8:] + this, peer["device"], f"{peer['memory_bytes']:,} B", ", ".join(peer["data"]))
    tables = [peers]
    if said["models"]:
        models = Table("model", "version", "layers", "on", "state", title="Served")
        for model in said["models"]:
            state = "served" if model["served"] else model["trouble"] or "loading"
            stages = model["stages"] or [{"first": 0, "end": model["layers"], "peers": []}]
            for stage in stages:
                layers = f"{stage['first']} to {stage['end'] - 1}"
                peers_of = ", ".join(peer[-8:] for peer in stage["peers"])
                models.add_row(model["name"], str(model["version"]), layers, peers_of, state)
        tables.append(models)
    if said["tasks"]:
        tasks = Table("task", "node", "state", "round", "accuracy", "sent", title="Learned")
        for task in said["tasks"]:
            for peer, node in task["nodes"].items():
                accuracy = f"{node['accuracy']:.1%}" if node.get("accuracy") is not None else ""
                done = f"{node.get('round', 0)} of {task['rounds']}"
                sent = f"{node.get('bytes_sent', 0) / 1000:,.0f} kB"
                tasks.add_row(task["name"], peer[-8:], node["state"], done, accuracy, sent)
        tables.append(tasks)
    if said["refusals"]:
        refusals = Table("peer", "why", title="Refused")
        for peer, why in said["refusals"].items():
            refusals.add_row(peer[-8:], why)
        tables.append(refusals)
    return tables


def _log_to_stderr(*, verbose: bool) -> None:
    """Our log goes to stderr; libp2p's own is kept out of it unless asked for: it speaks of ordinary disconnections."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("lepton").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    main(prog_name="lepton-node")
