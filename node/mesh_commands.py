"""The commands by which an owner makes a mesh and lets devices in."""

import functools
import sys
from pathlib import Path

import click

from ..mesh.errors import LeptonError
from .command import Time, ask, friendly, home_option, interface_option, loading, time_text


@click.group()
def mesh() -> None:
    """Make a mesh and look at it."""


@mesh.command("create")
@click.argument("name")
@home_option
@friendly
def mesh_create(name: str, home: Path) -> None:
    """Make a mesh called NAME. Its root key stays in this device's folder."""
    from .setup import create_mesh

    root = create_mesh(home, name)
    click.echo(f"Made the mesh {name!r}. This device is its first admin; the root key stays in {home.expanduser()}.")
    click.echo(f"Its id: {root}")
    click.echo("Next: `lepton-node up` here, and `lepton-node invite` for each device that may join.")


@click.command()
@click.option(
    "--role",
    default="member",
    show_default=True,
    help="client (only asks), trainer (only trains), member (both, and holds layers of models and runs services) or "
    "admin. More behind a comma: client,host:eyes also holds or runs what is called eyes.",
)
@click.option("--uses", default=1, show_default=True, type=click.IntRange(min=1), help="How many devices may use it.")
@click.option(
    "--expires", "lifetime_s", default="1h", show_default=True, type=Time(least_s=1), help="How long it is good."
)
@home_option
@friendly
def invite(role: str, uses: int, lifetime_s: float, home: Path) -> None:
    """Print a short code with which another device can join, once and for a while."""
    try:
        code, _ = ask(home, "invite", {"role": role, "uses": uses, "lifetime_s": lifetime_s})
    except _no_node_runs():
        code = _invite_offline(home, role=role, uses=uses, lifetime_s=lifetime_s)
        click.echo("No node runs here: start it with `lepton-node up` before the code is used.", err=True)
    click.echo(code)
    if sys.stdout.isatty():
        _show_to_people(code, time_text(lifetime_s))


def _show_to_people(code: str, expires: str) -> None:
    import segno

    segno.make(code, micro=False).terminal(compact=True)
    click.echo(f"On the other device, within {expires}: `lepton-node join {code}`. Tell the code to nobody else.")


@click.command()
@click.argument("code")
@click.option("--at", metavar="ADDRESS", help="The inviting node: host:port or a multiaddr. Default: found by mDNS.")
@click.option("--timeout", "timeout_s", default="20s", show_default=True, type=Time(), help="How long to look for it.")
@home_option
@interface_option
@friendly
def join(code: str, at: str | None, timeout_s: float, home: Path, interfaces: tuple[str, ...]) -> None:
    """Join a mesh with the CODE that `lepton-node invite` printed on one of its devices."""
    with loading():
        import trio

        from .setup import join_mesh

    name = trio.run(functools.partial(join_mesh, home, code, interfaces=interfaces, at=at, timeout_s=timeout_s))
    click.echo(f"Joined the mesh {name!r}. Next: `lepton-node up`.")


def _no_node_runs() -> type[LeptonError]:
    from .control import NoNode

    return NoNode


def _invite_offline(home: Path, *, role: str, uses: int, lifetime_s: float) -> str:
    """Open an invite while no node runs, for the node to honour once it does."""
    from .setup import open_invite

    return open_invite(home, role=role, uses=uses, lifetime_s=lifetime_s)
