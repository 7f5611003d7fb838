"""Which numbers of a module travel: one flat float32 vector in, one out, whatever the module is made of.

Parameters travel unless they are frozen (not trained) or local (trained, and never leave: personal layers). Of buffers
the statistics of batch normalisation travel, the variance as the second moment E[x^2] = var + mean^2: the average of
moments is the moment of all data together, while the average of variances would forget that nodes' means differ.
Counters and all other buffers stay.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..shapes import Vector
from .settings import Parts


class Shared:
    """The travelling part of one module. Its order is that of the module, the same wherever it is built."""

    def __init__(self, module: nn.Module, parts: Parts | None = None) -> None:
        """Freezes what is not trained. Raises UsageError for a pattern that fits nothing, or if nothing travels."""
        parts = parts or Parts()
        named = dict(module.named_parameters())
        _require_used(parts, named)
        self.trained: list[nn.Parameter] = []
        self.shared: list[nn.Parameter] = []
        for name, parameter in named.items():
            trained = _fits(name, parts.train) or _fits(name, parts.local)
            parameter.requires_grad_(trained)
            if trained:
                self.trained.append(parameter)
                if not _fits(name, parts.local):
                    self.shared.append(parameter)
        self.local = [parameter for parameter in self.trained if not any(parameter is other for other in self.shared)]
        self._norms = [] if not self.shared else list(_norms(module))
        if not self.shared:
            raise UsageError("no parameter of this model would be averaged: all are local or frozen")

    @property
    def size(self) -> int:
        """D, the length of the vector."""
        return sum(tensor.numel() for tensor in self._tensors())

    def read(self) -> Vector:
        """Return a copy of what travels: float32 (D,)."""
        parts = [parameter.detach() for parameter in self.shared]
        for mean, variance in self._norms:
            parts += [mean, variance + mean * mean]
        return _flat(parts)

    def write(self, vector: Vector) -> None:
        """Put a vector in; raises UsageError, changing nothing, unless it is finite float32 (D,)."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise UsageError(f"this model takes float32 ({self.size},), got {vector.dtype} {vector.shape}")
        if not np.isfinite(vector).all():
            raise UsageError("these parameters hold NaN or infinity, so the model keeps the ones it has")
        parts = iter(torch.from_numpy(vector.copy()).split([tensor.numel() for tensor in self._tensors()]))
        with torch.no_grad():
            for parameter in self.shared:
                parameter.copy_(next(parts).view_as(parameter))
            for mean, variance in self._norms:
                mean.copy_(next(parts).view_as(mean))
                moment = next(parts).view_as(variance).to(mean.device)
                variance.copy_((moment - mean * mean).clamp_(min=0.0))  # rounding on the way may leave it under 0

    def read_local(self) -> Vector:
        """Return a copy of the parameters that never leave: float32 (L,)."""
        return _flat([parameter.detach() for parameter in self.local])

    def write_local(self, vector: Vector) -> None:
        """Put them back, as from a checkpoint; raises UsageError unless they fit."""
        sizes = [parameter.numel() for parameter in self.local]
        if vector.dtype != np.float32 or vector.shape != (sum(sizes),):
            raise UsageError(f"this model has {sum(sizes)} local parameters, got {vector.dtype} {vector.shape}")
        parts = torch.from_numpy(vector.copy()).split(sizes)
        with torch.no_grad():
            for parameter, part in zip(self.local, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.shared
        for mean, variance in self._norms:
            yield mean
            yield variance


def _norms(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    for part in module.modules():
        mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            yield mean, variance


def _flat(parts: Sequence[Tensor]) -> Vector:
    if not parts:
        return np.empty(0, dtype=np.float32)
    flat: Vector = torch.cat([part.reshape(-1).float().cpu() for part in parts]).numpy()
    return flat


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_used(parts: Parts, named: Iterable[str]) -> None:
    for pattern in (*parts.train, *parts.local):
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UsageError(f"{pattern!r} fits no parameter of this model; it has {', '.join(named)}")
