"""The candidates of a search for people: a table with the front marked, and a picture of size, latency and loss.

The picture is drawn by matplotlib, which the extra `lepton-node[plot]` installs.
"""

import importlib.util
from pathlib import Path
from typing import Any

from rich.table import Table

from ....mesh.errors import UsageError
from .picking import Tried, front
from .recipes import said
from .searching import Outcome, why_not
from .targets import Limits

Found = Outcome[Any]


def table_of(found: Found, quality: str) -> Table:
    """Return all candidates, in the order in which they were tried; ``*`` marks the front, ``>`` what was taken."""
    table = Table("", "", "kB", "", "ms", "", quality, "lost", "", box=None)
    for column in table.columns[:8]:
        column.no_wrap = True
    for column in table.columns[2:8]:
        column.justify = "right"
    on_front = front(found.tried)
    before = found.before
    table.add_row(
        "", "as it is", f"{before.size_bytes / 1000:,.1f}", "", f"{before.latency_s * 1000:.3f}", "",
        f"{before.quality:.3f}", "", "",
    )  # fmt: skip
    for each in found.tried:
        mark = ">" if each is found.picked else "*" if each in on_front else ""
        table.add_row(mark, said(each.recipe), *_cells(each, found))
    return table


def _cells(each: Tried, found: Found) -> tuple[str, ...]:
    why = why_not(each, found.before, found.limits)
    if (figures := each.figures) is None:
        return "", "", "", "", "", "", why.partition(":")[0]  # what is behind it is of single layers
    return (
        f"{figures.size_bytes / 1000:,.1f}",
        f"{figures.size_bytes / found.before.size_bytes:.3f}x",
        f"{figures.latency_s * 1000:.3f}",
        f"{figures.latency_s / found.before.latency_s:.2f}x",
        f"{figures.quality:.3f}",
        f"{figures.lost:+.2f}",
        why,
    )


def require_plot(path: Path) -> None:
    """Raise UsageError where no picture can be made at the end: better now than after the search."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("The front is drawn by matplotlib; install it with: pip install 'lepton-node[plot]'")
    if path.suffix not in {".png", ".svg"} or not path.parent.is_dir():
        raise UsageError(f"{path}: name a .png or .svg file in a folder that is there, as in --plot front.png.")


def draw(found: Found, quality: str, path: Path) -> None:
    """Write the picture: what is lost over the size, and over the latency; the front is joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    measured = [each for each in found.tried if each.figures is not None]
    on_front = front(measured)
    for place, (axis, label, bound) in enumerate(_axes(found.limits), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.set(xlabel=label, ylabel=f"{quality} lost", xscale="log")
        for each in measured:
            at = _point(each, axis)
            axes.plot(*at, "o", color="tab:blue" if each in on_front else "lightgrey", zorder=2)
            axes.annotate(said(each.recipe), at, fontsize=6, xytext=(3, 3), textcoords="offset points")
        line = sorted(_point(each, axis) for each in on_front)
        axes.plot([x for x, _ in line], [y for _, y in line], color="tab:blue", alpha=0.3, zorder=1)
        axes.plot(*_before(found, axis), "k^", label="as it is")
        if found.picked is not None:
            axes.plot(*_point(found.picked, axis), "o", ms=12, mfc="none", mec="tab:red", label="taken")
        if bound is not None:
            axes.axvline(bound, color="tab:red", ls=":", lw=1)
        if found.limits.lost is not None:
            axes.axhline(found.limits.lost, color="tab:red", ls=":", lw=1)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}; name another file.") from error


def _axes(limits: Limits) -> list[tuple[str, str, float | None]]:
    size = None if limits.size_bytes is None else limits.size_bytes / 1000
    latency = None if limits.latency_s is None else 1000 * limits.latency_s
    return [("size", "size, kB", size), ("latency", "latency, ms", latency)]


def _point(each: Tried, axis: str) -> tuple[float, float]:
    assert each.figures is not None
    x = each.figures.size_bytes / 1000 if axis == "size" else each.figures.latency_s * 1000
    return x, each.figures.lost


def _before(found: Found, axis: str) -> tuple[float, float]:
    return (found.before.size_bytes / 1000 if axis == "size" else found.before.latency_s * 1000), 0.0
