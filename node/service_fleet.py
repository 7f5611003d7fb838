"""The commands for services in the mesh: deploy, update, scale, logs, rm, list. They ask the node that runs here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from ..mesh.errors import UsageError
from .command import Time, ask, friendly, home_option

folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
wait_options = (
    click.option("--no-wait", is_flag=True, help="Return as soon as it is stated."),
    click.option("--timeout", "timeout_s", default="10m", type=Time(), show_default=True, help="How long to wait."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object per step, the result last."),
)


def _waiting(command: Any) -> Any:  # noqa: ANN401 - click's decorators
    for option in reversed(wait_options):
        command = option(command)
    return command


@click.command()
@folder_argument
@click.option("--replicas", default=None, type=int, help="How many run; 0 with --max: none while nobody calls.")
@click.option("--max", "replicas_max", default=None, type=int, help="Scale by itself up to so many.")
@click.option("--on", multiple=True, metavar="LABEL", help="Only on devices with this label (repeatable).")
@click.option("--share", default=100, type=click.IntRange(1, 100), help="Per cent of calls; the rest stays as it is.")
@click.option("--queue-ms", default=None, type=float, help="Scale up when calls wait for longer.  [default: 50]")
@click.option("--idle", "idle_s", type=Time(), help="Scale down after so long with little to do.  [default: 5m]")
@_waiting
@home_option
@friendly
def deploy(folder: Path, no_wait: bool, as_json: bool, home: Path, timeout_s: float, **options: Any) -> None:  # noqa: ANN401, FBT001
    """Have the mesh run FOLDER's service. A version that runs already is replaced step by step.

    The bundle is signed with this device's key, and runs on devices whose configuration admits that: by default, if an
    admin signed it.
    """
    said = {key: value for key, value in options.items() if value not in (None, ())}
    _state("deploy", folder, home, said, wait=not no_wait, timeout_s=timeout_s, as_json=as_json)


@click.command()
@folder_argument
@_waiting
@home_option
@friendly
def update(folder: Path, no_wait: bool, as_json: bool, home: Path, timeout_s: float) -> None:  # noqa: FBT001
    """Replace what runs of FOLDER's service by its version there, one instance after the other.

    A version that does not start on some device is taken back everywhere; the exit status is then 1.
    """
    _state("update", folder, home, {}, wait=not no_wait, timeout_s=timeout_s, as_json=as_json)


def _state(
    do: str, folder: Path, home: Path, said: Mapping[str, Any], *, wait: bool, timeout_s: float, as_json: bool
) -> None:
    if not folder.expanduser().is_dir():
        raise UsageError(f"{folder} is no folder; make one with `lepton-node service new`.")
    asked = {"do": do, "folder": str(folder.expanduser().resolve()), "wait": wait, "timeout_s": timeout_s, **said}
    show = _as_json if as_json else _Coming().show
    result, _ = ask(home, "service", asked, on_progress=show)
    if as_json:
        _as_json(result)
    elif wait:
        click.echo(f"{result['name']} {result['version']} runs.")
        for line in _models(result):
            click.echo(line)


@click.command()
@click.argument("name")
@click.argument("replicas", type=int)
@click.option("--max", "replicas_max", default=None, type=int, help="Scale by itself up to so many.")
@home_option
@friendly
def scale(name: str, replicas: int, replicas_max: int | None, home: Path) -> None:
    """Have REPLICAS of the service NAME run; with 0 it ends when nobody calls it, and a call starts it."""
    ask(home, "service", {"do": "scale", "name": name, "replicas": replicas, "replicas_max": replicas_max})
    if replicas == 0:
        click.echo(f"{name}: none is to run once nobody has called it for its --idle time; a call starts one.")
    else:
        bound = f" to {replicas_max}" if replicas_max else ""
        click.echo(f"{name}: {replicas}{bound} {'is' if (replicas, bound) == (1, '') else 'are'} to run.")


@click.command()
@click.argument("name")
@click.argument("version")
@click.argument("percent", type=click.IntRange(0, 100))
@home_option
@friendly
def share(name: str, version: str, percent: int, home: Path) -> None:
    """Give VERSION of the service NAME so many PERCENT of its calls, and the version beside it the rest.

    With 100 the other version goes, with 0 this one: each instance once another is ready.
    """
    ask(home, "service", {"do": "share", "name": name, "version": version, "share": percent})
    click.echo(f"{name} {version} is to take {percent} % of the calls.")


@click.command()
@click.argument("name")
@click.option("--lines", "-n", default=50, show_default=True, type=click.IntRange(1, 1000), help="Of each host.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@home_option
@friendly
def logs(name: str, lines: int, follow: bool, home: Path) -> None:  # noqa: FBT001
    """Print what instances of the service NAME last printed, from all devices that host it."""

    def show(said: Mapping[str, Any]) -> None:
        for line in said["lines"]:
            click.echo(f"{said['device']} {line}")

    ask(home, "service", {"do": "logs", "name": name, "lines": lines, "follow": follow}, on_progress=show)


@click.command()
@click.argument("name")
@home_option
@friendly
def rm(name: str, home: Path) -> None:
    """End the service NAME on all devices."""
    ask(home, "service", {"do": "rm", "name": name})
    click.echo(f"{name} is removed; its instances end when their calls are answered.")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As one JSON array.")
@home_option
@friendly
def list_services(as_json: bool, home: Path) -> None:  # noqa: FBT001
    """Show what runs where, and why something does not."""
    found, _ = ask(home, "service", {"do": "list"})
    if as_json:
        _as_json(found)
        return
    if not found:
        click.echo("No service is deployed. Begin with: lepton-node service new FOLDER")
    for service in found:
        click.echo("\n".join(described(service)))


COMMANDS: Final = (deploy, update, scale, share, logs, rm, list_services)


def described(service: Mapping[str, Any]) -> list[str]:
    """Return a service in lines for people."""
    versions = ", ".join(
        release["version"] + (f" ({release['share']} %)" if release["share"] not in {0, 100} else "")
        for release in service["releases"]
        if release["share"] or len(service["releases"]) == 1
    )
    bound = f", up to {service['replicas_max']}" if service["replicas_max"] else ""
    ready = sum(service["ready"].values())
    lines = [f"{service['name']} {versions}: {ready} of {service['wanted']} ready{bound}"]
    if service["failed"]:
        lines.append(f"  taken back: {service['failed']}")
    if service["missing"]:
        lines.append(f"  {service['missing']} {_have(service)} no place. {service['trouble']}".rstrip())
    lines += [f"  {line}" for line in _models(service)]
    for its in service["instances"]:
        why = f"  ({its['reason']})" if its["reason"] and its["state"] != "ready" else ""
        again = f", restarted {its['restarts']} times" if its["restarts"] else ""
        lines.append(f"  {its['device']:16} {its['version']:10} {its['state']}{again}{why}")
    lines += [f"  {its['device']:16} {its['version']:10} does not run: {its['why']}" for its in service["not_running"]]
    return lines


def _models(said: Mapping[str, Any]) -> list[str]:
    """Say which models a service needs that nobody serves: it runs, and its calls of them fail."""
    return [
        f"It needs the model {name!r}, which the mesh does not serve now: see `lepton-node serve` and `train`."
        for name in said["models_missing"]
    ]


class _Coming:
    """Shows how a deployment comes to run."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, step: Mapping[str, Any]) -> None:
        if "stated" in step:
            text = f"{step['stated']['name']} {step['stated']['version']} is signed and known to the mesh."
        else:
            text = _progress(step["progress"])
        if text and text != self._shown:
            click.echo(text)
            self._shown = text


def _progress(said: Mapping[str, Any]) -> str:
    if said["superseded"]:
        return ""
    ready = ", ".join(f"{count} of {version}" for version, count in sorted(said["ready"].items())) or "none yet"
    text = f"Ready: {ready}; {said['wanted']} are wanted."
    if said["missing"]:
        text += f" {said['missing']} {_have(said)} no place."
    for device, why in sorted(said["refused"].items()):
        text += f"\n  {device} does not run it: {why}"
    return text


def _as_json(value: Any) -> None:  # noqa: ANN401
    click.echo(json.dumps(value))


def _have(said: Mapping[str, Any]) -> str:
    return "has" if said["missing"] == 1 else "have"
