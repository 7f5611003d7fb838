"""The search: recipes in their order, each made and measured, and of what was made the best one kept.

What cannot reach a bound is not made: where the least that a recipe leaves is too large; where a milder recipe has lost
too much already; where one of the same shapes and bits was clearly too slow. The order is that of the subject, which
puts what takes little time first. Equal seeds try the same recipes in the same order; only the budget knows a clock.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from ....mesh.errors import LeptonError
from .picking import Figures, Tried, breaks, nearest, pick
from .recipes import Recipe, harsher, least_share, same_form
from .targets import Limits, Targets

BUDGET_S: Final = 900.0
CANDIDATES_MAX: Final = 32
_CLEARLY: Final = 1.25  # times the latency that is asked for: nearer than this it may be the other one next time

Made = TypeVar("Made")
OnTried = Callable[[Tried], None]


class Subject(Protocol[Made]):
    """A model with its data: what may be tried on it, made, and measured."""

    def recipes(self) -> Sequence[Recipe]: ...
    def before(self) -> Figures:
        """Measure the model as it is."""
        ...

    def make(self, recipe: Recipe) -> Made:
        """Raises LeptonError for what cannot be made of this model."""
        ...

    def measure(self, made: Made) -> Figures: ...
    def drop(self, made: Made) -> None:
        """Give back what only this one takes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[Made]):
    """All that was tried, and the model to take; ``made`` is the nearest one where none keeps the bounds."""

    before: Figures
    limits: Limits
    tried: tuple[Tried, ...]
    picked: Tried | None
    nearest: tuple[Tried, ...]
    made: Made | None


def search(
    subject: Subject[Made],
    targets: Targets,
    *,
    budget_s: float = BUDGET_S,
    candidates_max: int = CANDIDATES_MAX,
    on_tried: OnTried = lambda _: None,
) -> Outcome[Made]:
    """Try recipes until the time or the number is over; what is begun is finished."""
    begin = time.monotonic()
    before = subject.before()
    limits = targets.limits(before.size_bytes, before.latency_s)
    tried: list[Tried] = []
    kept: tuple[Tried, Made] | None = None
    done = 0
    for recipe in subject.recipes():
        if not (why := hopeless(recipe, before, limits, tried)):
            why = _over(done, candidates_max, time.monotonic() - begin, budget_s)
        if why:
            each = Tried(recipe=recipe, why=why)
        else:
            each, kept = _try(subject, recipe, kept, before, limits)
            done += 1
        tried.append(each)
        on_tried(each)
    picked = pick(tried, before, limits)
    return Outcome(
        before=before,
        limits=limits,
        tried=tuple(tried),
        picked=picked,
        nearest=tuple(nearest(tried, before, limits)),
        made=None if kept is None else kept[1],
    )


def hopeless(recipe: Recipe, before: Figures, limits: Limits, tried: Sequence[Tried]) -> str:
    """Say why a recipe cannot keep the bounds, by what is known of it and of those before; empty: it might."""
    if limits.size_bytes is not None and least_share(recipe) * before.size_bytes > limits.size_bytes:
        return f"at least {least_share(recipe) * before.size_bytes:,.0f} bytes"
    for each in tried:
        if each.figures is None:
            continue
        if limits.lost is not None and each.figures.lost > limits.lost and harsher(recipe, each.recipe):
            return "a milder one lost too much"
        slow = limits.latency_s is not None and each.figures.latency_s > _CLEARLY * limits.latency_s
        if slow and same_form(recipe, each.recipe):
            return "one of the same shapes was too slow"
    return ""


def _over(done: int, candidates_max: int, taken_s: float, budget_s: float) -> str:
    if done >= candidates_max:
        return f"{candidates_max} were tried"
    return f"the {budget_s:,.0f} s were over" if taken_s > budget_s else ""


def _try(
    subject: Subject[Made], recipe: Recipe, kept: tuple[Tried, Made] | None, before: Figures, limits: Limits
) -> tuple[Tried, tuple[Tried, Made] | None]:
    try:
        made = subject.make(recipe)
        each = Tried(recipe=recipe, figures=subject.measure(made))
    except LeptonError as error:
        return Tried(recipe=recipe, why=str(error)), kept
    return each, _better(subject, kept, (each, made), before, limits)


def _better(
    subject: Subject[Made], kept: tuple[Tried, Made] | None, new: tuple[Tried, Made], before: Figures, limits: Limits
) -> tuple[Tried, Made] | None:
    """Keep one of two: memory and disk are for one candidate, not for all."""
    if kept is None:
        return new
    pair = [kept[0], new[0]]
    best = pick(pair, before, limits) or next(iter(nearest(pair, before, limits)), kept[0])
    subject.drop((kept if best is new[0] else new)[1])
    return new if best is new[0] else kept


def why_not(each: Tried, before: Figures, limits: Limits) -> str:
    """Say what speaks against a candidate; empty for one that may be taken."""
    return each.why if each.figures is None else ", ".join(breaks(each.figures, before, limits))
