"""The command line: one command for each thing that an owner does. Imports what is heavy only when it is used."""

import json
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..mesh.errors import LinkError, Refused, UsageError
from .authority_commands import revoke
from .call_command import call
from .command import ask, friendly, home_option, interface_option, loading
from .compress_command import compress
from .doctor_command import doctor
from .mesh_commands import invite, join, mesh
from .objective import Objective
from .seeing_commands import audit, dashboard
from .service_commands import service
from .serving_commands import generate, serve, unserve
from .top_command import top
from .train_command import train

if TYPE_CHECKING:
    from rich.table import Table


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


for command in (mesh, invite, join, revoke, train, serve, unserve, generate, compress):
    main.add_command(command)
for command in (doctor, top, service, call, dashboard, audit):
    main.add_command(command)


# -- the node ----------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--name", default=None, help="What people call this device.")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="Where to listen (repeatable). Default: everywhere.")
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="ADDRESS",
    help="A node to look for where mDNS does not reach (repeatable): host:port or a multiaddr.",
)
@click.option("--memory", default=None, metavar="SIZE", help="Weights that this device may hold for serving: 512MB.")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="NAME=FILE[@TARGET]",
    help="A data set: .npz; .csv or .parquet, labels last or as TARGET says; images @HxW; module:function.",
)
@click.option(
    "--allow-model",
    "models",
    multiple=True,
    metavar="PACKAGE.MODULE:FACTORY",
    help="A function of yours that may make models for tasks (repeatable); no other is ever imported.",
)
@click.option(
    "--web",
    default=None,
    metavar="ADDRESS:PORT|off",
    help="Where programs find OpenAI's interface.  [default: 127.0.0.1:7533]",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@click.option(
    "--log-format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object each; both name the request that they are about.",
)
@home_option
@interface_option
@friendly
def up(
    name: str | None,
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
    memory: str | None,
    data: tuple[str, ...],
    models: tuple[str, ...],
    web: str | None,
    verbose: bool,  # noqa: FBT001 - click passes flags by name
    form: Literal["text", "json"],
    home: Path,
    interfaces: tuple[str, ...],
) -> None:
    """Run this device's node until Ctrl-C. Settings come from node.toml in the folder; options override them."""
    from .seeing import logs

    about = logs.configure(form, verbose=verbose)
    overrides: dict[str, Any] = {}
    if name:
        overrides["name"] = name
    if listen:
        overrides["listen"] = list(listen)
    if interfaces:
        overrides["interfaces"] = list(interfaces)
        if not listen:
            overrides["listen"] = [f"[{address}]:0" if ":" in address else f"{address}:0" for address in interfaces]
    if bootstrap:
        overrides["bootstrap"] = list(bootstrap)
    if memory:
        overrides["serve"] = {"memory": memory}
    if web:
        overrides["web"] = {"listen": web}
    files = dict(_data_option(item) for item in data)
    _check(home, overrides)
    with loading():
        import trio

        from . import control, node  # noqa: F401 - loaded here, used below
    trio.run(_run_node, home, overrides, files, models, about)


def _check(home: Path, overrides: Mapping[str, Any]) -> None:
    """Say what is wrong with the folder or the configuration now, not after the seconds that loading torch takes."""
    from .authority import require_membership
    from .config import load_config
    from .home import Home

    folder = Home(home)
    config = load_config(folder.path / "node.toml", overrides)
    _ = config.memory_bytes, config.web.place
    require_membership(folder, time.time())


async def _run_node(
    home: Path, overrides: Mapping[str, Any], files: Mapping[str, str], models: Sequence[str], about: dict[str, str]
) -> None:
    """Run the node; ``about`` is what every line of its log says besides."""
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
            async with Node(home, data=files, models=models, **overrides) as node, trio.open_nursery() as nursery:
                about["node"] = node.mesh.me
                await nursery.start(serve_control, node, stop)
                status = node.status()
                click.echo(f"{node.device} is up in the mesh {status['mesh']!r} as {status['me']}.")
                click.echo(f"Listening on {', '.join(status['addresses'])}. Ctrl-C stops it.")
                if node.web is not None:
                    click.echo(f"OpenAI's interface: {node.web.url}{node.web.remark}")
                    click.echo(f"Dashboard: {node.web.page} (`lepton-node dashboard` lets you change things there)")
                up.set()
                await stop.wait()
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
    click.echo("Stopped.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything that the node knows as JSON.")
@home_option
@friendly
def status(as_json: bool, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Show who is here, what is served and what is being learned."""
    try:
        said, _ = ask(home, "status")
    except LinkError as error:
        from .authority import why_out
        from .home import Home

        if why := why_out(Home(home)):  # says more than that no node runs
            raise Refused(why) from error
        raise
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape

    from ..mesh.admission import JOIN_ANEW

    console = Console(markup=False)  # what devices are called is theirs to say, and no markup of ours
    console.print(f"Mesh [bold]{escape(said['mesh'])}[/bold], this node {said['me'][-8:]}", markup=True)
    if said["web"]:
        console.print(f"OpenAI's interface: {said['web']['url']}{said['web']['remark']}", soft_wrap=True)
    if (out := said["thrown_out"]) is not None:
        when = f" on {time.strftime('%Y-%m-%d %H:%M', time.localtime(out['when']))}" if out["when"] else ""
        why = f"{escape(out['why'])} {JOIN_ANEW}"
        console.print(f"[bold red]This device was thrown out of the mesh{when}:[/] {why}", markup=True)
    for table in _status_tables(said):
        console.print(table)


@main.command()
@home_option
@friendly
def down(home: Path) -> None:
    """Stop the node that runs with this folder."""
    ask(home, "stop")
    click.echo("The node is stopping.")


# -- answering --------------------------------------------------------------------------------------------


@main.command()
@click.argument("model")
@click.option(
    "--data", "file", required=True, type=click.Path(path_type=Path), help="Samples: .npz with x (and y), or .csv."
)
@click.option("--target", default=None, help="Which columns of a .csv are labels, if any: last, a name, or onehot:K.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Write the answers to this .npy file.")
@click.option("--json", "as_json", is_flag=True, help="Print the predicted classes or values as JSON.")
@home_option
@friendly
def predict(model: str, file: Path, target: str | None, out: Path | None, as_json: bool, home: Path) -> None:  # noqa: FBT001
    """Have the mesh answer the samples in a file with MODEL."""
    with loading():
        import numpy as np

        from .answers import Said
        from .learning.data import load_samples

    objective: Objective = ask(home, "objective", {"model": model})[0] or "cross_entropy"
    samples = load_samples(file, target=target, objective=objective)
    _, (answers,) = ask(home, "predict", {"model": model}, arrays=[samples.x])
    if out is not None:
        try:
            np.save(out, answers)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror or error}; name another file.") from error
    said = Said(objective, answers)
    for line in [json.dumps(said.plain())] if as_json else said.lines():
        click.echo(line)
    if samples.y is not None:
        click.echo(said.compared(samples.y), err=as_json)


@main.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write.")
@home_option
@friendly
def export(model: str, out: Path, home: Path) -> None:
    """Write all of MODEL, gathered from the mesh, to one .safetensors file."""
    with loading():
        from .export import save_model

    spec, layers = ask(home, "export", {"model": model})
    save_model(out, spec, [bytes(layer) for layer in layers])
    click.echo(f"Wrote {model!r} to {out}.")


# -- how it is done ----------------------------------------------------------------------------------------------------


def _data_option(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        msg = f"--data takes NAME=FILE, as in --data digits=part.npz; got {item!r}."
        raise UsageError(msg)
    return name, path


def _status_tables(said: Mapping[str, Any]) -> list["Table"]:
    from rich.table import Table

    from .watch import score

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
    if said["deployments"]:
        tables.append(_deployments(said["deployments"]))
    if said["tasks"]:
        tasks = Table("task", "policy", "node", "state", "round", "score", "sent", title="Learned")
        for task in said["tasks"]:
            for peer, node in task["nodes"].items():
                done = str(node.get("round", 0)) + (f" of {task['rounds']}" if task["rounds"] else "")
                sent = f"{node.get('bytes_sent', 0) / 1000:,.0f} kB"
                tasks.add_row(task["name"], task["policy"], peer[-8:], node["state"], done, score(node), sent)
        kept = ", ".join(dict.fromkeys(task["name"] for task in said["tasks"] if not task["served"]))
        tasks.caption = f"Not served, each node keeps its model: {kept}" if kept else None
        tables.append(tasks)
    return tables + _trouble_tables(said)


def _deployments(deployments: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table("model", "precision", "layers", "on", "tokens/s expected", "state", title="Deployed models")
    for model in deployments:
        state = "served" if model["served"] else model["trouble"] or "loading"
        speed = f"{model['tokens_per_s']:,.0f}" if model["tokens_per_s"] else ""
        for stage in model["stages"] or [{"first": 0, "end": model["layers"], "devices": []}]:
            layers = f"{stage['first']} to {stage['end'] - 1}"
            table.add_row(model["name"], model["precision"], layers, ", ".join(stage["devices"]), speed, state)
    return table


def _trouble_tables(said: Mapping[str, Any]) -> list["Table"]:
    from rich.table import Table

    tables = []
    if said["bootstrap"]:
        places = Table("address", "node", "trouble", title="Looked for at")
        for place in said["bootstrap"]:
            places.add_row(place["address"], place["peer"][-8:], place["trouble"])
        tables.append(places)
    if said["refusals"]:
        refusals = Table("peer", "why", title="Refused")
        for peer, why in said["refusals"].items():
            refusals.add_row(peer[-8:], why)
        tables.append(refusals)
    return tables


if __name__ == "__main__":
    main(prog_name="lepton-node")
