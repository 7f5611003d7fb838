"""A task's curves as a picture, through matplotlib, which the extra `lepton-node[plot]` installs."""

import importlib.util
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..mesh.errors import UsageError

_POINTS_MAX: Final = 100_000  # of each node, with some 50 bytes each; what comes after is not drawn
_LABELS: Final = {
    "accuracy": "accuracy on the node's own test part",
    "r2": "R2 on the node's own test part",
    "loss": "loss in training",
}


class Curves:
    """What every node said of itself, by round: (round, accuracy or R2) and (round, loss)."""

    def __init__(self, path: Path) -> None:
        """Raise UsageError where no picture can be made at the end: better now than after the training."""
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("Curves are drawn by matplotlib; install it with: pip install 'lepton-node[plot]'")
        if path.suffix != ".png" or not path.parent.is_dir():
            raise UsageError(f"{path}: name a .png file in a folder that is there, as in --plot curves.png.")
        self._path = path
        self._points: dict[str, dict[str, dict[int, float]]] = {
            what: defaultdict(dict) for what in _LABELS
        }  # fmt: skip

    def note(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in where everybody stands."""
        for what, curves in self._points.items():
            for peer, node in nodes.items():
                if node.get(what) is not None and len(curves[peer]) < _POINTS_MAX:
                    curves[peer][node.get("round", 0)] = node[what]

    def save(self, title: str) -> None:
        """Write the picture. Raises UsageError when the file cannot be written."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        drawn = [(what, curves) for what, curves in self._points.items() if curves or what != "r2"]
        if self._points["r2"]:
            drawn = [(what, curves) for what, curves in drawn if what != "accuracy"]
        for place, (what, curves) in enumerate(drawn, start=1):
            axes = figure.add_subplot(1, 2, place)
            axes.set(xlabel="round", ylabel=_LABELS[what])
            for peer, points in sorted(curves.items()):
                axes.plot(*zip(*sorted(points.items()), strict=True), label=peer[-8:])
            axes.grid(visible=True, alpha=0.3)
            if curves and place == 1:
                axes.legend(fontsize="small")
        try:
            figure.savefig(self._path, dpi=120)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"{self._path}: cannot be written: {why}; name another file.") from error
