"""Taking channels out of layers: their tensors shrink."""

import torch
from torch import Tensor, nn

from ..resizing import own_tensors, put, say_sizes
from .tracing import Group, Member


def narrow(module: nn.Module, group: Group, kept: Tensor) -> None:
    """Keep only these channels of a group, int64 (k,), in place."""
    for member in group.members:
        layer = module.get_submodule(member.layer)
        at = spread_out(kept, member)
        for name, tensor in list(own_tensors(layer)):
            if member.side != "columns":
                put(layer, name, tensor.detach()[at])
            elif name == "weight":
                put(layer, name, tensor.detach()[:, at])
        say_sizes(layer)


def spread_out(kept: Tensor, member: Member) -> Tensor:
    """Return the rows or columns of these channels in a member."""
    return (kept.unsqueeze(1) * member.spread + torch.arange(member.spread)).flatten()
