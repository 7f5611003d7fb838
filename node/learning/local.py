"""A round's local steps, as long as the privacy budget lets this node take any, and the baseline of training alone."""

import logging
from collections.abc import Callable

from torch import nn

from ..picture import TaskRecord
from ..shapes import ModelSpec
from .data import Dataset
from .ledger import Ledger
from .losses import Metrics
from .trainer import Trainer, train_alone

log = logging.getLogger(__name__)


class Steps:
    """One node's steps in one task. Both methods take their time: call them in a thread."""

    def __init__(self, task: TaskRecord, trainer: Trainer, ledger: Ledger | None, *, name: str) -> None:
        """``ledger`` is what a task with differential privacy has spent; ``name`` is the task's."""
        self.untrained = ""
        """Why this node takes no more steps, if it takes none."""
        self._task, self._trainer, self._ledger, self._name = task, trainer, ledger, name

    def run(self, round_: int) -> float | None:
        """Take a round's local steps; their mean loss, None where it tells of single records.

        A node whose privacy budget is used up takes none and goes on averaging: what it sends is then made of what it
        was given, and costs nothing more. If it left, a mesh that was killed and went on might end with nobody.
        """
        steps, private = self._task.settings.local_steps, self._trainer.private
        if private is None or self._ledger is None:
            return self._trainer.run_steps(steps)
        if self._ledger.spend(noise=private.noise, rate=private.rate, steps=steps):
            self._trainer.run_steps(steps)
        elif not self.untrained:
            self.untrained = "its privacy budget is used up; it averages on without training"
            log.warning("task %s, round %d: %s", self._name, round_, self.untrained)
        return None

    def alone(self, dataset: Dataset, make_model: Callable[[ModelSpec], nn.Module]) -> Metrics:
        """Train on this node's data alone for as many steps as the whole task has; how good that is."""
        task = self._task
        steps = task.rounds * task.settings.local_steps
        model = make_model(task.spec)
        return train_alone(task.spec, dataset, task.settings, steps, model=model, distil=task.distil).evaluate()
