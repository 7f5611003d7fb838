"""A command's runs: a scenario's variants one after the other, each kept as it goes, so that Ctrl-C loses nothing."""

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import msgspec

from ...mesh.errors import UsageError
from .cluster import Cluster
from .outcome import Outcome, Row
from .progress import Watch
from .report import archive
from .scenario import Scenario

if TYPE_CHECKING:
    from .fleet import Fleet
    from .training import Trainer

CHECKPOINT: Final = "checkpoint.safetensors"


class Interrupted(Exception):
    """Its user asked a run to stop; where it stood is kept, if it has a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """Plays scenarios under one command's settings."""

    watch: Watch
    data: Path | None = None  # folder of data that Lepton does not carry
    out: Path | None = None  # where outcomes and checkpoints go
    resume: bool = False  # go on with what is in `out`; else it must hold no run
    device: str = "cpu"
    # Of torch, in this process. On two cores a second one cost more CPU time than it saved: 3 times as much for a small
    # convolutional network, 1.5 times for an MLP; and sweeps, which play a run a core, then give the same bits.
    threads: int = 1
    cluster: Cluster | None = None  # whose workers train the nodes, in place of this process

    def play(self, variants: Mapping[str, Scenario]) -> dict[str, Outcome]:
        """Play them all. Raises UsageError, LeptonError, and Interrupted after the round in which Ctrl-C came."""
        import torch

        _check_device(self.device)
        torch.set_num_threads(self.threads)
        places = {name: self._place(name, alone=len(variants) == 1) for name in variants}
        if not self.resume:
            _check_free(list(places.values()))
        with interrupts() as asked, self._trainer() as trainer, self.watch:
            return {
                name: self._play(name, scenario, places[name], asked, trainer) for name, scenario in variants.items()
            }

    @contextmanager
    def _trainer(self) -> "Iterator[Callable[[Fleet], Trainer] | None]":
        """Say where nodes train for the length of a block."""
        if self.cluster is None:
            yield None
            return
        from .spreading import Spread

        with self.cluster.client() as client:
            yield lambda fleet: Spread(fleet, client, self.data)

    def _play(
        self, name: str, scenario: Scenario, place: Path | None, asked: Callable[[], bool],
        trainer: "Callable[[Fleet], Trainer] | None",
    ) -> Outcome:  # fmt: skip
        from .learn import learn
        from .reading import population_for

        self.watch.begin(name, scenario.rounds)
        if (kept := _kept(place, scenario)) is not None:
            self.watch.note(scenario.rounds, kept.rows[-1] if kept.rows else None)
            return kept

        def heed(round_: int, row: Row | None) -> None:
            self.watch.note(round_, row)
            if asked() and round_ < scenario.rounds:
                raise Interrupted

        checkpoint = place / CHECKPOINT if place else None
        population = population_for(scenario, folder=self.data)
        found = learn(
            scenario, population=population, progress=heed, checkpoint=checkpoint, device=self.device, trainer=trainer
        )
        outcome = msgspec.structs.replace(found, name=name)
        if place is not None and checkpoint is not None:
            archive.save(outcome, place / archive.NAME)
            checkpoint.unlink(missing_ok=True)
        return outcome

    def _place(self, name: str, *, alone: bool) -> Path | None:
        if self.out is None:
            return None
        place = self.out if alone else self.out / (re.sub(r"[^\w.=-]+", "-", name).strip(".") or "variant")
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{place} cannot be made: {error.strerror or error}. Name another --out folder."
            ) from error
        return place


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Note the first interrupt instead of raising it, so that a round is finished; the second one is raised."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _kept(place: Path | None, scenario: Scenario) -> Outcome | None:
    if place is None or not (place / archive.NAME).is_file():
        return None
    outcome = archive.load(place / archive.NAME)
    if outcome.scenario != scenario:
        raise UsageError(f"{place} holds the outcome of another scenario: name another --out folder.")
    return outcome


def _check_free(places: list[Path | None]) -> None:
    if len(set(places)) < len(places) and None not in places:
        raise UsageError("Two variants have names that make the same folder: give them others.")
    for place in places:
        if place is not None and any((place / name).exists() for name in (archive.NAME, CHECKPOINT)):
            raise UsageError(f"{place} holds a run: go on with it by --resume, or name another --out folder.")


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no GPU that torch can use here: leave --device out.")
