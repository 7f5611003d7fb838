"""Training a module here for some steps: after pruning, from a teacher, or against rounded weights.

Which rows make up step t follows from (seed, t), so the same call gives the same module on the same machine.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ...mesh.errors import LeptonError, UsageError

Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]  # (the module, a batch of each array of the data) -> ()
After = Callable[[nn.Module, int], None]  # (the module, steps done): holds masks, rounds, prunes some more
Around = Callable[[], AbstractContextManager[None]]  # what holds while a batch goes forth and back

_WARMUP: Final = 0.05  # of all steps; Adam's first estimates are of few gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How to train. The defaults are for going on from trained weights; from none, take ten times the rate."""

    steps: int = 200
    batch_size: int = 64
    rate: float = 1e-3  # of Adam, at its height; then it falls to 0 as a cosine
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0


def fit(
    module: nn.Module,
    data: Sequence[Tensor],
    loss: Loss,
    said: Fit | None = None,
    *,
    after: After | None = None,
    around: Around = nullcontext,
) -> list[float]:
    """Train a module in place on rows of ``data`` (arrays of n rows each); returns each step's loss.

    Raises UsageError for data that do not go together, LeptonError when training has diverged.
    """
    said = said or Fit()
    rows = len(data[0]) if data else 0
    if not rows or any(len(array) != rows for array in data):
        raise UsageError(f"The data have {[len(array) for array in data]} rows; each array needs as many, and one.")
    optimiser = torch.optim.AdamW(
        [each for each in module.parameters() if each.requires_grad], lr=said.rate, weight_decay=said.weight_decay
    )
    warm = max(int(_WARMUP * said.steps), 1)
    rising = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=warm)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(said.steps - warm, 1))
    rates = torch.optim.lr_scheduler.SequentialLR(optimiser, [rising, falling], [warm])
    losses = []
    was_training = module.training
    module.train()
    for step in range(said.steps):
        chosen = torch.randint(rows, (min(said.batch_size, rows),), generator=_generator(said.seed, step))
        optimiser.zero_grad(set_to_none=True)
        with around():
            value = loss(module, tuple(array[chosen] for array in data))
            value.backward()
        if said.clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), said.clip_norm)
        optimiser.step()
        rates.step()
        if after is not None:
            with torch.no_grad():
                after(module, step + 1)
        losses.append(float(value.detach()))
        if not torch.isfinite(value):
            raise LeptonError(f"training diverged at step {step}: lower the rate, now {said.rate:g}")
    module.train(was_training)
    return losses


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
