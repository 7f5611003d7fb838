"""Whole channels go: the tensors shrink, and answers really come sooner.

Of each group of channels (``tracing.py``) the same share goes. A channel counts as much as what the layers that take it
make of it: the squares of its columns, times how large it is: measured where there are data, else what the layer that
makes it gives. With data the columns that stay then take over what those that went said, as far as they can: least
squares over the inputs' second moments (as ThiNet, Luo et al. 2017, does for convolutions). Groups are narrowed one by
one, each with the inputs that those before it leave.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn

from ....mesh.errors import UsageError
from ..manifest import Pruned
from .narrowing import narrow, spread_out
from .scores import input_moments
from .tracing import Group, Member, groups_of

CHANNELS_MIN: Final = 8  # of a group: fewer are left alone
# Of the mean moment: with few data the columns that stay must not follow their noise, but keep to what they were.
_DAMPING: Final = 0.01

Run = Callable[[], object]  # the module on the data


def free_groups(module: nn.Module, leave: Iterable[str] = ()) -> tuple[list[Group], dict[str, str]]:
    """Return the groups that may lose channels, and why the layers of the others keep theirs."""
    patterns = list(leave)
    free: list[Group] = []
    left: dict[str, str] = {}
    for group in groups_of(module):
        makers = [member.layer for member in group.members if member.side == "rows"]
        why = group.frozen
        if not why and all(member.side != "columns" for member in group.members):
            why = "nothing that is known here takes it"
        if any(fnmatchcase(f"{name}.weight", pattern) for name in makers for pattern in patterns):
            why = "it was to be left alone"
        elif not why and group.size < CHANNELS_MIN:
            why = f"it has {group.size} channels: too few"
        if why:
            left |= {f"{name}.weight": why for name in makers}
        else:
            free.append(group)
    return free, left


def drop_channels(module: nn.Module, *, share: float, leave: Iterable[str], run: Run | None) -> Pruned:
    """Drop this share of each free group's channels, in place; ``run`` is the module on the data.

    Raises UsageError where there is no such group.
    """
    before = {name: tensor.shape for name, tensor in module.state_dict().items()}
    groups, left = free_groups(module, leave)
    if not groups:
        raise UsageError(f"No channels of this {type(module).__name__} can go: {left or 'it has none that are known'}.")
    drop_from(module, groups, share, run)
    after = {name: tensor.shape for name, tensor in module.state_dict().items() if tensor.shape != before[name]}
    gone = {name: 1 - shape.numel() / before[name].numel() for name, shape in after.items()}
    return Pruned(
        kind="channels",
        share=share,
        shares={name: round(each, 4) for name, each in gone.items()},
        shapes={name: tuple(shape) for name, shape in after.items()},
        left=left,
    )


def drop_from(module: nn.Module, groups: Sequence[Group], share: float, run: Run | None) -> None:
    """Drop this share of each group's channels, in place; one of each stays at least."""
    for group in groups:
        takers = {f"{each.layer}.weight": each for each in group.members if each.side == "columns"}
        moments = input_moments(module, takers, run) if run is not None else {}
        scores = channel_scores(module, group, moments)
        count = max(group.size - round(share * group.size), 1)
        kept = scores.argsort(descending=True, stable=True)[:count].sort().values
        for name, moment in moments.items():
            _take_over(module.get_parameter(name), moment, spread_out(kept, _columns(module, takers[name])))
        narrow(module, group, kept)


def channel_scores(module: nn.Module, group: Group, moments: dict[str, Tensor]) -> Tensor:
    """Return how much each channel of a group counts, float64 (size,)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    given = _given(module, group)
    for member in group.members:
        if member.side != "columns":
            continue
        weight = module.get_parameter(f"{member.layer}.weight").detach().to(torch.float64)
        squares = weight.square().sum(0).flatten()  # (columns x kernel,)
        moment = moments.get(f"{member.layer}.weight")
        if moment is None:
            total += squares.view(group.size, -1).sum(1) * given
        else:
            total += (squares * moment.diagonal()).view(group.size, -1).sum(1)
    return total


def _given(module: nn.Module, group: Group) -> Tensor:
    """Return how large a channel is, as the layers that make it let expect: their rows, or the norms behind them."""
    rows, norms = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size, dtype=torch.float64)
    normed = False
    for member in group.members:
        layer = module.get_submodule(member.layer)
        for name, tensor in layer.named_parameters(recurse=False):
            if member.side == "rows" and name == "weight":
                rows += tensor.detach().to(torch.float64).square().view(group.size, -1).sum(1)
            elif member.side == "each":
                norms += tensor.detach().to(torch.float64).square()
                normed = True
    return norms if normed else rows


def _columns(module: nn.Module, member: Member) -> Member:
    """Return a member whose columns are those of the weight laid flat: a kernel's numbers are next to each other."""
    kernel = module.get_parameter(f"{member.layer}.weight")[0, 0].numel()
    return Member(member.layer, "columns", member.spread * kernel)


def _take_over(weight: nn.Parameter, moments: Tensor, kept: Tensor) -> None:
    """Let the columns that stay give what all gave, in place: (W H[:, S] + d W[:, S]) (H[S, S] + d)^-1."""
    damping = _DAMPING * float(moments.diagonal().mean()) + torch.finfo(torch.float32).tiny
    damped = moments[kept][:, kept]
    damped.diagonal().add_(damping)
    flat = weight.detach().flatten(1).to(torch.float64)
    wanted = moments[kept] @ flat.T + damping * flat[:, kept].T
    flat[:, kept] = torch.linalg.solve(damped, wanted).T  # (n, k)
    with torch.no_grad():
        weight.copy_(flat.view_as(weight))
