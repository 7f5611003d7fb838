"""Watching a task from a terminal: a live table, plain lines, or JSON lines."""

import json
import math
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .curves import Curves

Nodes = Mapping[str, Mapping[str, Any]]


class Watch:
    """Shows where every node stands, as often as that is told."""

    def __init__(self, rounds: int, policy: str, *, plain: bool, as_json: bool, curves: Curves | None = None) -> None:
        self._rounds, self._policy = rounds, policy
        self._plain = plain or not sys.stdout.isatty()
        self._as_json = as_json
        self._curves = curves
        self._console = Console(markup=False)  # others' reasons are no markup
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
        )
        self._bar = self._progress.add_task("training", total=rounds)
        self._live = Live(console=self._console, refresh_per_second=8)
        self._last = ""
        self._hears_rounds = False
        self._states: list[tuple[str, Any, Any]] = []

    def __enter__(self) -> Self:
        if not (self._plain or self._as_json):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not (self._plain or self._as_json):
            self._live.stop()

    def hear(self, item: Mapping[str, Any]) -> None:
        """Show what the node tells: a round that it finished, or where all stand."""
        if "round" not in item:
            self.show(item["nodes"])
        elif self._as_json:
            click.echo(json.dumps(item))
        elif self._plain:
            self._hears_rounds = True
            click.echo(_round_line(item["round"]))

    def show(self, nodes: Nodes) -> None:
        """Show one state of the task."""
        if self._curves is not None:
            self._curves.note(nodes)
        if self._as_json:
            self._print_once(json.dumps({"nodes": nodes}))
        elif self._plain:
            states = [(peer, node["state"], node.get("reason")) for peer, node in sorted(nodes.items())]
            if not self._hears_rounds or states != self._states:  # this node's rounds have lines of their own
                self._print_once(_line(nodes, self._rounds))
            self._states = states
        else:
            self._progress.update(
                self._bar, completed=min((node.get("round", 0) for node in nodes.values()), default=0)
            )
            self._live.update(Group(self._progress, table(nodes, self._policy)))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Show what came of it."""
        if self._curves is not None:
            self._curves.note(result["nodes"])
            self._curves.save(f"{result['task']} (version {result['version']}, {self._policy})")
        if self._as_json:
            click.echo(json.dumps(result))
            return
        self._hears_rounds = False
        self.show(result["nodes"])
        if self._plain:
            self._console.print(table(result["nodes"], self._policy))
        click.echo(f"{result['task']!r} is trained: version {result['version']}, {result['rounds']} rounds.")

    def _print_once(self, line: str) -> None:
        if line != self._last:
            click.echo(line)
        self._last = line


def table(nodes: Nodes, policy: str) -> Table:
    """Return one row per node: what it has, how well its model does, what it sent; below it what hinders them."""
    drawn = Table(
        "node", "state", "round", "samples", "alone", "in the mesh", "loss", "sent", "misses", title=f"Policy: {policy}"
    )
    private = any(node.get("epsilon") is not None for node in nodes.values())
    if private:
        drawn.add_column("epsilon")
    for peer, node in sorted(nodes.items()):
        drawn.add_row(
            peer[-8:],
            node["state"],
            str(node.get("round", 0)),
            str(node.get("samples", 0)),
            score(node, "_alone"),
            score(node),
            f"{node['loss']:.3f}" if node.get("loss") is not None else "",
            f"{node.get('bytes_sent', 0) / 1000:,.0f} kB",
            str(node.get("deadline_misses", 0)),
            *([_epsilon(node)] if private else []),
        )
    reasons = sorted({node["reason"] for node in nodes.values() if node.get("reason")})
    drawn.caption = "; ".join(reasons) or None
    return drawn


def _line(nodes: Nodes, rounds: int) -> str:
    parts = [
        f"{peer[-8:]} {node['state']} {node.get('round', 0)}/{rounds} {score(node)}".rstrip()
        + (f" ({node['reason']})" if node.get("reason") else "")
        for peer, node in sorted(nodes.items())
    ]
    return "  ".join(parts) or "waiting for nodes"


def _round_line(said: Mapping[str, Any]) -> str:
    loss = f"loss {said['loss']:.4f}" if said["loss"] is not None else "loss not told"
    how = [loss, score(said)] if score(said) else [loss]
    done = f"{said['members']} members, {said['bytes_sent'] / 1000:,.0f} kB sent, {said['deadline_misses']} misses"
    return f"round {said['round']}/{said['rounds']}: {', '.join([*how, done])}" + (
        f" ({said['reason']})" if said["reason"] else ""
    )


def _epsilon(node: Mapping[str, Any]) -> str:
    """Round up: what is shown must not be less than what was spent."""
    value = node.get("epsilon")
    return f"{math.ceil(value * 100) / 100:.2f} at delta {node.get('delta')}" if value is not None else ""


def score(node: Mapping[str, Any], of: str = "") -> str:
    """Say how well a node's model does: the share that it gets right, or R2 where it predicts values."""
    if node.get(f"r2{of}") is not None:
        return f"R2 {node[f'r2{of}']:.3f}"
    return f"{node[f'accuracy{of}']:.1%}" if node.get(f"accuracy{of}") is not None else ""
