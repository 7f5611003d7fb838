"""A program's weight out of the tensors of a file: as it lies there, or unpacked where it was rounded or coded.

A file may come from a stranger: nothing becomes larger than the program says that the weight is.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...mesh.errors import UsageError
from ..kernels import Rounded
from ..kernels.grouping import GROUP
from ..language.layout import CODED
from .program import Weight


def weight_bytes(weight: Weight) -> int:
    """Return what a weight takes in memory."""
    return math.prod(weight.shape) * torch.empty((), dtype=getattr(torch, weight.dtype)).element_size()


def read_weight(weight: Weight, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return what operations see of a weight. Raises UsageError for one that is not there, or is something else."""
    tensor = _unpacked(weight, tensors) if weight.bits else _stored(weight, weight.stored, tensors)
    if tensor.dtype != getattr(torch, weight.dtype) or tuple(tensor.shape) != weight.shape:
        raise UsageError(
            f"The weight {weight.stored!r} of a program is {tensor.dtype} {list(tensor.shape)}; "
            f"it says {weight.dtype} {list(weight.shape)}."
        )
    return tensor.detach()


def read_rounded(weight: Weight, tensors: Mapping[str, Tensor]) -> Rounded:
    """Return the integers and scales of a rounded weight. Raises UsageError for what does not fit."""
    columns, halves = math.prod(weight.shape[1:]), weight.bits == 4
    width = -(-columns // 2) if halves else columns
    integers = torch.Size((weight.shape[0], width)), torch.uint8 if halves else torch.int8
    scales = torch.Size((weight.shape[0], -(-columns // GROUP))), torch.bfloat16
    name, scale = weight.names
    return Rounded(
        _stored(weight, name, tensors, integers, halves=halves), _stored(weight, scale, tensors, scales), columns
    )


def _unpacked(weight: Weight, tensors: Mapping[str, Tensor]) -> Tensor:
    rounded = read_rounded(weight, tensors)
    if rounded.bits != weight.bits or rounded.shape[0] != weight.shape[0]:
        raise UsageError(f"The weight {weight.stored!r} of a program is not rounded as it says.")
    return rounded[:].view(weight.shape)


def _stored(
    weight: Weight,
    name: str,
    tensors: Mapping[str, Tensor],
    wanted: tuple[torch.Size, torch.dtype] | None = None,
    *,
    halves: bool = False,
) -> Tensor:
    if name in tensors:
        return tensors[name]
    if name + CODED not in tensors:
        raise UsageError(f"The weight {name!r} of a program is not there.")
    from ..compression.coded import decoded  # of the few programs that have such

    shape, dtype = wanted or (torch.Size(weight.shape), getattr(torch, weight.dtype))
    try:
        return decoded(tensors[name + CODED], shape, dtype, halves=halves)
    except UsageError as error:
        raise UsageError(f"The weight {name!r} of a program is damaged: {error}.") from error
