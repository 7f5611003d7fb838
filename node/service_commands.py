"""The commands for services: make one, look at it, try it here."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import friendly, home_option, loading
from .service_fleet import COMMANDS, folder_argument

if TYPE_CHECKING:
    from .services.trial import Trial

_PRINTED_S = 0.05  # for what a service printed to come, by another way than its answer


@click.group()
def service() -> None:
    """Write services, try them here, and have the mesh run them."""


@service.command("new")
@folder_argument
@friendly
def service_new(folder: Path) -> None:
    """Make FOLDER with a service that works, to begin from. The service is called like the folder."""
    from .services.bundling.folder import make_folder

    for path in make_folder(folder):
        click.echo(f"  {path}")
    click.echo(
        f"It greets; change the code to what you want. `lepton-node service check {folder}` shows what it became."
    )


@service.command("check")
@folder_argument
@click.option("--json", "as_json", is_flag=True, help="All of it, schemas too, as JSON.")
@home_option
@friendly
def service_check(folder: Path, as_json: bool, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Import FOLDER's code in a process of its own and show what service it is."""
    with loading():
        import functools

        import msgspec
        import trio

        from .services.bundling.environment import ENVIRONMENTS
        from .services.bundling.reflecting import describe
        from .services.writing.showing import shown
    environments = home.expanduser() / "services" / ENVIRONMENTS
    spec = trio.run(functools.partial(describe, folder, environments=environments))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(spec)))
        return
    for line in shown(spec):
        click.echo(line)


@service.command("try")
@folder_argument
@click.argument("method")
@click.option("--json", "text", default="{}", metavar="OBJECT", help="Its parameters; - reads them from the input.")
@click.option("--base64", "packed", is_flag=True, help="Arrays as base64 and not as lists.")
@home_option
@friendly
def service_try(folder: Path, method: str, text: str, packed: bool, home: Path) -> None:  # noqa: FBT001
    """Run FOLDER's service on this machine alone, call METHOD once, and print what it gives as JSON, a line an item."""
    with loading():
        import trio
    trio.run(_try, folder.resolve(), home.expanduser(), [(method, sys.stdin.read() if text == "-" else text)], packed)


@service.command("run")
@folder_argument
@click.option("--base64", "packed", is_flag=True, help="Arrays as base64 and not as lists.")
@home_option
@friendly
def service_run(folder: Path, packed: bool, home: Path) -> None:  # noqa: FBT001
    """Run FOLDER's service on this machine alone and call it: each line of the input is METHOD OBJECT, until it ends.

    What went wrong with a call goes to the error output, and the next is taken.
    """
    with loading():
        import trio
    trio.run(_try, folder.resolve(), home.expanduser(), None, packed)


async def _try(folder: Path, home: Path, calls: list[tuple[str, str]] | None, packed: bool) -> None:  # noqa: FBT001
    import trio

    from ..mesh.errors import LeptonError
    from .config import load_config
    from .services.bundling.environment import ENVIRONMENTS
    from .services.trial import try_folder

    devices = load_config(home / "node.toml").services.devices
    trial: Trial | None = None
    try:
        async with try_folder(folder, home / "services" / ENVIRONMENTS, devices) as trial:
            if calls is not None:
                for method, text in calls:
                    await _print(trial, method, text, packed=packed)
                return
            click.echo(f"{trial.spec.name} {trial.spec.version} runs: METHOD OBJECT calls it.", err=True)
            async for line in _lines():
                method, _, text = line.strip().partition(" ")
                try:
                    if method:
                        await _print(trial, method, text, packed=packed)
                except LeptonError as error:
                    click.echo(str(error), err=True)
                await trio.sleep(_PRINTED_S)
                _tell(trial)
    finally:
        _tell(trial)


def _tell(trial: "Trial | None") -> None:
    """Show what the service printed: a trace of its code is there and nowhere else."""
    for line in [] if trial is None else trial.printed():
        click.echo(f"| {line}", err=True)


async def _print(trial: "Trial", method: str, text: str, *, packed: bool) -> None:
    from contextlib import aclosing

    async with aclosing(trial.call(method, text, arrays="base64" if packed else "lists")) as answers:
        async for answer in answers:
            click.echo(answer)


async def _lines() -> AsyncIterator[str]:
    import trio

    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        yield line


for command in COMMANDS:
    service.add_command(command)
