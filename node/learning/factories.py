"""What functions of the owner's own make of a description: models, tried before anything is learned.

A factory takes nothing and returns a `torch.nn.Module` that takes float32 (B, *inputs) and gives (B, classes): logits,
or values. Nodes average numbers by their place: `structure` says what a vector's numbers mean, so that two factories of
one name that make different models are told apart.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from ...mesh.errors import LeptonError, UsageError
from ..shapes import ModelSpec
from .shared import Shared

# A gigabyte of float32: a node that trains holds some six times as much. Rounds and joiners' models go in pieces.
OWN_PARAMETERS_MAX: Final = 256 * 1024 * 1024
_PROBE: Final = 2  # samples that a new model is tried on: batch normalisation takes no single one


@contextmanager
def owners_code(spec: ModelSpec) -> Iterator[None]:
    """Turn whatever an owner's own model raises into UsageError: the node goes on. Others' errors stay as they are."""
    try:
        yield
    except LeptonError:
        raise
    except Exception as error:
        if spec.architecture != "own":
            raise
        raise UsageError(f"the model {spec.factory} failed: {type(error).__name__}: {error}") from error


def made(spec: ModelSpec, function: Callable[[], object]) -> nn.Module:
    """Build a model with its first values. Raises UsageError for one that cannot be trained here."""
    with owners_code(spec), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # all begin with the same values, if the factory takes them from torch
        return _checked(spec, function())


def structure(shared: Shared, module: nn.Module) -> str:
    """Hash what the vector of ``shared`` means: how long it is, and its parameters' names, shapes and dtypes."""
    ids = {id(parameter) for parameter in shared.shared}
    named = module.named_parameters()
    lines = [f"{name} {tuple(one.shape)} {one.dtype}" for name, one in named if id(one) in ids]
    return hashlib.sha256("\n".join([str(shared.size), *lines]).encode()).hexdigest()


def _checked(spec: ModelSpec, module: object) -> nn.Module:
    name = spec.factory
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name}: returned {type(module).__name__}; return a torch.nn.Module")
    parameters = list(module.parameters())
    for parameter in parameters:
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            kind = f"{parameter.dtype} on {parameter.device}"
            raise UsageError(f"{name}: has parameters of {kind}; a task trains torch.float32 on the cpu")
    if (count := sum(parameter.numel() for parameter in parameters)) > OWN_PARAMETERS_MAX:
        raise UsageError(f"{name}: has {count:,} parameters, more than the {OWN_PARAMETERS_MAX:,} that a task may have")
    with torch.no_grad():  # not inference_mode: what a model computes once and keeps must be fit for training
        y = module.eval()(torch.zeros(_PROBE, *spec.inputs))
    wanted = (_PROBE, spec.classes)
    if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UsageError(f"{name}: makes {got} of samples {(_PROBE, *spec.inputs)}; it must make logits {wanted}")
    return module.train()
