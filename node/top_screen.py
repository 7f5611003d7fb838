"""How the mesh looks in a terminal: tables that fit 80 columns and as many lines as there are."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .watch import score

Said = Mapping[str, Any]
_NODES_MAX: Final = 12  # rows of one table: with all tables some 40 lines
_ROWS_MAX: Final = 8
_LOG_LINES: Final = 6
_NEARLY_ALL: Final = 90  # per cent
_FAR_MS: Final = 64.0


class Screen:
    """Draws one look after the other; rates come from what changed between two."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._before: Said | None = None

    def live(self) -> Live:
        """Take over the screen until the block ends."""
        return Live(console=self._console, screen=True, auto_refresh=False)

    def print(self, said: Said) -> None:
        """Show it once, below what is there."""
        self._console.print(self.drawn(said, lines=None))

    def drawn(self, said: Said, *, lines: int | None) -> RenderableType:
        """Return one look at the mesh; with so many lines for it, the log has what the tables leave."""
        before, self._before = self._before, said
        tables = [table for table in (_shards(said), _services(said), _tasks(said)) if table.row_count]
        parts: list[RenderableType] = [_headline(said, before)]
        for table in (_nodes(said, before), *tables):
            parts += ["", table]
        left = _LOG_LINES + 2
        if lines is not None:
            left = lines - len(self._console.render_lines(Group(*parts), pad=False))
        return Group(*parts, *_log(said, left - 2))

    @property
    def lines(self) -> int:
        """How many lines the terminal has now."""
        return self._console.height


def _headline(said: Said, before: Said | None) -> Text:
    sessions, requests, rate = said["sessions"], said["requests"], _rate(said, before)
    parts = [
        f"[bold]{escape(said['mesh'])}[/] seen by [bold]{escape(said['device'])}[/]",
        _count(len(said["nodes"]), "node"),
    ]
    if sessions["asked_here"] or rate:
        parts.append(f"{_count(sessions['asked_here'], 'session')}, {rate:,.0f} tokens/s")
    if requests["asked"]:
        parts.append(
            _count(requests["asked"], "request") + (f", {requests['failed']} failed" if requests["failed"] else "")
        )
    if said["refusals"]:
        parts.append(f"[yellow]{_count(len(said['refusals']), 'refusal')}[/]")
    if said["thrown_out"]:
        parts.append("[bold red]thrown out[/]")
    return Text.from_markup("  ".join(parts))


def _rate(said: Said, before: Said | None) -> float:
    if before is None or said["at_s"] <= before["at_s"]:
        return 0.0
    more = said["sessions"]["tokens"] - before["sessions"]["tokens"]
    return max(0.0, float(more / (said["at_s"] - before["at_s"])))


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True, padding=(0, 1, 0, 0))


# -- nodes -------------------------------------------------------------------------------------------------------------


def _nodes(said: Said, before: Said | None) -> Table:
    table = _table("node", "role", "link", "cpu", "memory", "takes", "in", "out")
    earlier = {one["id"]: one for one in before["nodes"]} if before is not None else {}
    passed_s = said["at_s"] - before["at_s"] if before is not None else 0.0
    for one in sorted(said["nodes"], key=lambda one: (not one["this"], one["device"]))[:_NODES_MAX]:
        was = earlier.get(one["id"], one)
        flows = [_flow(one[key] - was[key], passed_s) for key in ("bytes_received", "bytes_sent")]
        table.add_row(
            escape(one["device"]) + (" [dim](this)[/]" if one["this"] else ""),
            one["role"],
            _link(one),
            _busy(one["cpu"]),
            _busy(one["memory"]),
            _unknown(one["process_mib"], " MiB"),
            *(["", ""] if one["this"] else flows),
        )
    _say_more(table, len(said["nodes"]) - _NODES_MAX)
    return table


def _link(one: Said) -> str:
    if one["this"]:
        return ""
    if one["round_trip_ms"] is None:
        return "?" if one["connected"] else "by others"
    text = f"{one['round_trip_ms']:.1f} ms"
    return f"[yellow]{text}[/]" if one["round_trip_ms"] > _FAR_MS else text


def _busy(percent: int | None) -> str:
    text = _unknown(percent, "%")
    return f"[yellow]{text}[/]" if percent is not None and percent >= _NEARLY_ALL else text


def _unknown(value: int | None, unit: str) -> str:
    return "?" if value is None else f"{value}{unit}"


def _flow(moved_bytes: int, passed_s: float) -> str:
    """Say bytes per second; nothing at the first look, and of a connection that is another by now."""
    if passed_s <= 0 or moved_bytes < 0:
        return ""
    rate = moved_bytes / passed_s
    return next((f"{rate / size:.1f} {unit}" for unit, size in (("MB/s", 1e6), ("kB/s", 1e3)) if rate >= size), "")


def _say_more(table: Table, more: int) -> None:
    if more > 0:
        table.caption = f"and {more} more"


# -- what they do ------------------------------------------------------------------------------------------------------


def _names(peers: Sequence[str], said: Said) -> str:
    devices = {one["id"]: one["device"] for one in said["nodes"]}
    return escape(", ".join(devices.get(peer, peer[-8:]) for peer in peers))


def _shards(said: Said) -> Table:
    """Models of both kinds, with who holds which layers."""
    table = _table("model", "layers", "on", "state")
    rows = []
    for model in said["models"]:
        state = "served" if model["served"] else model["trouble"] or "loading"
        stages = model["stages"] or [{"first": 0, "end": model["layers"], "peers": []}]
        rows += [(model["name"], _run(one), _names(one["peers"], said), state) for one in stages]
    for model in said["deployments"]:
        state = "served" if model["served"] else model["trouble"] or "loading"
        rows += [
            (model["name"], _run(one), escape(", ".join(one["devices"])), state) for one in model["stages"] or []
        ] or [(model["name"], "", "", state)]
    for row in rows[:_ROWS_MAX]:
        table.add_row(*row[:3], _state(row[3]))
    _say_more(table, len(rows) - _ROWS_MAX)
    return table


def _run(stage: Said) -> str:
    return f"{stage['first']} to {stage['end'] - 1}"


def _state(state: str) -> str:
    colours = {"served": "green", "ready": "green", "done": "green", "failed": "red"}
    return f"[{colours[state]}]{state}[/]" if state in colours else escape(state)


def _services(said: Said) -> Table:
    table = _table("service", "version", "instances", "on", "calls", "queue", "restarts")
    for one in said["services"][:_ROWS_MAX]:
        ready = one["states"].get("ready", 0)
        others = [f"{count} {state}" for state, count in sorted(one["states"].items()) if state != "ready"]
        instances = f"{ready}/{one['replicas']}" + "".join(f", {other}" for other in others)
        table.add_row(
            one["name"],
            escape(", ".join(one["versions"])),
            instances if ready >= one["replicas"] else f"[yellow]{instances}[/]",
            _names(one["on"], said),
            str(one["running"]),
            f"{one['queue_ms']:.0f} ms",
            str(one["restarts"]),
        )
    troubles = [f"{one['name']}: {one['trouble']}" for one in said["services"] if one["trouble"]]
    table.caption = escape("; ".join(troubles)) or None
    return table


def _tasks(said: Said) -> Table:
    """One line for each task: the nodes in it, how far they are, and how well the worst and the best of them do."""
    table = _table("task", "policy", "nodes", "round", "worst", "best", "state")
    for task in said["tasks"][-_ROWS_MAX:]:
        nodes = list(task["nodes"].values())
        rounds = [node.get("round", 0) for node in nodes]
        far = f"{min(rounds)}" if len(set(rounds)) == 1 else f"{min(rounds, default=0)} to {max(rounds, default=0)}"
        made = not nodes and any(
            model["name"] == task["name"] and model["version"] >= task["version"] for model in said["models"]
        )
        scored = sorted((node for node in nodes if score(node)), key=_value)
        states = sorted({node["state"] for node in nodes}) or ["done" if made else "no node yet"]
        table.add_row(
            escape(task["name"]),
            task["policy"],
            str(len(nodes)),
            far + (f" of {task['rounds']}" if task["rounds"] else "") if nodes else "",
            score(scored[0]) if scored else "",
            score(scored[-1]) if scored else "",
            ", ".join(map(_state, states)),
        )
    _say_more(table, len(said["tasks"]) - _ROWS_MAX)
    return table


def _value(node: Said) -> float:
    value = node.get("r2") if node.get("r2") is not None else node.get("accuracy")
    return 0.0 if value is None else float(value)


def _log(said: Said, count: int) -> list[RenderableType]:
    """The last lines of this node's log; a refusal or a warning in colour. Long ones are cut at the edge."""
    lines = said["log"][-count:] if count > 0 else []
    drawn: list[RenderableType] = ["", Text("log", style="bold")] if lines else []
    for line in lines:
        style = "yellow" if "warning: " in line or "error: " in line else "dim"
        drawn.append(Text(line, style=style, no_wrap=True, overflow="ellipsis"))
    return drawn
