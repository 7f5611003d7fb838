"""One page that one can show in a meeting: it holds all that it needs, and asks the network for nothing.

The charts are uPlot's (MIT, 51 kB, which the dashboard has too): plotly puts 4.5 MB into every page, 15 MB on the disk.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2
import numpy as np

from ....node.web import dashboard
from ..outcome import Outcome, Row
from . import archive, table, words

POINTS_MAX: Final = 40_000  # of all runs together, some 70 bytes each: pages of 3 MB open at once in any browser
_POINTS_MIN: Final = 50  # a curve of fewer says little
_BINS: Final = 30
_NAMED: Final = 5  # best and worst nodes of each run
_RUNS_NAMED: Final = 12  # more lists than that nobody reads
_DIGITS: Final = 5  # of every number in the charts: finer than any screen
_KEYS: Final = tuple(key for key in Row.__struct_fields__ if key != "extra")


def page(outcomes: Mapping[str, Outcome], title: str, *, caption: str = "") -> str:
    """Return the whole page as HTML. Labels, names and settings may hold anything: they are escaped.

    ``caption`` says what means and bands are over, where that is not the nodes of one run.
    """
    lines = table.lines(outcomes)
    return _template().render(
        title=title,
        caption=caption,
        outcomes=outcomes,
        told=words.told,
        cards=_cards(outcomes, "seed" if caption else "node"),
        head=lines[0],
        lines=lines[1:],
        footnote=caption or table.footnote(outcomes),
        settings=_settings(outcomes),
        extremes=[_extremes(label, one) for label, one in list(outcomes.items())[:_RUNS_NAMED]],
        data=_data(outcomes),
        css=[_chart("uplot.css"), _part("page.css")],
        scripts=[_chart("uplot.js"), _part("page.js")],
    )


@cache
def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


@cache
def _chart(name: str) -> str:
    return (resources.files(dashboard) / "static" / name).read_text("utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_part("page.html"))


def _data(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return what the charts draw."""
    each = max(_POINTS_MIN, POINTS_MAX // max(1, len(outcomes)))
    kinds = sorted({words.quality(outcome.scenario) for outcome in outcomes.values()})
    measures = archive.measures(outcomes)
    runs = [{"label": label, **_columns(thinned(one.rows, each), measures)} for label, one in outcomes.items()]
    return {"quality": " or ".join(kinds), "measures": measures, "runs": runs, "histogram": _histogram(outcomes)}


def thinned(rows: Sequence[Row], points_max: int) -> Sequence[Row]:
    """Return every k-th row and the last one."""
    step = -(-len(rows) // points_max)
    return [*rows[: -1 : max(1, step)], *rows[-1:]]


def _columns(rows: Sequence[Row], measures: Sequence[str]) -> dict[str, list[float | None]]:
    columns = {key: [_short(getattr(row, key)) for row in rows] for key in _KEYS}
    return columns | {f"measure {name}": [_short(row.extra.get(name, math.nan)) for row in rows] for name in measures}


def _short(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None


def _histogram(outcomes: Mapping[str, Outcome]) -> dict[str, list[Any]]:
    """Return how quality spreads over nodes at the end: edges of bins, and a share in percent for each, by run."""
    finals = [np.asarray(outcome.final, np.float64) for outcome in outcomes.values()]
    finals = [values[np.isfinite(values)] for values in finals]
    every = np.concatenate([*finals, np.zeros(0)])
    if not every.size:
        return {"edges": [], "shares": []}
    edges = np.histogram_bin_edges(every, _BINS)
    shares = [np.histogram(values, edges)[0] * (100 / max(1, values.size)) for values in finals]
    return {"edges": [_short(edge) for edge in edges], "shares": [[_short(one) for one in share] for share in shares]}


def _cards(outcomes: Mapping[str, Outcome], of: str) -> list[tuple[str, str]]:
    """Return what one run came to, as the few figures that one remembers."""
    outcome = next(iter(outcomes.values()), None)
    if outcome is None or not outcome.rows:
        return []
    last, what = outcome.rows[-1], words.quality(outcome.scenario)
    return [
        (f"mean {what}", table.number(last.mean)),
        (f"worst {of}", table.number(last.worst)),
        (f"best {of}", table.number(last.best)),
        *((name, table.number(value)) for name, value in last.extra.items()),
        ("MB sent by a node", table.megabytes(last.megabytes_sent)),
        ("simulated time", table.duration(last.seconds)),
        ("nodes", f"{outcome.scenario.nodes:,}"),
    ]


def _settings(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """Return every setting with its values: one if the runs agree on it, else one a run."""
    every = [words.settings(outcome.scenario) for outcome in outcomes.values()]
    rows = []
    for key in every[0] if every else ():
        values = [table.shown(one[key]) for one in every]
        alike = len(set(values)) == 1
        rows.append({"key": key, "values": values[:1] if alike else values, "alike": alike})
    return rows


def _extremes(label: str, outcome: Outcome) -> dict[str, Any]:
    """Return the nodes that ended best and worst, by name."""
    named = [
        (outcome.names[place] if place < len(outcome.names) else f"node {place}", table.number(value), value)
        for place, value in enumerate(outcome.final)
        if np.isfinite(value)
    ]
    ordered = sorted(named, key=lambda one: one[2], reverse=True)
    few = min(_NAMED, len(ordered) // 2) or len(ordered)
    return {"label": label, "best": ordered[:few], "worst": ordered[::-1][:few], "nodes": len(ordered)}
