"""The table of a comparison: one line a run, in the order in which they were named."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from ..outcome import Outcome
from . import archive
from .words import quality, settings

_LEFT: Final = ("run", "mean", "worst", "best")
_RIGHT: Final = ("loss", "consensus", "MB a node", "simulated", "rounds", "nodes")


def lines(outcomes: Mapping[str, Outcome]) -> list[tuple[str, ...]]:
    """Return a head, and under it what each run came to; what its data measure beside quality comes after that."""
    measures = archive.measures(outcomes)
    return [(*_LEFT, *measures, *_RIGHT), *(_line(label, one, measures) for label, one in outcomes.items())]


def text(outcomes: Mapping[str, Outcome]) -> str:
    """Return the table as plain text: the run to the left, numbers to the right."""
    return aligned(lines(outcomes)) + "\n\n" + footnote(outcomes)


def footnote(outcomes: Mapping[str, Outcome]) -> str:
    """Return what the table's words mean for these runs."""
    kinds = " or ".join(sorted({quality(outcome.scenario) for outcome in outcomes.values()}))
    return f"mean, worst and best: {kinds} of the nodes at the end; attackers are not counted."


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows under their head, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    written = [[rows[0][0].ljust(widths[0])], *([row[0].ljust(widths[0])] for row in rows[1:])]
    for row, into in zip(rows, written, strict=True):
        into += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "\n".join("  ".join(cells).rstrip() for cells in written)


def differing(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[str, ...]]:
    """Return the settings in which these runs are not all alike, each with its value by run."""
    every = [settings(outcome.scenario) for outcome in outcomes.values()]
    values = {key: tuple(shown(one[key]) for one in every) for key in every[0]} if every else {}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def shown(value: object) -> str:
    """Return a setting's value as one would write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def number(value: float) -> str:
    """Return a quality or a loss."""
    if not math.isfinite(value):
        return "none"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def megabytes(value: float) -> str:
    """Return a mean of megabytes in a unit of three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return simulated time in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:,.3g} days"


def _line(label: str, outcome: Outcome, measures: Sequence[str]) -> tuple[str, ...]:
    nodes = f"{outcome.scenario.nodes:,}"
    if not outcome.rows:
        return (label, *("none",) * (len(measures) + 7), "0", nodes)
    last = outcome.rows[-1]
    measured = (last.extra.get(name, math.nan) for name in measures)
    return (
        label,
        *map(number, (last.mean, last.worst, last.best, *measured, last.loss, last.consensus)),
        megabytes(last.megabytes_sent),
        duration(last.seconds),
        f"{last.round:,}",
        nodes,
    )
