"""What nodes said of their training, kept for curves that are looked at later. Pure and bounded.

Each curve holds at most ``POINTS_MAX`` points: when it is full every second one goes, so a long task is as wide on the
screen as a short one. Points are numbered as they come, so a page that has some asks for those behind them.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

POINTS_MAX: Final = 512
TASKS_MAX: Final = 16  # the latest: a version of a task is one
NODES_MAX: Final = 64  # of one task

Point = tuple[int, int, float | None, float | None]  # number, round, score, loss


@dataclass(slots=True)
class _Curve:
    points: list[Point] = field(default_factory=list)
    thinned: int = 0  # how often every second point went: a page that has them all starts anew


@dataclass(slots=True)
class History:
    """The curves of all tasks, by name and version, then by node."""

    _tasks: "OrderedDict[tuple[str, int], dict[str, _Curve]]" = field(default_factory=OrderedDict)
    _number: int = 0

    def note(self, task: str, version: int, node: str, *, round_: int, score: float | None, loss: float | None) -> None:
        """Take in where a node stands; what it said before is no news."""
        if score is None and loss is None:
            return
        curves = self._tasks.setdefault((task, version), {})
        while len(self._tasks) > TASKS_MAX:
            self._tasks.popitem(last=False)
        if node not in curves and len(curves) >= NODES_MAX:
            return
        curve = curves.setdefault(node, _Curve())
        if curve.points and curve.points[-1][1:] == (round_, score, loss):
            return
        self._number += 1
        point = (self._number, round_, score, loss)
        if curve.points and curve.points[-1][1] == round_:
            curve.points[-1] = point
            return
        curve.points.append(point)
        if len(curve.points) > POINTS_MAX:
            curve.points = [*curve.points[:-1:2], curve.points[-1]]
            curve.thinned += 1

    def told(self, task: str, version: int, *, after: int = 0) -> dict[str, Any]:
        """Return the points behind a number: by node how often its curve was thinned, rounds, scores and losses."""
        curves = self._tasks.get((task, version), {})
        return {
            "task": task,
            "version": version,
            "last": max((curve.points[-1][0] for curve in curves.values() if curve.points), default=0),
            "nodes": {
                node: {"thinned": curve.thinned, "points": [point[1:] for point in curve.points if point[0] > after]}
                for node, curve in sorted(curves.items())
            },
        }
