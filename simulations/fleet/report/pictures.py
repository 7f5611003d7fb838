"""The curves as PNGs, for slides, through matplotlib, which the extra `lepton-node[plot]` installs."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ....mesh.errors import UsageError
from ..outcome import Outcome
from .words import quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RUNS_MAX: Final = 24  # in one picture; the page has them all
_LABEL_MAX: Final = 60  # letters
_ALONG: Final = (("round", "round"), ("seconds", "simulated seconds"), ("megabytes_sent", "MB sent by the mean node"))


def possible() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(outcomes: Mapping[str, Outcome], title: str, folder: Path) -> list[Path]:
    """Write `quality.png` and `spread.png`, and return where. Raises UsageError when a file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    few = dict(list(outcomes.items())[:_RUNS_MAX])
    curves, spread = Figure(figsize=(14, 4.5), layout="constrained"), Figure(figsize=(7, 4.5), layout="constrained")
    for figure in (curves, spread):
        FigureCanvasAgg(figure)
        figure.suptitle(_plain(title))
    for place, (key, label) in enumerate(_ALONG, start=1):
        _curves(curves.add_subplot(1, len(_ALONG), place), few, key, label)
    _spread(spread.add_subplot(1, 1, 1), few)
    return [_save(curves, folder / "quality.png"), _save(spread, folder / "spread.png")]


def _curves(axes: "Axes", outcomes: Mapping[str, Outcome], along: str, label: str) -> None:
    kinds = {quality(outcome.scenario) for outcome in outcomes.values()}
    axes.set(xlabel=label, ylabel=" or ".join(sorted(kinds)))
    for name, outcome in outcomes.items():
        x = [getattr(row, along) for row in outcome.rows]
        (line,) = axes.plot(x, [row.mean for row in outcome.rows], label=_plain(name))
        worst, best = [row.worst for row in outcome.rows], [row.best for row in outcome.rows]
        axes.fill_between(x, worst, best, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.grid(visible=True, alpha=0.3)
    if along == "round" and outcomes:
        axes.legend(fontsize="small")


def _spread(axes: "Axes", outcomes: Mapping[str, Outcome]) -> None:
    """Draw which part of the nodes ended below a quality: readable for any number of runs."""
    axes.set(xlabel="quality of a node at the end", ylabel="part of the nodes that ended below")
    for name, outcome in outcomes.items():
        if final := [value for value in outcome.final if math.isfinite(value)]:
            axes.ecdf(final, label=_plain(name))
    axes.grid(visible=True, alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def _plain(name: str) -> str:
    """Return a label that matplotlib draws as it is: no formula between dollars, and none left out for its `_`."""
    return (" " if name.startswith("_") else "") + name[:_LABEL_MAX].replace("$", r"\$")


def _save(figure: object, file: Path) -> Path:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    try:
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}. Name another --out folder.") from error
    return file
