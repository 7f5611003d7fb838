"""What may be tried on a model: a few steps behind each other, as data, and what is known of them before. Pure.

The order of the steps is fixed: a smaller student first, then fewer numbers, then fewer bits, each going on from what
the step before it gave. `least_share` and `harsher` say what need not be tried.
"""

from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from ..manifest import Bits

Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]

# Of float32, where 8 or 4 bits with a scale of 16 for each 32 numbers are coded: less than was ever seen.
_BITS_SHARE: Final = {8: 6 / 32, 4: 3.5 / 32}
_MASK_SHARE: Final = 0.2 / 32  # which numbers of a pruned matrix are there, where nearly none is


class Distil(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="distil"):
    """A smaller student learns what the model says."""

    student: str  # as `students.py` names it
    share: Share  # of the model's numbers that it has, about


class Prune(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="prune"):
    """Numbers or whole channels go, and the rest is trained to make up for it."""

    kind: Literal["global", "channels"]
    share: Share  # of the numbers, or of each layer's channels, that goes


class Round(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", tag="round"):
    """Weights become integers; ``trained``: the model is trained while they are rounded at each step."""

    bits: Bits
    trained: bool = False


Step = Distil | Prune | Round
Recipe = tuple[Step, ...]
ORDER: Final = (Distil, Prune, Round)


def is_ordered(recipe: Recipe) -> bool:
    """Whether the steps are in their order, each kind once."""
    places = [ORDER.index(type(step)) for step in recipe]
    return all(before < after for before, after in pairwise(places))


def said(recipe: Recipe) -> str:
    """Return a recipe as people read it."""
    return ", ".join(_said(step) for step in recipe) or "as it is"


def _said(step: Step) -> str:
    match step:
        case Distil(student=student):
            return f"student {student}"
        case Prune(kind="channels", share=share):
            return f"channels -{share:.0%}"
        case Prune(share=share):
            return f"numbers -{share:.0%}"
        case Round(bits=bits, trained=trained):
            return f"int{bits}" + (" trained" if trained else "")


def least_share(recipe: Recipe) -> float:
    """Return what share of the bytes a recipe leaves at the least: files are never smaller than this."""
    share, bits = 1.0, 1.0
    for step in recipe:
        match step:
            case Distil(share=left):
                share *= left
            case Prune(kind="channels", share=gone):
                share *= (1 - gone) ** 2  # as inputs of one layer and outputs of another
            case Prune(share=gone):
                share *= 1 - gone
            case Round(bits=width):
                bits = _BITS_SHARE[width]
    sparse = any(isinstance(step, Prune) and step.kind == "global" for step in recipe)
    return share * bits + _MASK_SHARE * sparse


def harsher(recipe: Recipe, than: Recipe) -> bool:
    """Whether a recipe takes at least as much away as another one, with no more training to make up for it."""
    if recipe == than or _kinds(recipe) != _kinds(than):
        return False
    return all(_as_harsh(one, other) for one, other in zip(recipe, than, strict=True))


def same_form(recipe: Recipe, other: Recipe) -> bool:
    """Whether two recipes give the same shapes and bits, and so answer equally fast."""
    return _form(recipe) == _form(other)


def _form(recipe: Recipe) -> Recipe:
    """Return what of a recipe decides shapes and bits. Numbers that are zeros are still multiplied."""
    kept = (step for step in recipe if not (isinstance(step, Prune) and step.kind == "global"))
    return tuple(msgspec.structs.replace(step, trained=False) if isinstance(step, Round) else step for step in kept)


def _kinds(recipe: Recipe) -> tuple[object, ...]:
    return tuple((type(step), step.kind if isinstance(step, Prune) else "") for step in recipe)


def _as_harsh(one: Step, other: Step) -> bool:
    match one, other:
        case Distil(), Distil():
            return one.share <= other.share
        case Prune(), Prune():
            return one.share >= other.share
        case Round(), Round():
            return one.bits <= other.bits and one.trained <= other.trained
    return False
