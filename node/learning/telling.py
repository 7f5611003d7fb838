"""What the nodes of a task say of themselves in their records: the others', as this node reads them, and its own."""

import logging
from dataclasses import dataclass, field

import numpy as np
import trio

from ...mesh import limits
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ..picture import TRAINER, TrainerRecord

_PROGRESS_INTERVAL_S = 0.5  # records travel to everyone: two a second are enough for a live table
ROUNDS_AHEAD_MAX = 2  # as the averaging machine has it: further on, others do not wait for this node

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Where this node stands in a task, for its owner to see."""

    task: str
    state: str = "preparing"
    round: int = 0
    rounds: int = 0
    members: int = 1
    samples: int = 0
    accuracy: float | None = None
    accuracy_alone: float | None = None
    r2: float | None = None
    r2_alone: float | None = None
    loss: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    bytes_sent: int = 0
    deadline_misses: int = 0
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def score(self) -> float | None:
        """What is the better the higher: accuracy, or R2 where values are predicted."""
        return self.accuracy if self.r2 is None else self.r2


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSaid:
    """What came of one round here, for its owner to see: one of these for each, however fast they are."""

    round: int  # counted from 1
    rounds: int
    loss: float | None
    accuracy: float | None  # None where this round's model was not evaluated
    r2: float | None
    members: int
    bytes_sent: int  # in all rounds so far
    deadline_misses: int
    reason: str  # why nothing was averaged


def said_of_round(said: Progress, *, evaluated: bool) -> RoundSaid:
    """Return what there is to say of the round that is just over."""
    return RoundSaid(
        round=said.round,
        rounds=said.rounds,
        loss=said.loss,
        accuracy=said.accuracy if evaluated else None,
        r2=said.r2 if evaluated else None,
        members=said.members,
        bytes_sent=said.bytes_sent,
        deadline_misses=said.deadline_misses,
        reason=said.reason,
    )


class Telling:
    """The records of one version of one task."""

    def __init__(self, mesh: Mesh, name: str, version: int, progress: Progress) -> None:
        """``progress`` is what this node's own record says."""
        self._mesh, self._name, self._version, self._progress = mesh, name, version, progress
        self._told_at = -np.inf

    @property
    def changed(self) -> trio.Event:
        """What happens when any record changes. Take it before a look at the records, and wait for it after."""
        return self._mesh.changed

    def records(self) -> dict[PeerId, TrainerRecord]:
        """Return what everybody who is here says, this node too."""
        return {
            record.owner: trainer
            for record, trainer in self._mesh.live(TRAINER, TrainerRecord)
            if record.name == self._name and trainer.version == self._version
        }

    def others(self) -> dict[PeerId, TrainerRecord]:
        """Return what the others say."""
        return {peer: record for peer, record in self.records().items() if peer != self._mesh.me}

    def members(self, round_: int) -> set[PeerId]:
        """Return who takes part in a round: oneself, and whoever is here, permitted, not too late and not done."""
        return {self._mesh.me} | {
            peer
            for peer, record in self.records().items()
            if record.state in {"ready", "training"} and record.first_round <= round_ and self._may_train(peer)
        }

    def ahead(self, round_: int, rounds: int) -> list[PeerId]:
        """Return who else is under way and not behind a round, the furthest first; nobody beyond the last round."""
        found = [
            (record.round, peer)
            for peer, record in self.others().items()
            if record.state in {"training", "done"} and round_ <= record.round <= rounds and self._may_train(peer)
        ]
        return [peer for _, peer in sorted(found, reverse=True)]

    def passed(self, round_: int) -> set[PeerId]:
        """Return who has left a node behind that is in this round."""
        return {
            peer
            for peer, record in self.records().items()
            if record.state == "done" or record.round > round_ + ROUNDS_AHEAD_MAX
        }

    def done(self) -> list[PeerId]:
        """Return who else is done."""
        return sorted(p for p, record in self.others().items() if record.state == "done" and self._may_train(p))

    def anyone_under_way(self) -> bool:
        """Whether one of the others may still come to be done."""
        return any(record.state == "training" for record in self.others().values())

    def _may_train(self, peer: PeerId) -> bool:
        return self._mesh.authority(peer).allows(f"train:{self._name}")

    def tell(self, state: str, *, round_: int, first_round: int, last: int | None, force: bool = False) -> None:
        """Say where this node stands: at once where that is news, or when it is `force`d, else every so often."""
        now, said = trio.current_time(), self._progress
        force = force or state != said.state
        said.state, said.round = state, round_
        if not force and now - self._told_at < _PROGRESS_INTERVAL_S:
            return
        self._told_at = now
        record = TrainerRecord(
            state=said.state,  # type: ignore[arg-type]
            version=self._version,
            round=round_,
            first_round=first_round,
            last=last,
            samples=said.samples,
            accuracy=said.accuracy,
            accuracy_alone=said.accuracy_alone,
            r2=said.r2,
            r2_alone=said.r2_alone,
            loss=said.loss,
            epsilon=said.epsilon,
            delta=said.delta,
            bytes_sent=said.bytes_sent,
            deadline_misses=said.deadline_misses,
            reason=said.reason[: limits.KIB],
        )
        self._mesh.publish(TRAINER, self._name, record)

    def note(self, text: str) -> None:
        """Keep a note for the owner, and warn of it in the log."""
        log.warning("task %s: %s", self._name, text)
        self._progress.notes = [*self._progress.notes[-19:], text]

    def refusal(self, text: str) -> None:
        """Keep what was refused for the owner, and warn of it in the log."""
        log.warning("task %s, %s", self._name, text)
        self._progress.refusals = [*self._progress.refusals[-19:], text]

    def log_round(self, round_: int) -> None:
        """Write what came of a round into the log."""
        said = self._progress
        score = "accuracy not yet known"
        if said.score is not None:
            score = f"accuracy {said.accuracy:.1%}" if said.r2 is None else f"R2 {said.r2:.3f}"
        loss = f"{said.loss:.4f}" if said.loss is not None else "not told"
        log.info(
            "task %s, round %d of %d: loss %s, %s, %d members, %d bytes sent, %d misses",
            self._name, round_ + 1, said.rounds, loss, score, said.members, said.bytes_sent,
            said.deadline_misses,
        )  # fmt: skip
