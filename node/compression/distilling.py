"""A small model learns what a large one says: from its outputs (Hinton et al. 2015) and its hidden layers.

The teacher need not be here: what it gave for each row of the data is enough, and `answers_from` asks whatever it is
for that. Labels may be there for all rows, for some, or for none.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..learning.allowed import Factories
from ..learning.losses import labels_loss, taught_loss
from ..objective import Objective
from . import fitting
from .fitting import Fit
from .hints import Hints, Pairs
from .manifest import Distilled
from .students import Shape, is_new, student_of

Array = np.ndarray[Any, Any]
Ask = Callable[..., Tensor]  # a batch of each argument to outputs (B, ..., k)
Teacher = nn.Module | Ask | Tensor | Array
Source = Callable[..., Awaitable[Array | Tensor]]

# Of 1, 2 and 4 the best for students of 8 and 16 units on MNIST (`tests/bench/distil.py`); Hinton has 2.5 to 4 for
# small students and 8 and more for large ones (section 3).
TEMPERATURE: Final = 2.0
LABELS_WEIGHT: Final = 0.1  # "considerably lower" (section 2) than the teacher's
ROWS: Final = 256  # that a teacher is asked for at once
_KEPT_BYTES_MAX: Final = 256 * 1024 * 1024  # of a teacher's answers; of more, each step asks again
_NEW: Final = Fit(steps=1000, rate=1e-2)  # of a student that begins with random values


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A student that has learned, and what was done."""

    module: nn.Module
    step: Distilled
    losses: Sequence[float]  # of each step of training


def distil(
    teacher: Teacher,
    student: nn.Module | str,
    data: Tensor | Sequence[Tensor],
    *,
    labels: Tensor | None = None,
    objective: Objective = "cross_entropy",
    temperature: float = TEMPERATURE,
    labels_weight: float = LABELS_WEIGHT,
    features: Pairs = (),
    features_weight: float = 1.0,
    fit: Fit | None = None,
    after: fitting.After | None = None,
    factories: Factories | None = None,
    teacher_name: str = "",
) -> Taught:
    """Train a copy of a student on ``data``: the module's argument, or all its arguments, each of n rows.

    ``teacher`` is a module, a function of a batch, or what it gave for all rows (n, ..., k): of classes logits, along
    the last axis (`learning.losses.logits_from` makes them of probabilities). ``student`` is a module that takes what
    the teacher takes, or a name (`students.py`). ``labels`` are int64 (n, ...) of classes, -1 where there is none,
    else float32 (n, k). Their loss has ``labels_weight`` and the teacher's the rest; without labels all of it.
    ``features`` are pairs of layers' names, the teacher's and the student's, whose distance is added with
    ``features_weight``; the teacher must be a module then. ``after`` is called as in `fitting.fit`, with the student.

    Raises UsageError for what does not go together, LeptonError when training has diverged.
    """
    given = (data,) if isinstance(data, Tensor) else tuple(data)
    weight = 0.0 if labels is None else labels_weight
    _check(given, temperature, weight, teacher, features)
    name = student if isinstance(student, str) else type(student).__name__
    work, said = _prepared(teacher, student, given, objective, fit, factories)
    kept = None if features or weight == 1 else _kept(teacher, given, said)
    with ExitStack() as stack:
        hints = Hints()
        if isinstance(teacher, nn.Module):
            stack.callback(teacher.train, teacher.training)
            teacher.eval()
            hints = stack.enter_context(Hints.between(teacher, work, features, given))
        answers = _answering(teacher, kept, len(given))
        lesson = _Lesson(work, hints, answers, objective, temperature, weight, features_weight)
        arrays = [each for each in (*given, kept, labels) if each is not None]
        hold = None if after is None else (lambda _, done: after(work, done))
        losses = fitting.fit(lesson, arrays, lambda _, batch: lesson.loss(batch[: len(given)], batch), said, after=hold)
    step = Distilled(
        student=name,
        teacher=teacher_name or (type(teacher).__name__ if isinstance(teacher, nn.Module) else "its answers"),
        temperature=temperature,
        fitted_steps=said.steps,
        labels=weight,
        features=features_weight if features else 0.0,
    )
    return Taught(module=work.eval(), step=step, losses=losses)


async def answers_from(source: Source, data: Tensor | Sequence[Tensor], *, rows: int = ROWS) -> Tensor:
    """Ask whatever answers batches for all rows of ``data``, some at a time; returns its answers (n, ..., k)."""
    given = (data,) if isinstance(data, Tensor) else tuple(data)
    found = [await source(*(each[at : at + rows] for each in given)) for at in range(0, len(given[0]), rows)]
    return torch.cat([torch.as_tensor(each) for each in found])


class _Lesson(nn.Module):
    """A student, and the projections that are trained with it and thrown away."""

    def __init__(
        self,
        student: nn.Module,
        hints: Hints,
        answers: Callable[[Sequence[Tensor]], Tensor],
        objective: Objective,
        temperature: float,
        labels_weight: float,
        features_weight: float,
    ) -> None:
        """``answers`` finds a teacher's in a batch, or asks for them."""
        super().__init__()
        self.student, self.hints = student, hints
        self._answers, self._objective, self._temperature = answers, objective, temperature
        self._labels_weight, self._features_weight = labels_weight, features_weight

    def loss(self, x: Sequence[Tensor], batch: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch: the student's arguments, and what else there is of each row, labels last."""
        outputs = self.student(*x)
        total = torch.zeros(())
        if self._labels_weight < 1 or self.hints.pairs:
            wanted = self._answers(batch)
            if outputs.shape != wanted.shape:
                found = f"{tuple(outputs.shape)} where the teacher gives {tuple(wanted.shape)}"
                raise UsageError(f"The student gives {found}: they do not go together.")
            taught = taught_loss(self._objective, outputs, wanted, self._temperature)
            total = total + (1 - self._labels_weight) * taught
        if self._labels_weight:
            total = total + self._labels_weight * labels_loss(self._objective, outputs, batch[-1])
        return total + self._features_weight * self.hints.distance()


def _answering(teacher: Teacher, kept: Tensor | None, arguments: int) -> Callable[[Sequence[Tensor]], Tensor]:
    if kept is not None:
        return lambda batch: batch[arguments]

    def ask(batch: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return _checked(teacher(*batch[:arguments])) if callable(teacher) else batch[arguments]

    return ask


def _prepared(
    teacher: Teacher,
    student: nn.Module | str,
    given: Sequence[Tensor],
    objective: Objective,
    fit: Fit | None,
    factories: Factories | None,
) -> tuple[nn.Module, Fit]:
    if isinstance(student, nn.Module):
        return deepcopy(student), fit or Fit()
    module = teacher if isinstance(teacher, nn.Module) else None
    if not is_new(student):
        return student_of(student, teacher=module, factories=factories), fit or Fit()
    first = _answers_to(teacher, given, slice(0, 2))
    shape = Shape(tuple(given[0].shape[1:]), first.shape[-1], objective)
    return student_of(student, shape, teacher=module, factories=factories), fit or _NEW


def _kept(teacher: Teacher, given: Sequence[Tensor], said: Fit) -> Tensor | None:
    """Return what the teacher gives for all rows, if that is less work than to ask it at each step, and fits memory."""
    if isinstance(teacher, Tensor | np.ndarray):
        return torch.as_tensor(teacher).to(torch.float32)
    rows = len(given[0])
    if said.steps * said.batch_size < rows:
        return None
    first = _answers_to(teacher, given, slice(0, 2))
    if rows * first[0].numel() * 4 > _KEPT_BYTES_MAX:
        return None
    return torch.cat([_answers_to(teacher, given, slice(at, at + ROWS)) for at in range(0, rows, ROWS)])


def _answers_to(teacher: Teacher, given: Sequence[Tensor], rows: slice) -> Tensor:
    if isinstance(teacher, Tensor | np.ndarray):
        return torch.as_tensor(teacher[rows])
    was_training = isinstance(teacher, nn.Module) and teacher.training
    if isinstance(teacher, nn.Module):
        teacher.eval()
    with torch.no_grad():
        found = teacher(*(each[rows] for each in given))
    if isinstance(teacher, nn.Module):
        teacher.train(was_training)
    return _checked(found)


def _checked(answers: object) -> Tensor:
    if not isinstance(answers, Tensor) or answers.ndim < 2:
        raise UsageError("The teacher must give one tensor (rows, ..., outputs); wrap one that gives more.")
    return answers


def _check(
    given: Sequence[Tensor], temperature: float, labels_weight: float, teacher: Teacher, features: Pairs
) -> None:
    if not given or len(given[0]) == 0:
        raise UsageError("There are no data to distil on; give one row or more.")
    if not temperature > 0 or not 0 <= labels_weight <= 1:
        raise UsageError(f"temperature={temperature:g}, labels_weight={labels_weight:g}: give > 0, and 0 to 1.")
    if isinstance(teacher, Tensor | np.ndarray) and len(teacher) != len(given[0]):
        raise UsageError(f"The teacher's answers are of {len(teacher)} rows, the data have {len(given[0])}.")
    if features and not isinstance(teacher, nn.Module):
        raise UsageError("Hidden layers can only be taught by a module that is here.")
