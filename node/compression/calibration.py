"""Rounding a module's matrices while data go through it: each layer sees inputs that the layers before it, rounded
already, really give.

All of the data go through at once, so that one pass is enough, whatever the module does between its layers. What no
moments can be had of is rounded by itself: embeddings (looked up, not multiplied), recurrent weights (their inputs are
inside) and layers that the data do not reach.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import Rounded
from ..models import ConvPool
from ..recurrent import Recurrent
from .gptq import round_compensated, round_searched

BitsOf = Callable[[str], int]  # a parameter's name to the bits of its numbers; 0 leaves it as it is
MULTIPLIED: Final = (nn.Linear, nn.Conv1d, nn.Conv2d)
BY_THEMSELVES: Final = (nn.Embedding, nn.LSTM, nn.GRU, Recurrent)

# What becomes float64 at once: a convolution's patches are several times its input.
_ROWS: Final = 4096
_IMAGES: Final = 8


def matrices(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Give the parameters that can be rounded, each once under its first name, with the layer that has it."""
    seen: set[int] = set()
    for prefix, layer in module.named_modules():
        if not isinstance(layer, (*MULTIPLIED, *BY_THEMSELVES)):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.ndim > 1 and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, layer, parameter


def round_parameters(module: nn.Module, data: Sequence[Any] | None, bits_of: BitsOf) -> dict[str, Rounded]:
    """Round what ``bits_of`` names, and make the module's parameters the numbers that the integers stand for.

    ``data`` are the arguments of one call of the module; without them each matrix is rounded by itself. Returned are
    the rounded matrices (outputs, all other axes) under their parameters' names. Raises UsageError for NaN.
    """
    todo = {name: (layer, parameter) for name, layer, parameter in matrices(module) if bits_of(name)}
    found: dict[str, Rounded] = {}

    def settle(name: str, parameter: nn.Parameter, moments: Tensor | None) -> None:
        if name in found:
            return
        weight, bits = parameter.detach().flatten(1), bits_of(name)
        found[name] = round_searched(weight, bits) if moments is None else round_compensated(weight, bits, moments)
        with torch.no_grad():
            parameter.copy_(found[name][:].view_as(parameter))

    for name, (layer, parameter) in todo.items():
        if isinstance(layer, BY_THEMSELVES):
            settle(name, parameter, None)
    if data is not None:
        _watched(module, data, todo, settle)
    for name, (_, parameter) in todo.items():
        settle(name, parameter, None)
    return {name: found[name] for name in todo}


def moments_of(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return E[x x^T], float64 (K, K), of the vectors that a layer's matrix (n, K) is multiplied with; else None."""
    if isinstance(layer, nn.Linear):
        return _mean(iter(x.reshape(-1, layer.in_features).split(_ROWS)), layer.in_features)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        if isinstance(layer, ConvPool):  # which takes whatever lies as images do
            x = x.reshape(-1, *layer.image)
        x = x.unsqueeze(0) if x.ndim == (2 if isinstance(layer, nn.Conv1d) else 3) else x
        return _mean((_patches(layer, piece) for piece in x.split(_IMAGES)), layer.weight[0].numel())
    return None  # a grouped convolution has a matrix of few columns for each group


def _mean(pieces: Iterator[Tensor], columns: int) -> Tensor:
    total, count = torch.zeros(columns, columns, dtype=torch.float64), 0
    for piece in pieces:
        rows = piece.to("cpu", torch.float64)
        total.addmm_(rows.T, rows)
        count += len(rows)
    return total / max(count, 1)


def _watched(
    module: nn.Module,
    data: Sequence[Any],
    todo: Mapping[str, tuple[nn.Module, nn.Parameter]],
    settle: Callable[[str, nn.Parameter, Tensor | None], None],
) -> None:
    def reached(name: str, parameter: nn.Parameter, layer: nn.Module, given: tuple[Any, ...]) -> None:
        settle(name, parameter, moments_of(layer, given[0]))

    places = [(layer, partial(reached, name, parameter)) for name, (layer, parameter) in todo.items()]
    hooks = [layer.register_forward_pre_hook(hook) for layer, hook in places if isinstance(layer, MULTIPLIED)]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(*data)
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Cut (B, C, ...) into what each place of the output is made of: (B * places, C * kernel)."""
    flat = isinstance(layer, nn.Conv1d)
    kernel, stride, dilation = (
        (1, *sizes) if flat else sizes for sizes in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padding = layer._reversed_padding_repeated_twice  # noqa: SLF001  the one place that knows 'same' too
    x = F.pad(x, padding)
    patches = F.unfold(x.unsqueeze(2) if flat else x, kernel, dilation=dilation, stride=stride)  # (B, C k, places)
    return patches.transpose(1, 2).flatten(0, 1)
