"""The administrator's commands: who belongs to the mesh, throw a device out, carry the root key to another device."""

import datetime as dt
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..mesh.errors import LeptonError, Refused, UsageError
from ..mesh.identity import short
from .command import ask, friendly, home_option, loading
from .mesh_commands import mesh
from .terminal import all_harmless

if TYPE_CHECKING:
    from rich.table import Table


@mesh.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@home_option
@friendly
def mesh_show(as_json: bool, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Show who belongs to the mesh, through whom, until when, and who was thrown out."""
    shown, running = _shown(home)
    if as_json:
        click.echo(json.dumps(shown | {"running": running}, indent=2))
        return
    with loading():
        from rich.console import Console
        from rich.markup import escape
    console = Console(markup=False)  # what devices are called is theirs to say, and no markup of ours
    console.print(f"Mesh [bold]{escape(shown['mesh'])}[/bold], id {shown['id']}", soft_wrap=True, markup=True)
    key = "; its root key is here" if shown["root_key_here"] else ""
    console.print(f"This device: {short(shown['me'])}, {shown['role']} until {_day(shown['expires'])}{key}.")
    for table in _tables(shown, running=running):
        console.print(table)
    if not running:
        console.print("No node runs here: this is what it knew when it last did.")


@click.command()
@click.argument("peer")
@click.option("--reason", default="", help="Why, in one sentence; every member sees it, the revoked one too.")
@click.option(
    "--keep-invited", is_flag=True, help="Keep the devices that came in through PEER and that this device knows."
)
@click.option("--disown", is_flag=True, help="With the root key: nothing counts any more that PEER revoked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@home_option
@friendly
def revoke(
    peer: str,
    reason: str,
    keep_invited: bool,  # noqa: FBT001 - click passes flags by name
    disown: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    home: Path,
) -> None:
    """Throw PEER out of the mesh for good: a peer id, its short form, or a device's name.

    Needs the role admin, or the root key. Devices that came in through PEER are out as well, unless they are kept.
    """
    from .authority import refusal_of
    from .members import find, guests_of

    shown, _ = _shown(home)
    if why := refusal_of(shown):
        raise Refused(why)
    meant = find(peer, shown)
    guests = guests_of(meant["id"], shown)
    keep_invited = _confirm(meant, guests, keep_invited=keep_invited, yes=yes)
    running = _revoke(home, meant["id"], reason=reason, keep_invited=keep_invited, disown=disown)
    click.echo(f"Revoked {meant['device']} ({short(meant['id'])}).")
    if guests:
        _tell_of_guests(guests, kept=keep_invited)
    if not running:
        click.echo("No node runs here: it takes effect when this one is up and meets the others (`lepton-node up`).")


def _confirm(meant: Mapping[str, Any], guests: list[dict[str, Any]], *, keep_invited: bool, yes: bool) -> bool:
    """Show what will happen and ask, in a terminal; return whether guests are kept. Raises UsageError for a no."""
    from .members import names

    who = f"{meant['device']} ({meant['id']}, {meant['role']})"
    if meant["this"]:
        who += ", which is this device itself"
    if yes:
        return keep_invited
    if not _is_terminal():
        msg = f"To revoke {who} without a terminal, say --yes: it cannot be taken back."
        raise UsageError(msg)
    click.echo(f"This throws out {who} for good.")
    if guests and not keep_invited:
        click.echo(f"These came in through it: {names(guests)}.")
        keep_invited = click.confirm("Keep them? Answer no if it was stolen and you do not know all of them")
    if not click.confirm("Revoke it?"):
        msg = "Nothing was revoked."
        raise UsageError(msg)
    return keep_invited


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _tell_of_guests(guests: list[dict[str, Any]], *, kept: bool) -> None:
    from .members import names

    if kept:
        click.echo(f"Kept, though they came in through it: {names(guests)}.")
    else:
        click.echo(f"Out as well, for they came in through it: {names(guests)}.")
        click.echo("Those that are to stay join again: a new folder on the device, and a code of `lepton-node invite`.")


def _revoke(home: Path, subject: str, *, reason: str, keep_invited: bool, disown: bool) -> bool:
    """Have it done by the node, or without one; whether one runs."""
    from .authority import revoke_stopped
    from .home import Home

    how = {"reason": reason, "keep_invited": keep_invited, "disown": disown}
    try:
        ask(home, "revoke", {"subject": subject, **how})
    except _no_node_runs():
        revoke_stopped(Home(home), subject, **how)  # type: ignore[arg-type]
        return False
    return True


# -- the root key ------------------------------------------------------------------------------------------------------


@mesh.command("export-root")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@home_option
@friendly
def export_root(file: Path, home: Path) -> None:
    """Write the root key to FILE under a passphrase: it brings the mesh back if this device is lost."""
    from .files import write_whole
    from .home import Home
    from .root_file import seal_root
    from .seeing.audit import Audit

    folder = Home(home)
    root = folder.root()
    if root is None:
        msg = f"The root key is not in {folder.path}; it is on the device that made the mesh."
        raise UsageError(msg)
    if file.exists():
        msg = f"{file} is there already; name a new file."
        raise UsageError(msg)
    passphrase = click.prompt("Passphrase for the root key", hide_input=True, confirmation_prompt=True, err=True)
    write_whole(file, seal_root(root, folder.credentials().mesh_name, passphrase))
    Audit(folder.path).note("command", name="mesh export-root", detail=str(file))
    click.echo(f"Wrote the root key to {file}. Keep it away from the devices; whoever has both can do everything.")


@mesh.command("import-root")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@home_option
@friendly
def import_root(file: Path, home: Path) -> None:
    """Put the root key of FILE into this device's folder, which is in that mesh, or becomes its admin."""
    from .home import Home
    from .root_file import FILE_BYTES_MAX, open_root
    from .seeing.audit import Audit

    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        msg = f"{file}: cannot be read: {error.strerror or error}."
        raise UsageError(msg) from error
    passphrase = click.prompt("Passphrase of the root key", hide_input=True, err=True)
    root, mesh_name = open_root(data, passphrase)
    Home(home).take_root(root, mesh_name)
    Audit(Home(home).path).note("command", name="mesh import-root", detail=str(file))
    click.echo(f"The root key of {mesh_name!r} is here now. A node that runs uses it from its next start.")


# -- how it is done ----------------------------------------------------------------------------------------------------


def _shown(home: Path) -> tuple[dict[str, Any], bool]:
    """Return what the node knows of the mesh, or its folder if none runs; and whether one runs."""
    from .authority import show_stopped
    from .home import Home

    try:
        shown, _ = ask(home, "mesh")
    except _no_node_runs():
        return all_harmless(show_stopped(Home(home))), False
    return shown, True


def _no_node_runs() -> type[LeptonError]:
    from .control import NoNode

    return NoNode


def _tables(shown: Mapping[str, Any], *, running: bool) -> list["Table"]:
    from rich.table import Table

    called = {member["id"]: member["device"] for member in (*shown["members"], *shown["revoked"])}

    def name(peer: str) -> str:
        return "the root key" if peer == shown["id"] else f"{called.get(peer, '?')} ({short(peer)})"

    members = Table("node", "device", "role", "invited by", "until", "here", title="Members")
    for member in shown["members"]:
        here = "this device" if member["this"] else "yes" if member["here"] else "no" if running else "?"
        row = (short(member["id"]), member["device"], member["role"], name(member["invited_by"]))
        members.add_row(*row, _day(member["expires"]), here)
    if not shown["revoked"]:
        return [members]
    revoked = Table("node", "device", "by", "when", "why", title="Revoked")
    for gone in shown["revoked"]:
        revoked.add_row(short(gone["id"]), gone["device"], name(gone["by"]), _day(gone["issued"]), gone["reason"])
    return [members, revoked]


def _day(unix_s: int) -> str:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%d")
