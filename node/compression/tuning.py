"""Scales and norms of a rounded language model, taught what the float one says; its integers stay.

The second phase of EfficientQAT (Chen et al. 2024), with the float model as the teacher (Hinton et al. 2015) in place
of labels. On the TinyStories model 100 steps take a quarter off the divergence that rounding left, on other texts too.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from ..kernels import Rounded
from ..language.layout import EMBEDDING, HEAD
from .decoder import Decoder

STEPS: Final = 100  # with 300 it learns the texts by heart
_ROWS: Final = 4  # texts of a step
_RATE: Final = 3e-3  # of Adam, falling to 0 along a cosine


def tuned(
    decoder: Decoder,
    teacher: Decoder,
    rounded: Mapping[str, Rounded],
    data: Tensor,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> dict[str, Rounded]:
    """Return the rounded matrices with better scales; the decoder gets them, and its vectors become better too.

    ``data`` are texts int64 (n, T). Each step's texts are drawn with ``seed``.
    """
    integers = {name: matrix.groups(slice(None))[0].to(torch.float32) for name, matrix in rounded.items()}
    scales = {name: matrix.groups(slice(None))[1].to(torch.float32) for name, matrix in rounded.items()}
    factors = {name: torch.zeros_like(scale).requires_grad_() for name, scale in scales.items()}  # logarithms
    vectors = {n: p.detach().clone().requires_grad_() for n, p in decoder.named_parameters() if p.ndim == 1}
    optimizer = torch.optim.Adam([*factors.values(), *vectors.values()], lr=_RATE, betas=(0.9, 0.95))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = data[torch.randperm(len(data), generator=draw)[:_ROWS]]
        moved = {name: scale * factors[name].exp() for name, scale in scales.items()}
        state = _tied(decoder, _weights(integers, moved, rounded))
        loss = _divergence(functional_call(decoder, {**state, **vectors}, (rows,)), teacher, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    final = {name: (scale * factors[name].detach().exp()).to(torch.bfloat16) for name, scale in scales.items()}
    found = {
        name: Rounded.of(integers[name].to(torch.int8), final[name], matrix.bits, matrix.shape[1])
        for name, matrix in rounded.items()
    }
    with torch.no_grad():
        for name, values in {**{name: matrix[:] for name, matrix in found.items()}, **vectors}.items():
            decoder.get_parameter(name).copy_(values)
    return found


def _weights(
    integers: Mapping[str, Tensor], scales: Mapping[str, Tensor], rounded: Mapping[str, Rounded]
) -> dict[str, Tensor]:
    return {
        name: (whole * scales[name].unsqueeze(2)).flatten(1)[:, : rounded[name].shape[1]]
        for name, whole in integers.items()
    }


def _tied(decoder: Decoder, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, HEAD: weights[EMBEDDING]} if decoder.config.tied else weights


def _divergence(logits: Tensor, teacher: Decoder, rows: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = F.log_softmax(teacher(rows), dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), wanted, reduction="sum", log_target=True) / rows.numel()
