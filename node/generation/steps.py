"""One batch for an engine, as data: what is to be done to caches first, and the pieces to run. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from ...mesh.tensors import Array
from .sampling import Sampling


class New(NamedTuple):
    """Make an empty cache."""

    key: int


class Fork(NamedTuple):
    """Make a cache that begins like another."""

    key: int
    of: int
    length: int


class Truncate(NamedTuple):
    """Forget the positions from ``length`` on."""

    key: int
    length: int


class Drop(NamedTuple):
    """Give a cache's memory back."""

    key: int


CacheOp = New | Fork | Truncate | Drop


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw the token for this position. ``history`` is what comes before it, where the settings look at it."""

    sampling: Sampling
    history: tuple[int, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Work:
    """Consecutive positions of one cache; ``x`` as in `messages.Data`."""

    key: int
    ids: tuple[int, ...]
    x: Array | None
    draw: Draw | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What an engine does next: the operations in order, then all work as one batch."""

    ops: tuple[CacheOp, ...]
    work: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """Of one piece of work: what goes to the next stage, or the token that was drawn, or why there is neither."""

    x: Array | None = None
    token: int | None = None
    error: str = ""
    asked_wrongly: bool = False  # so that it would fail on any replica
