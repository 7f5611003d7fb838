"""What the file of a module holds, and how large it is: rounded matrices as integers and scales, all coded where that
is smaller.
"""

import torch
from safetensors.torch import save as serialised
from torch import Tensor, nn

from ..language.layout import CODED, SCALE
from .coded import encoded
from .weight import PackedWeight


def plain_bytes(module: nn.Module) -> int:
    """Return how large a module's file is as everybody writes it; what is tied is there once."""
    seen = {
        id(tensor): (name, tensor.detach().contiguous()) for name, tensor in module.state_dict(keep_vars=True).items()
    }
    return len(serialised(dict(seen.values())))


def stored_bytes(module: nn.Module) -> int:
    """Return how large the file of a module would be, coded."""
    return len(serialised(tensors_of(module)))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return what the file of a module holds, each tensor under its first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, PackedWeight):
            if id(layer) not in seen:
                halves = layer.integers.dtype == torch.uint8
                tensors |= _coded(name, layer.integers, halves=halves) | _coded(name + SCALE, layer.scales)
            seen.add(id(layer))
            continue
        for own, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if id(tensor) not in seen and own not in layer._non_persistent_buffers_set:  # noqa: SLF001
                tensors |= _coded(f"{name}.{own}" if name else own, tensor.detach().contiguous())
            seen.add(id(tensor))
    return tensors


def _coded(name: str, tensor: Tensor, *, halves: bool = False) -> dict[str, Tensor]:
    smaller = encoded(tensor, halves=halves)
    return {name: tensor} if smaller is None else {name + CODED: smaller}
