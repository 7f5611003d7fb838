"""What a teacher of the mesh gives for one node's own samples: asked for once, kept beside the task's checkpoints.

Samples travel to whoever serves the teacher's first layers, and what comes of them to those behind; who has the
teacher whole asks itself, and nothing leaves. In a private task nobody else takes part.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from ...mesh.errors import LinkError, UsageError
from ...mesh.mesh import Mesh
from ..config import did_you_mean
from ..files import write_whole
from ..inference.requests import Requests
from ..inference.view import View
from ..objective import Objective, is_of_classes
from ..picture import TaskRecord
from .data import Dataset
from .formats.checks import UNLABELLED, Floats, Targets

ANSWERS_BYTES_MAX: Final = 256 * 1024 * 1024  # kept in memory and on disk: 6.7 million samples of 10 classes
_NAME: Final = "teacher.npz"
_ROWS: Final = 1024  # asked for at once: `predict` cuts them up further, some at a time
_PATIENCE_S: Final = 120.0  # for a teacher that nobody has loaded yet, or not any more

log = logging.getLogger(__name__)

Ask = Callable[[Floats], Awaitable[npt.NDArray[np.generic]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teachers:
    """A node's way to the models that teach."""

    mesh: Mesh
    view: View
    requests: Requests

    def require(self, teacher: str) -> None:
        """Raise UsageError unless the mesh has a model of this name that can teach one of ours."""
        models, deployments = self.view.models(), self.view.deployments()
        if teacher not in models and teacher not in deployments:
            known = sorted({*models, *deployments})
            raise UsageError(f"The mesh serves no model {teacher!r}.{did_you_mean(teacher, known)}")
        if teacher not in models and deployments[teacher].kind != "program":
            raise UsageError(f"{teacher!r} is a language model: it teaches by what it writes (`distil_from_mesh`).")

    def outputs(self, teacher: str) -> int:
        """Return how many numbers a trained model of the mesh answers to a sample; 0: not known."""
        model = self.view.models().get(teacher)
        return 0 if model is None else model.spec.classes

    async def taught(self, name: str, task: TaskRecord, dataset: Dataset, folder: Path) -> Dataset:
        """Return the data set with what the task's teacher gives for each sample; ``folder`` keeps it.

        Test samples without labels get the teacher's word for one: how good a model is then means how often it says
        the same. Raises UsageError when data and teacher do not go together or a private task's teacher is elsewhere,
        LinkError when it answers nobody.
        """
        assert task.distil is not None
        if not dataset.labelled and task.distil.labels and not is_of_classes(task.spec.objective):
            raise UsageError("these data have no labels, and `distil.labels` gives them a weight: say 0")
        assert dataset.x_test is not None
        assert dataset.y_test is not None
        missing = _unlabelled(dataset.y_test, task.spec.objective)  # of the test part
        x = np.concatenate((dataset.x, dataset.x_test[missing]))
        if len(x) * task.spec.classes * 4 > ANSWERS_BYTES_MAX:
            raise UsageError(f"a teacher's answers to {len(x):,} samples are more than {ANSWERS_BYTES_MAX:,} bytes")
        answers = await self._kept(folder / _NAME, x, await self._ask(task))
        if answers.shape != (len(x), task.spec.classes):
            raise UsageError(
                f"the teacher {task.distil.teacher!r} gives {answers.shape[1:]} for a sample, the model of this task "
                f"{task.spec.classes}"
            )
        own, of_test = answers[: len(dataset.x)], answers[len(dataset.x) :]
        if len(of_test) == 0:
            return replace(dataset, taught=own)
        log.warning("task %s: %d test samples have no label: the teacher's word counts as one", name, len(of_test))
        return replace(dataset, taught=own, y_test=_filled(dataset.y_test, missing, of_test, task.spec.objective))

    async def _ask(self, task: TaskRecord) -> Ask:
        """Return what asks the teacher; itself where this node has all of it."""
        assert task.distil is not None
        teacher = task.distil.teacher
        with trio.move_on_after(_PATIENCE_S):
            while teacher not in self.view.models() and teacher not in self.view.deployments():
                await self.mesh.changed.wait()
        is_chain = teacher in self.view.models()
        spec = self.view.model(teacher).spec if is_chain else None  # raises UsageError where there is none
        if spec is not None and spec.objective != task.spec.objective:
            raise UsageError(f"the teacher {teacher!r} has the objective {spec.objective!r}, this task another")
        only = self.mesh.me if await self.requests.is_whole_here(teacher) else None
        if task.policy == "private" and only is None:
            raise UsageError(
                f"in a private task samples leave no node, and the teacher {teacher!r} is not whole here: serve it "
                "with a copy on this node, or say another policy"
            )

        async def ask(x: Floats) -> npt.NDArray[np.generic]:
            given = x if spec is None else x.reshape(len(x), *spec.inputs)
            (found,) = await self.requests.predict(teacher, [given], only=only)
            return await trio.to_thread.run_sync(_logits, task, found) if is_chain else found

        return ask

    async def _kept(self, path: Path, x: Floats, ask: Ask) -> Floats:
        digest = await trio.to_thread.run_sync(lambda: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest())
        kept = await trio.to_thread.run_sync(_read, path, digest)
        if kept is not None:
            return kept
        found = [await _patiently(ask, x[at : at + _ROWS]) for at in range(0, len(x), _ROWS)]
        answers = np.concatenate(found).astype(np.float32)
        if not np.isfinite(answers).all():
            raise UsageError("the teacher gives NaN or infinity for some samples: nothing can be learned of that")
        await trio.to_thread.run_sync(_write, path, digest, answers)
        return answers


async def _patiently(ask: Ask, x: Floats) -> npt.NDArray[np.generic]:
    give_up_at = trio.current_time() + _PATIENCE_S
    while True:
        try:
            return await ask(x)
        except LinkError as error:
            if trio.current_time() >= give_up_at:
                raise
            log.info("the teacher does not answer (%s); asking it again", error)


def _logits(task: TaskRecord, answers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    import torch

    from .losses import logits_from

    return np.asarray(logits_from(task.spec.objective, torch.from_numpy(answers.astype(np.float32))).numpy())


def _unlabelled(y: Targets, objective: Objective) -> npt.NDArray[np.bool_]:
    """Return which samples (n,) have no label: values have all, or none, and then stand there as classes."""
    return y == UNLABELLED if is_of_classes(objective) else np.full(len(y), y.dtype.kind != "f")


def _filled(y: Targets, missing: npt.NDArray[np.bool_], taught: Floats, objective: Objective) -> Targets:
    """Return labels with the teacher's word (m, k) in the place of those that are missing."""
    if is_of_classes(objective):
        classes = y.astype(np.int64)
        classes[missing] = taught.argmax(axis=1)
        return classes
    return (1 / (1 + np.exp(-taught))).astype(np.float32) if objective == "binary_cross_entropy" else taught


def _read(path: Path, digest: str) -> Floats | None:
    """Return answers to these samples, if they were kept and are whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["answers"], dtype=np.float32) if str(file["samples"]) == digest else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, digest: str, answers: Floats) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, samples=digest, answers=answers)
    write_whole(path, buffer.getvalue())
