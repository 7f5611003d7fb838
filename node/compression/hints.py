"""What hidden layers of a teacher give, for a student's to come near to (FitNets, Romero et al. 2015).

Where widths differ the student's numbers go through a learned projection, which is thrown away afterwards; where images
differ in size the teacher's are brought to the student's. A layer's numbers lie along axis 1 of images (B, C, H, W),
else along the last axis. Distances are in variances of the teacher's numbers, so that layers count alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ...mesh.errors import UsageError

Pairs = Sequence[tuple[str, str]]  # names of modules: the teacher's, the student's

_IMAGE_AXES: Final = 4


class Hints(nn.Module):
    """Pairs of layers, what they gave last, and the projections between them."""

    def __init__(self, pairs: Pairs = ()) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.projections = nn.ModuleList()
        self._teacher: dict[str, Tensor] = {}
        self._student: dict[str, Tensor] = {}

    @classmethod
    @contextmanager
    def between(cls, teacher: nn.Module, student: nn.Module, pairs: Pairs, data: Sequence[Tensor]) -> Iterator[Self]:
        """Watch both modules' layers. Raises UsageError for layers that are not there, or cannot be compared."""
        hints = cls(pairs)
        hooks: list[RemovableHandle] = []
        try:
            hooks += _watch(teacher, [name for name, _ in pairs], hints._teacher, "teacher")
            hooks += _watch(student, [name for _, name in pairs], hints._student, "student")
            if pairs:
                hints._begin(teacher, student, data)
            yield hints
        finally:
            for hook in hooks:
                hook.remove()

    def distance(self) -> Tensor:
        """Return the sum of the pairs' distances in what both modules gave last."""
        total = torch.zeros(())
        for (theirs, own), turned in zip(self.pairs, self.projections, strict=True):
            total = total + _distance(turned(_turn(self._student[own])), _turn(self._teacher[theirs]))
        return total

    def _begin(self, teacher: nn.Module, student: nn.Module, data: Sequence[Tensor]) -> None:
        few = [each[:2] for each in data]
        was_training = student.training
        with torch.no_grad():
            teacher(*few)
            student.eval()(*few)
        student.train(was_training)
        with torch.random.fork_rng(devices=[]):  # the same call gives the same student
            torch.manual_seed(0)
            for theirs, own in self.pairs:
                self.projections.append(_projection(self._student[own], self._teacher[theirs]))


def _watch(module: nn.Module, names: Sequence[str], found: dict[str, Tensor], whose: str) -> list[RemovableHandle]:
    parts = dict(module.named_modules())
    if missing := [name for name in names if name not in parts]:
        raise UsageError(f"The {whose} has no layer {missing[0]!r}; it has {', '.join(filter(None, parts))[:500]}.")

    def keep(name: str, _layer: nn.Module, _given: object, out: object) -> None:
        first = out[0] if isinstance(out, tuple) and out else out  # recurrent layers also give their state
        if not isinstance(first, Tensor):
            raise UsageError(f"The {whose}'s layer {name!r} gives {type(first).__name__}, no tensor to compare.")
        found[name] = first

    return [parts[name].register_forward_hook(partial(keep, name)) for name in names]


def _turn(x: Tensor) -> Tensor:
    """Lay a layer's numbers along the last axis."""
    return x.movedim(1, -1) if x.ndim == _IMAGE_AXES else x


def _projection(student: Tensor, teacher: Tensor) -> nn.Module:
    if student.ndim != teacher.ndim:
        raise UsageError(f"Layers of {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared.")
    own, wanted = _turn(student).shape[-1], _turn(teacher).shape[-1]
    return nn.Identity() if own == wanted else nn.Linear(own, wanted)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of (B, ..., k), the teacher's being averaged or repeated where images differ in size."""
    if teacher.ndim == _IMAGE_AXES and student.shape != teacher.shape:
        turned = F.adaptive_avg_pool2d(teacher.movedim(-1, 1), (student.shape[1], student.shape[2]))
        teacher = turned.movedim(1, -1)
    if student.shape != teacher.shape:
        raise UsageError(f"Layers of {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared.")
    return F.mse_loss(student, teacher) / teacher.var().clamp_min(torch.finfo(teacher.dtype).eps)
