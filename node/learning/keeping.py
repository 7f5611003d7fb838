"""What a node keeps of its training as it goes: how good the model is now and then, and checkpoints to go on from."""

import logging

import numpy as np
import trio

from ..shapes import Vector
from .checkpoint import Checkpoint, CheckpointStore, Loaded
from .losses import Metrics, accuracy_of
from .telling import Progress
from .trainer import Trainer

_EVALUATE_INTERVAL_S = 0.5
_CHECKPOINT_INTERVAL_S = 2.0

log = logging.getLogger(__name__)


class Keeping:
    """Evaluations and checkpoints of one task. Rounds are counted; after ``round_`` 5, 0 to 4 are over."""

    def __init__(self, trainer: Trainer, checkpoints: CheckpointStore, progress: Progress, *, always: bool) -> None:
        """``always``: keep a checkpoint of every round, since steps that a crash undoes are paid for twice."""
        self._trainer, self._checkpoints, self._progress, self._always = trainer, checkpoints, progress, always
        self._evaluated_at = self._saved_at = -np.inf
        self._evaluated_round = self._saved_round = -1

    def load(self) -> Loaded | None:
        """Put the newest checkpoint that is whole into the trainer, if there is one, and note those that were not."""
        loaded = self._checkpoints.load_latest()
        if loaded is None:
            return None
        for note in loaded.skipped:
            log.warning("task %s: %s; using the one before it", self._progress.task, note)
            self._progress.notes.append(note)
        self._trainer.restore(loaded.checkpoint.vector, loaded.checkpoint.trainer_state)
        self._saved_round = loaded.checkpoint.round + 1
        return loaded

    async def evaluate(self, round_: int, *, last: bool) -> bool:
        """Find out how good the model is, if it is time or this was the ``last`` round; whether it was done."""
        now = trio.current_time()
        if not last and now - self._evaluated_at < _EVALUATE_INTERVAL_S:
            return False
        self._evaluated_at = now
        self._note(round_, await trio.to_thread.run_sync(self._trainer.evaluate))
        return True

    async def save(self, round_: int, vector: Vector, *, last: bool) -> None:
        """Keep a checkpoint, if it is time or this was the ``last`` round."""
        if last or self._always or trio.current_time() - self._saved_at >= _CHECKPOINT_INTERVAL_S:
            self._saved_at, self._saved_round = trio.current_time(), round_
            checkpoint = Checkpoint(round=round_ - 1, vector=vector, trainer_state=self._trainer.state())
            await trio.to_thread.run_sync(self._checkpoints.save, checkpoint)

    def forget(self) -> None:
        """Count what was evaluated and saved for another model's: this one was taken just now."""
        self._evaluated_round = self._saved_round = -1

    async def complete(self, round_: int) -> None:
        """Evaluate and save what the end came too soon for: nobody knew that this would be the last round."""
        if self._evaluated_round != round_:
            self._note(round_, await trio.to_thread.run_sync(self._trainer.evaluate))
        if self._saved_round != round_ and round_ > 0:
            await self.save(round_, self._trainer.vector(), last=True)

    def _note(self, round_: int, metrics: Metrics) -> None:
        self._evaluated_round = round_
        self._progress.accuracy, self._progress.r2 = accuracy_of(metrics), metrics.r2
