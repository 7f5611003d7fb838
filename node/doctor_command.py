"""The command that says what hinders this device: whom it hears, why a peer is not here, what to do about it."""

import functools
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .command import EXIT_FAILED, Time, friendly, home_option, loading
from .terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console

    from .diagnosis.facts import Facts, Peer
    from .diagnosis.findings import Finding

_MARKS: Final = {"ok": "[green]ok  [/]", "note": "[cyan]note[/]", "warn": "[yellow]warn[/]", "bad": "[bold red]bad [/]"}

_INDENT: Final = 5
_NARROWEST: Final = 40


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the facts and the findings as JSON.")
@click.option("--peer", default="", metavar="NAME", help="Measure the line to this peer too: a few MB each way.")
@click.option("--at", default="", metavar="ADDRESS", help="Try this address of a node: host:port or a multiaddr.")
@click.option("--listen", "listen_s", default="3s", show_default=True, type=Time(most_s=60), help="How long to listen.")
@home_option
@friendly
def doctor(as_json: bool, peer: str, at: str, listen_s: float, home: Path) -> None:  # noqa: FBT001 - click passes flags by name
    """Say what hinders this device: whom it hears, why a peer is not here, clocks, ports, lines, and what to do.

    It works with a node running, without one, and before there is any mesh; it changes nothing. The exit status is 1
    when something is bad.
    """
    with loading():
        import msgspec
        import trio

        from .diagnosis.collecting import collect
        from .diagnosis.rules import diagnose
        from .home import Home

    if not as_json and sys.stderr.isatty():
        click.echo(f"Listening for {listen_s:g} s ...", err=True)
    facts = trio.run(functools.partial(collect, Home(home), peer=peer, at=at, listen_s=listen_s))
    findings = diagnose(facts)
    if as_json:
        said = {"facts": msgspec.to_builtins(facts), "findings": msgspec.to_builtins(findings)}
        click.echo(json.dumps(said, indent=2))
    else:
        _show(facts, findings)
    if any(finding.severity == "bad" for finding in findings):
        sys.exit(EXIT_FAILED)


def _show(facts: "Facts", findings: Sequence["Finding"]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if facts.peers:
        _show_peers(console, facts)
    for finding in findings:
        _show_one(console, finding)
    console.print(f"\n{_summary(findings)}", markup=False)


def _show_peers(console: "Console", facts: "Facts") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    is_measured = any(peer.down_bytes_s is not None for peer in facts.peers)
    table = Table("device", "is", "heard on", "round trip", "clock", box=box.SIMPLE_HEAD, pad_edge=False)
    if is_measured:
        table.add_column("line")
    for peer in facts.peers:
        heard = sorted({voice.interface for voice in facts.hearing.voices if voice.peer == peer.id})
        cells = [peer.device, _state(peer), ", ".join(heard) or "-", _round_trip(peer), _clock(peer)]
        cells += [_line(peer)] * is_measured
        table.add_row(*(escape(harmless(cell)) for cell in cells))
    console.print(table)


def _state(peer: "Peer") -> str:
    if peer.revoked:
        return "thrown out"
    if peer.here:
        return "here"
    if peer.refusal:
        return "refused"
    return "away"


def _round_trip(peer: "Peer") -> str:
    return f"{peer.round_trip_ms:.1f} ms" if peer.round_trip_ms is not None else "-"


def _clock(peer: "Peer") -> str:
    if peer.skew_s is None:
        return "-"
    return "same" if abs(peer.skew_s) <= 1 + peer.skew_error_s else f"{peer.skew_s:+,.0f} s"


def _line(peer: "Peer") -> str:
    if peer.down_bytes_s is None or peer.up_bytes_s is None:
        return "-"
    return f"{peer.down_bytes_s / 1e6:.1f} in, {peer.up_bytes_s / 1e6:.1f} out MB/s"


def _show_one(console: "Console", finding: "Finding") -> None:
    from rich.markup import escape

    lines = _wrapped(harmless(finding.what), console.width)
    console.print(f"{_MARKS[finding.severity]} {escape(lines[0])}")
    if finding.severity != "ok":
        lines += [line for word, text in (("why: ", finding.why), ("do:  ", finding.do)) if text
                  for line in _wrapped(word + harmless(text), console.width, later=5)]  # fmt: skip
    for line in lines[1:]:
        console.print(" " * _INDENT + line, markup=False)


def _wrapped(text: str, width: int, later: int = 0) -> list[str]:
    """Break a text into lines that fit behind the marks; what is to be typed is not cut at its hyphens."""
    room = max(width, _NARROWEST) - _INDENT
    return textwrap.wrap(text, room, subsequent_indent=" " * later, break_long_words=False, break_on_hyphens=False)


def _summary(findings: Sequence["Finding"]) -> str:
    counts = {name: sum(one.severity == name for one in findings) for name in ("bad", "warn", "note")}
    if not (counts["bad"] or counts["warn"]):
        return "Nothing hinders this device."
    words = {"bad": "bad", "warn": "to look at", "note": "to know"}
    return ", ".join(f"{count} {words[name]}" for name, count in counts.items() if count) + "; the worst is last."
