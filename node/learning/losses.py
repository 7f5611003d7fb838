"""Each objective's loss, and how well a model does by it: accuracy where there is right and wrong, else R2.

R2 is the share of the test part's variance that the model explains: 1 - sum (y - answer)^2 / sum (y - mean)^2, the mean
that of each output over the test part, both sums over all outputs. 1 is perfect, 0 as good as the mean, less is worse.
"""

import math
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...mesh.errors import UsageError
from ..objective import Objective, is_of_classes, is_of_values
from ..shapes import ModelSpec
from .formats.checks import UNLABELLED, Targets, require_classes


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model does on ``samples`` held-out samples: its mean loss (nats where it answers probabilities), and more.

    ``accuracy`` is the share that it gets right, NaN where values are predicted; ``r2`` is for those alone.
    """

    accuracy: float = math.nan
    r2: float | None = None
    loss: float
    samples: int

    @property
    def score(self) -> float:
        """What is the better the higher: accuracy or R2."""
        return self.accuracy if self.r2 is None else self.r2


def accuracy_of(metrics: Metrics) -> float | None:
    """Return the accuracy, None where there is none."""
    return None if math.isnan(metrics.accuracy) else metrics.accuracy


def loss_of(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of a batch: what the model's last layer gave (B, k), and what it is to learn.

    ``y`` is int64 (B,) of classes, else float32 (B, k). Logits are taken where probabilities are answered.
    """
    match objective:
        case "cross_entropy":
            return functional.cross_entropy(outputs, y)
        case "binary_cross_entropy":
            return functional.binary_cross_entropy_with_logits(outputs, y)
        case "mse":
            return functional.mse_loss(outputs, y)
        case "mae":
            return functional.l1_loss(outputs, y)
        case "huber":  # Huber 1964, with delta 1: squares near, and beyond that straight lines
            return functional.huber_loss(outputs, y)


def taught_loss(objective: Objective, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean loss of a batch against what a teacher gave for it, both (B, ..., k), the last axis of outputs.

    Of classes it is the divergence of both softened by the temperature T, times T^2, so that its gradient is as large
    as that of labels (Hinton et al. 2015, section 2.1); of yes or no likewise; of values the objective's own loss.
    """
    if is_of_values(objective):
        return loss_of(objective, outputs, teacher)
    soft, wanted = outputs / temperature, teacher / temperature
    if is_of_classes(objective):
        of_each = functional.kl_div(soft.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True)
        return of_each.sum(-1).mean() * temperature**2
    own = functional.binary_cross_entropy_with_logits(wanted, wanted.sigmoid())  # so that it is 0 for an equal student
    return (functional.binary_cross_entropy_with_logits(soft, wanted.sigmoid()) - own) * temperature**2


def logits_from(objective: Objective, answers: Tensor) -> Tensor:
    """Return outputs that a model may have had which answered this: log p of classes, logits of yes or no, or values.

    Softened by any temperature they say what the model's own would: those differ by a constant for each sample. What
    is too unlikely for float32 (10^-38) becomes that.
    """
    if is_of_values(objective):
        return answers
    tiny = torch.finfo(torch.float32).tiny
    if is_of_classes(objective):
        return answers.clamp_min(tiny).log()
    return answers.clamp_min(tiny).log() - (1 - answers).clamp_min(tiny).log()


def labels_loss(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """Return `loss_of` where some samples may have no label: of classes (B, ..., k) those are -1 and left out."""
    if not is_of_classes(objective):
        return loss_of(objective, outputs, y)
    flat, known = y.flatten(), (y != UNLABELLED).sum().clamp_min(1)
    logits = outputs.reshape(len(flat), -1)
    return functional.cross_entropy(logits, flat, ignore_index=UNLABELLED, reduction="sum") / known


def measured(objective: Objective, parts: Iterable[tuple[Tensor, Tensor]]) -> Metrics:
    """Measure a model's outputs (B, k) and what was to be learned, part by part. At least one sample."""
    loss, right, answers, samples, error = 0.0, 0, 0, 0, 0.0
    truths: list[Tensor] = []
    for outputs, y in parts:
        samples += len(y)
        loss += float(loss_of(objective, outputs, y)) * len(y)
        if is_of_values(objective):
            error += float((outputs - y).double().square().sum())
            truths.append(y)
            continue
        good = outputs.argmax(dim=1) == y if is_of_classes(objective) else (outputs >= 0) == (y >= 0.5)
        right, answers = right + int(good.sum()), answers + good.numel()
    if not is_of_values(objective):
        return Metrics(accuracy=right / answers, loss=loss / samples, samples=samples)
    return Metrics(r2=_r2(error, torch.cat(truths).double()), loss=loss / samples, samples=samples)


def _r2(error: float, truth: Tensor) -> float:
    spread = float((truth - truth.mean(dim=0)).square().sum())
    if spread > 0:
        return 1 - error / spread
    return 1.0 if error == 0 else 0.0  # all the same: nothing to explain


def loss_of_guessing(spec: ModelSpec, y: Tensor, y_test: Tensor) -> float:
    """Return the loss on ``y_test`` of who knows no samples: each class alike, or the mean of ``y``."""
    if is_of_classes(spec.objective):
        return math.log(spec.classes)
    if not is_of_values(spec.objective):
        return math.log(2)
    return float(loss_of(spec.objective, y.mean(dim=0).expand_as(y_test), y_test))


def tensors_for(
    spec: ModelSpec, x: npt.NDArray[np.float32], y: Targets, *, unlabelled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return samples (n, *inputs) and what is to be learned, int64 (n,) or float32 (n, k); UsageError: no fit.

    ``unlabelled``: some may be -1 in place of a class.
    """
    if len(x) != len(y):
        raise UsageError(f"the data are {x.shape} with {len(y)} labels; each sample needs its own")
    samples = samples_for(spec, x)
    if not is_of_classes(spec.objective):
        return samples, torch.from_numpy(_values(spec, y))
    require_classes(y)
    if y.min() < (UNLABELLED if unlabelled else 0) or y.max() >= spec.classes:
        raise UsageError(f"the model has {spec.classes} classes; the labels run from {y.min()} to {y.max()}")
    return samples, torch.from_numpy(y.copy())


def samples_for(spec: ModelSpec, x: npt.NDArray[np.float32]) -> Tensor:
    """Return samples (n, *inputs). Raises UsageError for those of another size."""
    if len(x) == 0 or x[0].size != math.prod(spec.inputs):
        raise UsageError(f"the model takes samples of {spec.inputs}; the data are {x.shape}")
    return torch.from_numpy(x.reshape(len(x), *spec.inputs).copy())


def _values(spec: ModelSpec, y: Targets) -> npt.NDArray[np.float32]:
    values = y.reshape(len(y), -1).astype(np.float32)
    if values.shape[1] != spec.classes:
        raise UsageError(f"the model answers {spec.classes} numbers to a sample; the data have {values.shape[1]}")
    if not np.isfinite(values).all():
        raise UsageError("the labels hold NaN or infinity; drop these samples")
    if spec.objective == "binary_cross_entropy" and not ((values >= 0) & (values <= 1)).all():
        raise UsageError(
            f"labels of the objective 'binary_cross_entropy' are 0 to 1; these run from {values.min():g} to "
            f"{values.max():g}"
        )
    return values
