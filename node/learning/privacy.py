"""Record-level differential privacy of one node's training: gradients that tell little of any one training record.

DP-SGD (Abadi et al. 2016): each step takes each record with a probability of its own coin (Poisson sampling), clips
each record's gradient to a norm, and adds Gaussian noise to their sum. The noise is added here, before anything leaves
the node; so whoever reads its messages, all other members together too, learns no more than the epsilon allows. What is
done with a gradient afterwards (momentum, decay, proximal term, tracking, averaging, codecs) costs nothing more.

What the epsilon is about: two data sets that differ by one training record; how many records there are is public. It
covers what depends on training records only: the accuracy that a node publishes is measured on its held-out records,
and says something about those. Losses of batches are not published. How long a step takes is not hidden.

Coins and noise come from the system's cryptographic generator, never from the task's seed, which everybody knows.
Noise in floating-point numbers is not the Gaussian of the proof: its low bits can give away what it hides (Mironov
2012). As opacus' secure mode does, each value is the sum of four normals, halved, which withstands the known attack
(Holohan and Braghin 2021), and the sum of noise and gradients is worked out in float64, then rounded to float32. That
is hardening, and no proof; so "the noise is Gaussian" remains an assumption of every epsilon printed.
"""

import secrets
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..objective import Objective
from .losses import loss_of

_PER_SAMPLE_NUMBERS_MAX: Final = 2**23  # of gradients held at once, 64 MiB: a batch of a larger model goes in parts
_NORMALS: Final = 4  # that each value of the noise is made of

Source = Callable[[int], bytes]  # that many random bytes
Doubles = npt.NDArray[np.float64]


class PrivateGradient:
    """The gradient of one model on n records, noise included. Raises UsageError for a model that it cannot be taken of.

    ``rate`` is the probability of each record in each step, ``noise`` the standard deviation in clip norms.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        rate: float,
        noise: float,
        clip_norm: float,
        objective: Objective = "cross_entropy",
        source: Source = secrets.token_bytes,
    ) -> None:
        self.rate, self.noise, self.clip_norm = rate, noise, clip_norm
        self._x, self._y = x, y
        self._source = source
        self._parameters = {name: part for name, part in model.named_parameters() if part.requires_grad}
        self._size = sum(part.numel() for part in self._parameters.values())
        _refuse_batch_normalisation(model)
        self._per_sample = _per_sample(model, objective)
        try:
            self._clipped_sum(np.zeros(1, dtype=np.int64))
        except RuntimeError as error:
            raise UsageError(f"this model's gradients cannot be taken record by record: {error}") from error

    def write(self, gradient: Tensor) -> None:
        """Put the gradient of one step into float32 (P,): noisy sum over the expected, not the real, batch size."""
        records = len(self._x)
        chosen = np.flatnonzero(uniform(self._source, records) < self.rate)
        total = normal(self._source, self._size) * (self.noise * self.clip_norm)
        at_once = max(1, _PER_SAMPLE_NUMBERS_MAX // self._size)
        for start in range(0, len(chosen), at_once):  # not once, where nothing was chosen: then it is noise alone
            total = total + self._clipped_sum(chosen[start : start + at_once])
        gradient.copy_(torch.from_numpy(total / (self.rate * records)))

    def _clipped_sum(self, chosen: npt.NDArray[np.int64]) -> Doubles:
        """The sum of these records' gradients (P,), each at most ``clip_norm`` long."""
        here = {name: part.detach() for name, part in self._parameters.items()}
        index = torch.from_numpy(chosen)  # (B,)
        gradients = self._per_sample(here, self._x[index], self._y[index])
        flat = torch.cat([gradients[name].reshape(len(chosen), -1) for name in here], dim=1)  # (B, P)
        # A record whose gradient is not finite counts as none: one NaN in the sum would tell of it.
        flat = flat.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).double()
        lengths = flat.norm(dim=1).clamp_(min=self.clip_norm)  # (B,)
        summed: Doubles = (flat * (self.clip_norm / lengths)[:, None]).sum(dim=0).numpy()
        return summed


def sampling_rate(batch_size: int, records: int) -> float:
    """With which probability a step takes each record, so that a batch has ``batch_size`` of them on average."""
    return min(1.0, batch_size / records)


def uniform(source: Source, count: int) -> Doubles:
    """Numbers (count,) in [0, 1), all 53 bits of them random."""
    bits = np.frombuffer(source(8 * count), dtype=np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def normal(source: Source, count: int) -> Doubles:
    """Standard normal numbers (count,): each half the sum of four, of Box and Muller (1958), none beyond 17.2."""
    half = _NORMALS // 2
    radius = np.sqrt(-2 * np.log1p(-uniform(source, half * count)))
    angle = 2 * np.pi * uniform(source, half * count)
    parts = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(_NORMALS, count)
    summed: Doubles = parts.sum(axis=0) / np.sqrt(_NORMALS)
    return summed


def _per_sample(
    model: nn.Module, objective: Objective
) -> Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]:
    """The gradients of each record's own loss: parameters (...), x (B, ...), y (B, ...) to name -> (B, ...)."""
    from torch.func import functional_call, grad, vmap  # it imports for half a second, and few tasks want it

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(objective, functional_call(model, parameters, (x[None],)), y[None])

    each: Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]
    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    return each


def _refuse_batch_normalisation(model: nn.Module) -> None:
    for name, part in model.named_modules():
        if "BatchNorm" in type(part).__name__ or getattr(part, "running_mean", None) is not None:
            kind = type(part).__name__
            raise UsageError(
                f"{name!r} of this model is a {kind}: it mixes the records of a batch and keeps their statistics, "
                "which no noise protects; use group or layer normalisation, or train without `dp`"
            )
