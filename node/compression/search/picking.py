"""Which of the models that were measured is taken. Pure.

The rule: what breaks a bound, is not smaller than the model was, or not quicker where that was asked for, is out. Of
the rest the smallest is taken where it was said what quality may be lost, and else the one that loses least; of equals
the smaller, then the quicker, then the first. Where nothing is left, the nearest is the one whose figures are beyond
their bounds by the least share in all.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from .recipes import Recipe
from .targets import Limits

_SAME_LATENCY: Final = 0.05  # of medians that were measured in turns, on a machine that does other things too


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a model."""

    size_bytes: int  # of its weights' file
    latency_s: float  # of one answer, or of one token
    quality: float  # points of accuracy, or perplexity
    lost: float = 0.0  # points, or per cent of perplexity, against the model as it was; less than 0: it got better


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe, and what came of it; without figures, why it was not measured."""

    recipe: Recipe
    figures: Figures | None = None
    why: str = ""


def breaks(figures: Figures, before: Figures, limits: Limits) -> tuple[str, ...]:
    """Say which bounds a model does not keep, and what it lacks besides; nothing where it may be taken."""
    found = [name for name, over in _over(figures, limits) if over > 0]
    if figures.size_bytes >= before.size_bytes:
        found.append("not smaller")
    if limits.latency_s is not None and figures.latency_s >= before.latency_s:
        found.append("not faster")
    return tuple(found)


def pick(tried: Iterable[Tried], before: Figures, limits: Limits) -> Tried | None:
    """Return the one to take, by the rule above; None where none may be."""
    good = [each for each in tried if each.figures is not None and not breaks(each.figures, before, limits)]
    return min(good, key=lambda each: _rank(each.figures, limits), default=None)


def nearest(tried: Iterable[Tried], before: Figures, limits: Limits) -> list[Tried]:
    """Return what was measured, the nearest to the bounds first; what is not smaller is not among it."""
    small = [each for each in tried if each.figures is not None and each.figures.size_bytes < before.size_bytes]
    return sorted(small, key=lambda each: (_beyond(each.figures, limits), _rank(each.figures, limits)))


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Return those that no other beats: none is smaller, quicker or better without being worse in another of these."""
    measured = [each for each in tried if each.figures is not None]
    return [each for each in measured if not any(_beats(other.figures, each.figures) for other in measured)]


def _rank(figures: Figures | None, limits: Limits) -> tuple[float, float, float]:
    assert figures is not None
    if limits.lost is not None:
        return figures.size_bytes, figures.lost, figures.latency_s
    return figures.lost, figures.size_bytes, figures.latency_s


def _beyond(figures: Figures | None, limits: Limits) -> float:
    assert figures is not None
    return sum(max(over, 0.0) for _, over in _over(figures, limits))


def _over(figures: Figures, limits: Limits) -> list[tuple[str, float]]:
    """Return by what share of each bound a model is beyond it. One point of quality counts where none may be lost."""
    found = []
    if limits.size_bytes is not None:
        found.append(("size", figures.size_bytes / limits.size_bytes - 1))
    if limits.latency_s is not None:
        found.append(("latency", figures.latency_s / limits.latency_s - 1))
    if limits.lost is not None:
        found.append(("quality", (figures.lost - limits.lost) / (limits.lost or 1.0)))
    return found


def _beats(one: Figures | None, other: Figures | None) -> bool:
    assert one is not None
    assert other is not None
    quicker = one.latency_s < (1 - _SAME_LATENCY) * other.latency_s
    slower = one.latency_s > (1 + _SAME_LATENCY) * other.latency_s
    if slower or one.size_bytes > other.size_bytes or one.lost > other.lost:
        return False
    return quicker or one.size_bytes < other.size_bytes or one.lost < other.lost
