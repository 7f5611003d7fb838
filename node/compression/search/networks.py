"""A module with samples as the subject of a search: each recipe is made of a copy, fitted on the training part.

What is fitted learns what the module said before, and the labels. Nothing is fitted or calibrated on the test part, on
which alone accuracy is measured: points of right answers, or R2 in hundredths where values are predicted. Latency is
that of one answer to one sample by the model as it is served, unpacked when it was loaded; each candidate is measured
in turns with the module as it was.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from ....mesh.errors import UsageError
from ...learning.formats.checks import Dataset
from ...learning.losses import loss_of, measured, taught_loss
from ...models import Chain
from ...objective import Objective, is_of_classes
from ...programs.run import Stage
from ...shapes import parameter_count
from ..contents import plain_bytes, stored_bytes
from ..distilling import distil
from ..fitting import After, Fit, fit
from ..manifest import Manifest, Pruned
from ..manifest import Step as Done
from ..measured import medians_s
from ..modules import Compressed, quantise
from ..pruning import prune
from ..served import dense, traced
from ..straight import quantise_aware
from .picking import Figures
from .recipes import Distil, Prune, Recipe, Round, is_ordered

FIT: Final = Fit(steps=300)
_CALIBRATED_ON: Final = 256  # samples: their moments are known well enough, and all go through at once
_AT_ONCE: Final = 256
_ANY: Final = 1.0  # of a layer's error: what a candidate loses is measured of the whole
_LABELS_WEIGHT: Final = 0.3  # the rest is what the module said before
_TEMPERATURE: Final = 2.0

# What takes no training comes first, then the milder of what does.
RECIPES: Final[tuple[Recipe, ...]] = (
    (Round(bits=8),),
    (Round(bits=4),),
    (Round(bits=4, trained=True),),
    (Prune(kind="channels", share=0.25), Round(bits=8)),
    (Prune(kind="channels", share=0.25), Round(bits=4, trained=True)),
    (Prune(kind="channels", share=0.5), Round(bits=8)),
    (Prune(kind="channels", share=0.5), Round(bits=4, trained=True)),
    (Prune(kind="channels", share=0.75), Round(bits=8)),
    (Prune(kind="channels", share=0.75), Round(bits=4, trained=True)),
    (Prune(kind="global", share=0.5), Round(bits=8)),
    (Prune(kind="global", share=0.75), Round(bits=8)),
    (Prune(kind="global", share=0.9), Round(bits=8)),
)


# Of the hidden width of one of our own architectures. A student of it begins with nothing, and takes the longest.
_STUDENTS: Final = (0.5, 0.25)


def recipes_for(module: nn.Module) -> tuple[Recipe, ...]:
    """Return what is tried on a module: on one of our own architectures narrower students too."""
    if not isinstance(module, Chain):
        return RECIPES
    spec = module.spec
    students: list[Recipe] = []
    for share in _STUDENTS:
        if (hidden := int(spec.hidden * share)) >= 1:
            numbers = parameter_count(msgspec.structs.replace(spec, hidden=hidden)) / parameter_count(spec)
            named = f"{spec.architecture}:hidden={hidden}"
            said = named if spec.hidden_activation == "sigmoid" else f"{named},hidden_activation=relu"
            students += [(Distil(student=said, share=numbers), Round(bits=bits)) for bits in (8, 4)]
    return (*RECIPES, *students)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Samples as tensors: (n, ...) and what is to be said of them."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def examples(module: nn.Module, data: Dataset, objective: Objective) -> Examples:
    """Take data as a module takes them. Raises UsageError for data without a test part, or that do not fit."""
    if data.x_test is None or data.y_test is None:
        raise UsageError("These data have no test part to measure on; hold one out, as `hold_out` does.")
    shape = module.spec.inputs if isinstance(module, Chain) else data.feature_shape
    if data.x[0].size != int(np.prod(shape)):
        raise UsageError(f"This model takes samples of {shape}; the data's are {data.feature_shape}.")
    parts = []
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        wanted = y if is_of_classes(objective) else y.reshape(len(y), -1).astype(np.float32)
        parts += [torch.from_numpy(x.reshape(len(x), *shape).copy()), torch.from_numpy(wanted.copy())]
    found = Examples(x=parts[0], y=parts[1], x_test=parts[2], y_test=parts[3])
    _require_answers(module, found, objective)
    return found


class Network:
    """Implements `Subject` for a module."""

    def __init__(
        self,
        module: nn.Module,
        data: Dataset,
        *,
        objective: Objective = "cross_entropy",
        recipes: Sequence[Recipe] | None = None,
        training: Fit = FIT,
        size_bytes: int | None = None,
        served: bool = False,
    ) -> None:
        """``size_bytes`` is what the module's file takes now; worked out where it is not given.

        ``served``: latency is that of the traced program that a node runs, else that of the module's own code. A
        program's operations cost more than torch's alone: where a model is small, what fewer channels save is less.
        """
        self.module = deepcopy(module).eval()
        self.data = examples(self.module, data, objective)
        self._objective, self._served = objective, served
        self._recipes = tuple(recipes) if recipes is not None else recipes_for(self.module)
        if wrong := [each for each in self._recipes if not is_ordered(each)]:
            raise UsageError(f"Steps come in the order distil, prune, round, each once; not as in {wrong[0]}.")
        self._fit = training
        self._size_bytes = plain_bytes(self.module) if size_bytes is None else size_bytes
        self._said = torch.cat([_outputs(self.module, part) for part in self.data.x.split(_AT_ONCE)])
        self._floats: dict[Recipe, tuple[nn.Module, tuple[Done, ...]]] = {(): (self.module, ())}
        self._before: Figures | None = None

    def recipes(self) -> Sequence[Recipe]:
        return self._recipes

    def before(self) -> Figures:
        if self._before is None:
            (latency_s,) = medians_s([self._answering(self.module)])
            self._before = Figures(size_bytes=self._size_bytes, latency_s=latency_s, quality=self._quality(self.module))
        return self._before

    def make(self, recipe: Recipe) -> Compressed:
        last = recipe[-1] if recipe and isinstance(recipe[-1], Round) else None
        module, done = self._float(recipe if last is None else recipe[:-1])
        if last is not None:
            module, more = self._rounded(module, last)
            done = (*done, *more)
        size_bytes = stored_bytes(module)
        return Compressed(
            module=module,
            manifest=Manifest(steps=done, size_bytes_before=self._size_bytes, size_bytes=size_bytes),
        )

    def measure(self, made: Compressed) -> Figures:
        before, quality = self.before(), self._quality(made.module)
        old, new = medians_s([self._answering(self.module), self._answering(made.module)])
        return Figures(
            size_bytes=made.manifest.size_bytes,
            latency_s=before.latency_s * new / old,
            quality=quality,
            lost=before.quality - quality,
        )

    def drop(self, made: Compressed) -> None:
        """Nothing is on disk."""

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """What fitting makes small: (x, labels, what the module said before)."""
        x, y, said = batch
        outputs = module(x)
        taught = taught_loss(self._objective, outputs, said, _TEMPERATURE)
        return _LABELS_WEIGHT * loss_of(self._objective, outputs, y) + (1 - _LABELS_WEIGHT) * taught

    def _float(self, recipe: Recipe) -> tuple[nn.Module, tuple[Done, ...]]:
        """Return what the steps before the rounding give; made once, as several roundings go on from it."""
        if recipe not in self._floats:
            module, done = self._float(recipe[:-1])
            match recipe[-1]:
                case Distil(student=student):
                    taught = distil(self._said, student, self.data.x, labels=self.data.y, objective=self._objective)
                    self._floats[recipe] = taught.module, (*done, taught.step)
                case Prune() as step:
                    pruned, made = self._pruned(module, step)
                    self._floats[recipe] = pruned, (*done, *made)
        return self._floats[recipe]

    def _pruned(self, module: nn.Module, step: Prune) -> tuple[nn.Module, tuple[Done, ...]]:
        if step.kind == "global":
            thin = prune(
                module, kind="global", share=step.share, data=self._batch(), loss=self.loss, fit=self._fit, must=()
            )
            return thin.module, thin.manifest.steps
        narrow = prune(module, kind="channels", share=step.share, data=self.data.x[:_CALIBRATED_ON], must=())
        fit(narrow.module, self._batch(), self.loss, self._fit)
        return narrow.module, tuple(
            msgspec.structs.replace(each, fitted_steps=self._fit.steps)
            for each in narrow.manifest.steps
            if isinstance(each, Pruned)
        )

    def _rounded(self, module: nn.Module, step: Round) -> tuple[nn.Module, tuple[Done, ...]]:
        if not step.trained:
            small = quantise(module, bits=step.bits, data=self.data.x[:_CALIBRATED_ON], error_max=_ANY, must=())
            return small.module, small.manifest.steps
        aware = quantise_aware(module, self._batch(), self.loss, step.bits, self._fit, after=_zeros_held(module))
        small = quantise(aware.module, bits=step.bits, error_max=_ANY, must=())  # without data: as it was trained
        return small.module, (aware.step, *small.manifest.steps)

    def _batch(self) -> tuple[Tensor, ...]:
        return self.data.x, self.data.y, self._said

    def _answering(self, module: nn.Module) -> "_Answer | _Served":
        x = self.data.x_test
        if not self._served:
            return _Answer(dense(module), x[:1])
        found = traced(module, x[:2])
        return _Served(Stage(found.program, 0, found.program.layers, found.weights), x[:1])

    def _quality(self, module: nn.Module) -> float:
        parts = zip(self.data.x_test.split(_AT_ONCE), self.data.y_test.split(_AT_ONCE), strict=True)
        return 100 * measured(self._objective, ((_outputs(module, x), y) for x, y in parts)).score


def _zeros_held(module: nn.Module) -> After:
    """Return what keeps a pruned module's zeros where they are while it is trained on."""
    kept = {name: each != 0 for name, each in module.named_parameters() if each.ndim > 1 and (each == 0).any()}

    def hold(now: nn.Module, _: int) -> None:
        for name, mask in kept.items():
            now.get_parameter(name).mul_(mask)

    return hold


def _outputs(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(x)
    return found.clone()


def _require_answers(module: nn.Module, data: Examples, objective: Objective) -> None:
    """Raise UsageError unless the module's outputs and the labels go together."""
    try:
        outputs = _outputs(module, data.x[:2])
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UsageError(f"The model does not take samples {tuple(data.x.shape[1:])}: {reason}") from error
    if outputs.ndim != 2 or len(outputs) != len(data.x[:2]):
        raise UsageError(f"The model gives {tuple(outputs.shape)} for 2 samples; outputs (samples, k) are understood.")
    top = int(torch.maximum(data.y.max(), data.y_test.max()))
    if is_of_classes(objective) and top >= outputs.shape[1]:
        raise UsageError(f"The model has {outputs.shape[1]} classes; the labels run to {top}.")
    if not is_of_classes(objective) and data.y.shape[1] != outputs.shape[1]:
        raise UsageError(f"The model gives {outputs.shape[1]} values to a sample; the data have {data.y.shape[1]}.")


@dataclass(frozen=True, slots=True)
class _Answer:
    module: nn.Module
    x: Tensor

    def __call__(self) -> None:
        with torch.inference_mode():
            self.module(self.x)


@dataclass(frozen=True, slots=True)
class _Served:
    stage: Stage
    x: Tensor

    def __call__(self) -> None:
        self.stage.run([self.x])
