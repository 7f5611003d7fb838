"""The cells of a sweep: every seed with every setting, each a scenario of its own that any process can play.

A cell is sent as JSON and comes back as JSON, so that nothing of ours is pickled but the name of one function.
"""

import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ...mesh.errors import LeptonError, UsageError
from ...node.config import merged
from ..files import converted
from .report import archive
from .report.table import shown
from .report.words import settings
from .scenario import Scenario

CELLS_MAX: Final = archive.OUTCOMES_MAX
SEED: Final = "seed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what differs from the sweep's scenario, and the scenario that comes of it."""

    changes: tuple[tuple[str, Any], ...]  # dotted names and values, in the order in which they were given
    scenario: Scenario

    @property
    def setting(self) -> str:
        """All but the seed: cells of one setting are told apart by luck alone."""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.changes if key != SEED) or "as it is"

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={shown(value)}" for key, value in self.changes) or "as it is"

    @property
    def key(self) -> str:
        """A hash of the whole scenario: another scenario's outcome is never taken for this one's."""
        return hashlib.sha256(msgspec.json.encode(self.scenario, order="deterministic")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a cell: an outcome as JSON, or why there is none."""

    cell: Cell
    outcome: bytes = b""
    failed: str = ""


class Engine(Protocol):
    """Where cells are played."""

    def play(self, cells: Sequence[Cell], folder: Path | None) -> Generator[Played, None, None]:
        """Play them in any order; each comes back once, when it is done. ``folder`` holds data."""
        ...


def grid(scenario: Scenario, over: Mapping[str, Iterable[Any]]) -> list[Cell]:
    """Return a cell for every combination of values. Raises UsageError for a setting that there is not."""
    known = settings(scenario)
    values: dict[str, list[Any]] = {}
    for key, each in over.items():
        if key not in known:
            raise UsageError(f"There is no setting {key!r}; settings are {', '.join(known)}.")
        given = list(each)
        if not given or not all(isinstance(value, str | int | float) for value in given):
            raise UsageError(f"{key}: name one value at least, each a word, a number, true or false.")
        values[key] = list(dict.fromkeys(given))
    count = math.prod(map(len, values.values()))
    if count > CELLS_MAX:
        raise UsageError(f"{count:,} cells are more than the {CELLS_MAX:,} of one sweep: take fewer values.")
    combinations = itertools.product(*([(key, value) for value in each] for key, each in values.items()))
    return [Cell(changes, _changed(scenario, changes)) for changes in combinations]


def play(scenario: bytes, name: str, folder: str, versions: tuple[str, ...]) -> tuple[bytes, str]:
    """Play a cell in this process, on one thread: its outcome as JSON, or b"" and why there is none.

    One at a time in a process, as building a model draws from torch's one generator.
    """
    import torch

    from .learn import learn
    from .reading import population_for

    if versions != ours():
        return b"", f"this worker has {' and '.join(ours())}, the sweep {' and '.join(versions)}: bits would differ"
    with _ONE_AT_A_TIME:
        torch.set_num_threads(1)
        try:
            read = msgspec.json.decode(scenario, type=Scenario)
            population = population_for(read, folder=Path(folder) if folder else None)
            outcome = learn(read, population=population, progress=_heed)
        except LeptonError as error:
            return b"", str(error)
    return archive.dump(msgspec.structs.replace(outcome, name=name)), ""


_ONE_AT_A_TIME: Final = threading.Lock()


class Stopped(Exception):
    """The sweep was broken off."""


def ours() -> tuple[str, ...]:
    """Return the versions on which the bits of an outcome depend."""
    import torch

    return (f"lepton-node {version('lepton-node')}", f"torch {torch.__version__.partition('+')[0]}")


def arguments(cell: Cell, folder: Path | None) -> tuple[bytes, str, str, tuple[str, ...]]:
    """Return what `play` is called with."""
    return msgspec.json.encode(cell.scenario), cell.name, str(folder.resolve()) if folder else "", ours()


def obey(stopped: Callable[[], bool]) -> None:
    """Make cells in this process end at their next round once ``stopped``."""
    _stopping[:] = [stopped]


_stopping: list[Callable[[], bool]] = []


def _heed(_round: int, _row: object) -> None:
    if any(stopped() for stopped in _stopping):
        raise Stopped


def _changed(scenario: Scenario, changes: Iterable[tuple[str, Any]]) -> Scenario:
    found: dict[str, Any] = msgspec.to_builtins(scenario)
    for key, value in changes:
        table, _, name = key.rpartition(".")
        found = merged(found, {table: {name: value}} if table else {name: value})
    return converted(found, Scenario, "the sweep")
