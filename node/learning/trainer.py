"""One node's training: a model, its own data and SGD that resumes exactly where it stopped.

Which samples make up step t is a pure function of (seed, t). So a trainer's whole state is its parameters, its momentum
and a step count: there is no random state to carry, and two runs on one machine give the same bits. Not so with
differential privacy (`privacy.py`): what protects records must not be repeatable.

The update is written out instead of taken from `torch.optim`: it is three lines, and making an optimizer of torch 2.13
imports its compiler, measured at 1 s and 75 MB on a desktop.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...mesh.errors import LeptonError, UsageError
from ..models import build
from ..objective import is_of_values
from ..shapes import ModelSpec, Vector
from .data import Dataset
from .factories import owners_code, structure
from .ledger import noise_for
from .lessons import Lesson
from .losses import Metrics, loss_of_guessing, measured, tensors_for
from .privacy import PrivateGradient, sampling_rate
from .settings import Distil, DpSettings, Optimiser, Parts, Prune, TrainSettings, as_said, bits_of, check_optimiser
from .shared import Shared
from .sparse import Sparse
from .steps.adam import Adam
from .steps.momentum import Momentum
from .steps.proximal import add_proximal
from .steps.schedule import rate_at
from .steps.tracking import Tracking

EVALUATION_BATCH: Final = 512  # samples at once: bounds memory, costs no speed
# Measured over 3 to 4 nodes with skewed parts: Adam on the digits (mlp, cnn; 0.001 to 0.03), SGD with momentum on the
# diabetes data (mlp, the three objectives of values; 0.003 to 0.3).
_ADAM_RATE: Final = 0.01
_VALUES_RATE: Final = 0.01
# A teacher's logits may be far off at first, and the temperature multiplies what comes of it. Spoken digits, cnn, SGD
# at its rate of 0.1 and temperature 2: 10 % without a bound, as it diverges, 94.5 % with it.
_TAUGHT_NORM: Final = 1.0


def settings_for(
    spec: ModelSpec, *, optimiser: Optimiser = "sgd", seed: int = 0, taught: bool = False
) -> TrainSettings:
    """Settings that were measured to train this kind of model well, alone and in a mesh, or ``taught`` by another."""
    suited = msgspec.structs.replace(_sgd_for(spec, seed=seed), clip_norm=_TAUGHT_NORM if taught else 0.0)
    if optimiser != "sgd":
        return msgspec.structs.replace(suited, optimiser=optimiser, learning_rate=_ADAM_RATE)
    if is_of_values(spec.objective):
        return msgspec.structs.replace(suited, learning_rate=_VALUES_RATE)
    return suited


def _sgd_for(spec: ModelSpec, *, seed: int) -> TrainSettings:
    if spec.architecture == "cnn":
        return TrainSettings(local_steps=10, batch_size=32, learning_rate=0.1, seed=seed)
    if spec.architecture == "own":  # nothing is known of it: small steps
        return TrainSettings(local_steps=10, batch_size=32, learning_rate=0.05, seed=seed)
    if spec.architecture == "lstm":
        return TrainSettings(local_steps=10, batch_size=32, learning_rate=0.3, seed=seed)
    if spec.hidden_activation == "relu":
        return TrainSettings(learning_rate=0.1, seed=seed)
    return TrainSettings(seed=seed)


def _nothing() -> Vector:
    return np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainerState:
    """What a trainer needs besides its shared parameters to go on as if it had never stopped, P trained parameters."""

    step: int
    momentum: Vector  # of the optimiser: (P,), or both moments of Adam, (2 P,)
    correction: Vector = field(default_factory=_nothing)  # (P,), or empty without gradient tracking
    local: Vector = field(default_factory=_nothing)  # parameters that never leave


class Trainer:
    """Trains one model on one data set, a few steps at a time.

    Raises UsageError when spec, data and settings do not fit together. Not for two threads at once.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dataset: Dataset,
        settings: TrainSettings,
        *,
        steps: int = 0,
        parts: Parts | None = None,
        model: nn.Module | None = None,
        distil: Distil | None = None,
        prune: Prune | None = None,
    ) -> None:
        """``steps`` is how many there will be in all, which a schedule goes by; 0: not known.

        ``distil`` says how what a teacher gave for the samples is learned, which is in the data set.
        ``model`` is what to train, where it is not built from ``spec``. ``prune`` says which numbers are to be zeros.
        """
        _check(settings)
        self.spec = spec
        self.settings = settings
        self.samples = len(dataset.y)  # the weight of this node's update in an average
        self.step = 0
        self._steps = steps
        self._model = model if model is not None else build(spec)
        self._shared = Shared(self._model, parts)
        self.sparse = None if prune is None else Sparse(prune, self._model, self._shared)
        self._zeros: torch.Tensor | None = None  # (P,): which parameters stay 0
        self._rounded = _rounding(self._model, settings)
        self._position, self._gradient = _flattened(self._shared.trained)
        self._start = self._position.clone()  # where this round began
        self._way = 0.0  # the sum of the step sizes since
        self._optimiser = _optimiser(len(self._position), settings)
        self._tracking = Tracking(len(self._position), strength=settings.tracking)
        self._lesson = Lesson(spec, dataset, distil)
        self._test = None
        if dataset.x_test is not None and dataset.y_test is not None:
            self._test = tensors_for(spec, dataset.x_test, dataset.y_test)
        self._order = _Order(self.samples, settings.seed)
        with owners_code(spec):
            self.private = None if settings.dp is None else self._private_gradient(settings.dp)

    def run_steps(self, steps: int) -> float:
        """Train for ``steps`` batches; the mean of their losses. Raises LeptonError when training has diverged.

        With differential privacy the mean is NaN: it would tell of the records. To write down what the steps cost is
        up to the caller, before them (`ledger.py`).
        """
        if steps < 1:
            raise UsageError(f"{steps} steps of training were asked for; give 1 or more")
        with owners_code(self.spec):
            total = sum(self._one_step() for _ in range(steps))
        # The last step's update has no loss yet: it shows in the parameters.
        if not ((self.private or np.isfinite(total)) and torch.isfinite(self._position).all()):
            rate = self.settings.learning_rate
            raise LeptonError(f"training diverged by step {self.step}: lower the learning rate, now {rate}")
        return total / steps

    def hold_zeros(self, rounds: int) -> None:
        """From now on let the numbers stay 0 that are, where the task prunes and so many ``rounds`` of it are over."""
        self._zeros = None if self.sparse is None else self.sparse.zeros(self._position, rounds)

    @property
    def dimension(self) -> int:
        """D, how many numbers are averaged."""
        return self._shared.size

    @property
    def structure(self) -> str:
        """A hash of what the averaged numbers mean."""
        return structure(self._shared, self._model)

    def vector(self) -> Vector:
        """A copy of what is averaged: float32 (D,)."""
        return self._shared.read()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the whole model's parameters and buffers by name, as `load_state_dict` takes them.

        Trained against rounding they are the rounded ones, as in `evaluate`; `vector` has what they are rounded from.
        """
        with self._rounded():
            return {name: tensor.detach().clone().contiguous() for name, tensor in self._model.state_dict().items()}

    def adopt(self, vector: Vector, *, averaged: bool = False) -> None:
        """Go on from these parameters, float32 (D,), with the momentum there is; UsageError when they do not fit.

        ``averaged``: they are the average of a round that this node took part in with what it had, so the way from
        there to here says how the others' data differ.
        """
        own = self._position.clone()
        self._shared.write(vector)
        if averaged:
            self._optimiser.round_ended(self._position - self._start, self._way)
            self._tracking.round_ended(own, self._position, self._way * self._optimiser.gain)
        self._start.copy_(self._position)
        self._way = 0.0

    def evaluate(self) -> Metrics:
        """How the model does on the data set's test part; raises UsageError when it has none."""
        if self._test is None:
            raise UsageError("this data set has no test part to evaluate on; give it x_test and y_test")
        x, y = self._test  # (n, *inputs), (n,) or (n, k)
        parts = zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True)
        self._model.eval()
        with owners_code(self.spec), self._rounded(), torch.inference_mode():
            metrics = measured(self.spec.objective, ((self._model(x_part), y_part) for x_part, y_part in parts))
        self._model.train()
        return metrics

    def loss_of_guessing(self) -> float:
        """Return the loss on the test part of one who has not looked at the samples."""
        y = self._lesson.y
        return loss_of_guessing(self.spec, y, y if self._test is None else self._test[1])

    def try_out(self, vector: Vector) -> Metrics:
        """How the model would do with these parameters, float32 (D,); UsageError when they do not fit."""
        own = self._shared.read()
        self._shared.write(vector)
        try:
            return self.evaluate()
        finally:
            self._shared.write(own)

    def state(self) -> TrainerState:
        """A copy of what `restore` needs besides `vector`."""
        correction = self._tracking.correction if self.settings.tracking else torch.empty(0)
        return TrainerState(
            step=self.step,
            momentum=self._optimiser.buffer.numpy().copy(),
            correction=correction.numpy().copy(),
            local=self._shared.read_local(),
        )

    def restore(self, vector: Vector, state: TrainerState) -> None:
        """Go on exactly where the trainer stood that gave ``vector`` and ``state``; UsageError when they do not fit."""
        size = len(self._position)
        if state.momentum.dtype != np.float32 or state.momentum.shape != tuple(self._optimiser.buffer.shape):
            kept = f"this model has {size} parameters, its optimiser keeps {len(self._optimiser.buffer)} numbers"
            raise UsageError(f"{kept}, the saved momentum {state.momentum.shape}")
        if state.correction.shape != ((size,) if self.settings.tracking else (0,)):
            raise UsageError(f"the saved correction {state.correction.shape} is of other settings than these")
        self._shared.write(vector)
        self._shared.write_local(state.local)
        self._optimiser.buffer.copy_(torch.from_numpy(state.momentum.copy()))
        if self.settings.tracking:
            self._tracking.correction.copy_(torch.from_numpy(state.correction.copy()))
        self._start.copy_(self._position)
        self._way = 0.0
        self.step = state.step

    def _one_step(self) -> float:
        said, gradient = self.settings, self._gradient
        with self._rounded():
            loss = self._take_gradient()
        rate = rate_at(
            self.step, self._steps, rate=said.learning_rate, schedule=said.schedule, warmup_steps=said.warmup_steps
        )
        with torch.no_grad():
            if said.clip_norm:
                gradient.mul_(min(1.0, said.clip_norm / max(float(gradient.norm()), 1e-12)))
            if said.weight_decay and said.optimiser != "adamw":
                gradient.add_(self._position, alpha=said.weight_decay)
            self._tracking.apply(gradient)
            add_proximal(gradient, self._position, self._start, said.proximal)
            direction = self._optimiser.direction(gradient, self.step)
            if said.weight_decay and said.optimiser == "adamw":
                direction.add_(self._position, alpha=said.weight_decay)
            self._position.sub_(direction, alpha=rate)
            if self._zeros is not None:
                self._position.masked_fill_(self._zeros, 0.0)
        self._way += rate
        self.step += 1
        return loss

    def _take_gradient(self) -> float:
        """Work out this step's gradient; the loss of its batch."""
        if self.private is not None:
            self.private.write(self._gradient)
            return math.nan
        batch = torch.from_numpy(self._order.batch(self.step, self.settings.batch_size))  # (B,)
        self._gradient.zero_()
        loss = self._lesson.loss(self._model, batch)
        loss.backward()
        return loss.item()

    def _private_gradient(self, dp: DpSettings) -> PrivateGradient:
        rate = sampling_rate(self.settings.batch_size, self.samples)
        noise = noise_for(dp, rate=rate, records=self.samples, steps=self._steps)
        return PrivateGradient(
            self._model,
            self._lesson.x,
            self._lesson.y,
            rate=rate,
            noise=noise,
            clip_norm=dp.clip_norm,
            objective=self.spec.objective,
        )


def _rounding(model: nn.Module, settings: TrainSettings) -> Callable[[], AbstractContextManager[None]]:
    """Return what holds a model's weights rounded for a while, if they are to be."""
    if not (bits := bits_of(settings)):
        return nullcontext
    from ..compression.straight import Straight  # it brings all of compression with it

    return Straight(model, bits).rounded


def _flattened(parameters: list[torch.nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay float32 parameters and their gradients out as two flat vectors, of which they become views."""
    position = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    gradient = torch.zeros_like(position)
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = position[start:end].view_as(parameter)
        parameter.grad = gradient[start:end].view_as(parameter)
        start = end
    return position, gradient


def train_alone(
    spec: ModelSpec,
    dataset: Dataset,
    settings: TrainSettings,
    steps: int,
    *,
    model: nn.Module | None = None,
    distil: Distil | None = None,
) -> Trainer:
    """The baseline: all of ``dataset`` in one place, ``steps`` batches, no mesh."""
    trainer = Trainer(spec, dataset, settings, steps=steps, model=model, distil=distil)
    trainer.run_steps(steps)
    return trainer


class _Order:
    """An endless line of shuffled passes over n samples; step t takes its own stretch of it."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._pass = -1
        self._shuffled: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def batch(self, step: int, size: int) -> npt.NDArray[np.int64]:
        """Indices (B,) of step ``step``; B is the whole data set when that is smaller than ``size``."""
        size = min(size, self._samples)
        start, parts = step * size, []
        while size > 0:
            number, offset = divmod(start, self._samples)
            part = self._nth_pass(number)[offset : offset + size]
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return np.concatenate(parts)

    def _nth_pass(self, number: int) -> npt.NDArray[np.int64]:
        if number != self._pass:
            self._pass = number
            self._shuffled = np.random.default_rng([self._seed, number]).permutation(self._samples)
        return self._shuffled


def _check(settings: TrainSettings) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(settings), TrainSettings)
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(f"these training settings are not valid: {error}") from error
    check_optimiser(settings.optimiser, as_said(settings))


def _optimiser(size: int, settings: TrainSettings) -> Momentum | Adam:
    if settings.optimiser == "sgd":
        return Momentum(size, kind=settings.momentum_kind, beta=settings.momentum)
    return Adam(size, beta1=settings.beta1, beta2=settings.beta2, eps=settings.eps)
