"""The candidates of a search for people: a table with the front marked, and a picture of size, latency and loss.

The picture is drawn by matplotlib, which the extra `lepton-node[plot]` installs.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from ....mesh.errors import UsageError
from .picking import Tried, front
from .recipes import said
from .searching import Outcome, why_not
from .targets import Limits

Found = Outcome[Any]
Point = tuple[float, float]

_SPAN: Final = 3.0  # from the left of an axis to its right, at least
_ROOM: Final = 1.2  # beside the outermost points
_MARGIN: Final = 0.12  # above and below, for the numbers
_APART: Final = 18.0  # pixels between two points that each get a number of their own


def table_of(found: Found, quality: str) -> Table:
    """Return all candidates, in the order in which they were tried; ``*`` marks the front, ``>`` what was taken."""
    table = Table("", "", "size, kB", "", "latency, ms", "", quality, "lost", "", box=None)
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
    """Write the picture: what is lost over the size, and over the latency; the front is joined by a line.

    Candidates have numbers, and a list beside the picture says which is which.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    measured = [each for each in found.tried if each.figures is not None]
    on_front = front(measured)
    for place, (axis, label, bound) in enumerate(_axes(found.limits), start=1):
        axes = figure.add_subplot(1, 2, place)
        points = [_point(each, axis) for each in measured]
        axes.set(xlabel=label, ylabel=f"{quality}, lost", xscale="log", xlim=_around([*points, _before(found, axis)]))
        for point, each in zip(points, measured, strict=True):
            axes.plot(*point, "o", color="tab:blue" if each in on_front else "lightgrey", zorder=2)
        line = sorted(_point(each, axis) for each in on_front)
        axes.plot([x for x, _ in line], [y for _, y in line], color="tab:blue", alpha=0.3, zorder=1)
        axes.plot(*_before(found, axis), "k^", label="as it is")
        if found.picked is not None:
            axes.plot(*_point(found.picked, axis), "o", ms=12, mfc="none", mec="tab:red", label="taken")
        if bound is not None:
            axes.axvline(bound, color="tab:red", ls=":", lw=1, label="what was asked for")
        if found.limits.lost is not None:
            axes.axhline(found.limits.lost, color="tab:red", ls=":", lw=1)
        _finish(axes, points)
    named = "\n".join(f"{number}  {said(each.recipe)}" for number, each in enumerate(measured, start=1))
    figure.suptitle("Blue: no other candidate beats it", fontsize="medium")
    figure.legend([], [], loc="outside right upper", title=named, title_fontsize="small", alignment="left")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}; name another file.") from error


def _around(points: list[Point]) -> Point:
    """Return where an axis begins and ends: a factor of 3 apart at least, so that noise does not look like a gain."""
    least, most = min(x for x, _ in points), max(x for x, _ in points)
    room = max(_ROOM, (_SPAN * least / most) ** 0.5)
    return least / room, most * room


def _finish(axes: Any, points: list[Point]) -> None:  # noqa: ANN401  matplotlib has no types here
    """Write the numbers of the points, those that would lie on each other in one word, and plain ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.margins(y=_MARGIN)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    heaps: list[tuple[Point, list[int]]] = []
    for number, point in enumerate(points, start=1):
        x, y = axes.transData.transform(point)
        near = (named for (other_x, other_y), named in heaps if abs(x - other_x) < _APART and abs(y - other_y) < _APART)
        if (named := next(near, None)) is None:
            heaps.append(((x, y), [number]))
        else:
            named.append(number)
    for _, named in heaps:
        axes.annotate(
            ", ".join(map(str, named)), points[named[0] - 1], fontsize=8, xytext=(4, 4), textcoords="offset points"
        )


def _axes(limits: Limits) -> list[tuple[str, str, float | None]]:
    size = None if limits.size_bytes is None else limits.size_bytes / 1000
    latency = None if limits.latency_s is None else 1000 * limits.latency_s
    return [("size", "size, kB", size), ("latency", "latency, ms", latency)]


def _point(each: Tried, axis: str) -> Point:
    assert each.figures is not None
    x = each.figures.size_bytes / 1000 if axis == "size" else each.figures.latency_s * 1000
    return x, each.figures.lost


def _before(found: Found, axis: str) -> Point:
    return (found.before.size_bytes / 1000 if axis == "size" else found.before.latency_s * 1000), 0.0
