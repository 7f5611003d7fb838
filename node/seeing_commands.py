"""`lepton-node dashboard` and `audit`: the page in a browser, and what happened."""

import datetime as dt
import json
import webbrowser
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from ..mesh.errors import UsageError
from ..mesh.identity import PeerId, short
from .command import ask, friendly, home_option


@click.command()
@click.option("--open", "opens", is_flag=True, help="Open it in this device's browser.")
@home_option
@friendly
def dashboard(opens: bool, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Print the dashboard's address, with the key that lets its reader change things. Keep it to yourself.

    Without the key whoever reaches the address can look only. It is another one at each start of the node.
    """
    link, _ = ask(home, "dashboard")
    if not link:
        raise UsageError("This node serves no pages: web.listen is off. Start it with --web 127.0.0.1:7533.")
    click.echo(link)
    if opens and not webbrowser.open(link):
        raise UsageError("No browser was found on this device; open the address yourself.")


@click.command()
@click.option("--last", default=100, show_default=True, type=click.IntRange(1, 100_000), help="So many entries.")
@click.option("--what", default=None, help="Only entries of this kind: joined, refused, revoked, deployed, ...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per entry.")
@home_option
@friendly
def audit(last: int, what: str | None, as_json: bool, home: Path) -> None:  # noqa: FBT001
    """Show who joined, was refused or thrown out, what was deployed and which commands were given, the oldest first."""
    from .home import Home
    from .seeing.audit import KINDS, read
    from .web.dashboard.words import ROOT

    if what is not None and what not in KINDS:
        raise UsageError(f"There are no entries {what!r}; choose of {', '.join(KINDS)}.")
    folder = Home(home)
    entries = [entry for entry in read(folder.path) if what in {None, entry.what}][-last:]
    if as_json:
        for entry in entries:
            click.echo(json.dumps(msgspec.to_builtins(entry)))
        return
    names: dict[str, str] = {}
    if folder.in_mesh:
        names = {**{known.peer: known.device for known in folder.members()}, folder.credentials().root: ROOT}
    for entry in entries:
        click.echo(_line(msgspec.to_builtins(entry), names))
    if not entries:
        click.echo("Nothing of the kind has happened here.")


def _line(entry: Mapping[str, object], names: Mapping[str, str]) -> str:
    from .web.dashboard.words import REASON_MAX, shown

    def who(peer: object) -> str:
        device = str(entry.get("device") or names.get(str(peer), ""))
        return f"{shown(device)} ({short(PeerId(str(peer)))})" if device else short(PeerId(str(peer)))

    at = dt.datetime.fromtimestamp(float(str(entry["at"])), tz=dt.UTC).astimezone()
    parts = [f"{at:%Y-%m-%d %H:%M:%S}", f"{entry['what']:<9}"]
    parts += [who(entry["who"])] if entry.get("who") else []
    parts += [f"by {names.get(str(entry['by']), short(PeerId(str(entry['by']))))}"] if entry.get("by") else []
    parts += [shown(str(entry[key]), REASON_MAX) for key in ("name", "detail") if entry.get(key)]
    parts += [f"(and {entry['also']} more)"] if entry.get("also") else []
    return "  ".join(shown(part, 2 * REASON_MAX) if "\n" in part else part for part in parts)
