"""What may go, and how much each number matters.

Numbers of all layers are compared as Lee et al. 2021 (LAMP) do: a number's square beside the sum of all that are not
smaller in its own layer, so that no layer is emptied because its numbers are small throughout. Where each layer gives
the same share, and data are there, a number counts with the size of the input that it is multiplied with, and is
compared within its output alone (Sun et al. 2024, Wanda).

Measured on the TinyStories model, perplexity 3.55, nothing trained afterwards, 30 % and 50 % gone: plain magnitude of
all layers 5.82 and 82.7, of each layer 4.96 and 43.5, LAMP 4.59 and 23.5, Wanda 4.43 and 19.8. Wanda across whole
layers or all of them is worse than within outputs (4.61 and 26.1; 8.78 and 161). Convolutions gain nothing by their
inputs (a trained ResNet-20 decides as before on 93 % and 56 % of a photograph's pieces with them, on 93 % and 64 %
without), and lose where each output gives the same share (84 % and 49 %): there each layer's own magnitudes count.
"""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..calibration import MULTIPLIED, matrices, moments_of

Scores = dict[str, Tensor]

NUMBERS_MIN: Final = 1024  # of a matrix: so small a one saves nothing, and often is the first or the last


def candidates(module: nn.Module, leave: Iterable[str] = ()) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Return the parameters that may lose numbers, and why the other matrices may not.

    ``leave`` are patterns of names. Biases and norms are never among either: they are few, and all are needed.
    """
    vocabularies = {each.weight.shape for each in module.modules() if isinstance(each, nn.Embedding)}
    found: dict[str, nn.Parameter] = {}
    left: dict[str, str] = {}
    for name, layer, parameter in matrices(module):
        if any(fnmatchcase(name, pattern) for pattern in leave):
            left[name] = "it was to be left alone"
        elif isinstance(layer, nn.Embedding):
            left[name] = "a row of it is one token's: rare ones have small numbers, and need them"
        elif parameter.shape in vocabularies:
            left[name] = "it is the head of a vocabulary"
        elif parameter.numel() < NUMBERS_MIN:
            left[name] = f"it has {parameter.numel()} numbers: nothing is saved there"
        else:
            found[name] = parameter
    return found, left


def magnitudes(parameters: Mapping[str, Tensor]) -> Scores:
    """How large each number is."""
    return {name: each.detach().abs() for name, each in parameters.items()}


def shares_of_rest(parameters: Mapping[str, Tensor]) -> Scores:
    """Each number's square, by the sum of the squares in its layer that are not smaller (LAMP)."""
    found: Scores = {}
    for name, each in parameters.items():
        squares, order = each.detach().flatten().to(torch.float64).square().sort(descending=True, stable=True)
        scores = torch.empty_like(squares)
        scores[order] = squares / squares.cumsum(0).clamp_(min=torch.finfo(torch.float64).tiny)
        found[name] = scores.view_as(each)
    return found


def with_inputs(parameters: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> Scores:
    """How large each number is, times its input's size; ``sizes`` (K,) are those of matrices that data reach."""
    found = magnitudes(parameters)
    for name, size in sizes.items():
        found[name] = (found[name].flatten(1) * size).view_as(found[name])
    return found


def input_sizes(module: nn.Module, names: Iterable[str], call: Callable[[], object]) -> dict[str, Tensor]:
    """Return the root mean square of each input of these matrices, float32 (K,), while ``call`` runs the module."""
    return {name: each.diagonal().sqrt().to(torch.float32) for name, each in input_moments(module, names, call).items()}


def input_moments(module: nn.Module, names: Iterable[str], call: Callable[[], object]) -> dict[str, Tensor]:
    """Return E[x x^T], float64 (K, K), of each matrix's inputs while ``call`` runs the module, where they are plain."""
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        if name not in found and (moments := moments_of(layer, given[0].detach())) is not None:
            found[name] = moments

    layers = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}
    hooks = [
        layer.register_forward_pre_hook(partial(keep, name))
        for name, layer in layers.items()
        if isinstance(layer, MULTIPLIED)
    ]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()
            call()
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return found
