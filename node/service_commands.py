"""The commands for services: make one, look at it, try it here."""

from pathlib import Path

import click

from .command import friendly
from .service_fleet import COMMANDS

folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.group()
def service() -> None:
    """Write services, try them here, and have the mesh run them."""


@service.command("new")
@folder_argument
@friendly
def service_new(folder: Path) -> None:
    """Make FOLDER with a service that works, to begin from. The service is called like the folder."""
    from .services.folder import make_folder

    for path in make_folder(folder):
        click.echo(f"  {path}")
    click.echo("It greets; change the code to what you want.")


for command in COMMANDS:
    service.add_command(command)
