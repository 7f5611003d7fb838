"""Which channels of a module can go, and in which layers each of them is: followed through its own code by torch.fx.

A channel is a row of the layer that makes it and a column of each that takes it; where two layers' outputs are added or
multiplied, their channels can only go together. The rule that keeps this safe: **a step that is not known here freezes
every channel that reaches it**. So do the module's inputs and outputs, layers that are used twice, and weights that are
shared. Where a module cannot be followed as a whole, its parts are, each by itself.

Why not the package torch-pruning (1.6, which runs with torch 2.13): it follows gradients of example inputs, guesses at
steps that it does not know, and takes no weights to make up for what goes; what is needed here is this one file.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...models import Dense

_MADE: Final = (nn.Linear, Dense, nn.Conv1d, nn.Conv2d)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)
# Layers and functions that do the same to every channel, whichever they are, and mix none.
_SAME_LAYERS: Final = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
)  # fmt: skip
_POOLS: Final = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_SAME: Final[set[Any]] = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.hardtanh, F.hardswish,
    F.softplus, F.dropout, torch.relu, torch.sigmoid, torch.tanh, "relu", "sigmoid", "tanh", "contiguous", "clone",
}  # fmt: skip
_POOLING: Final[set[Any]] = {F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool2d}
_PLACES: Final[dict[type[nn.Module], int]] = {nn.Conv1d: 1, nn.Conv2d: 2}  # axes of what such a layer gives
_JOINED: Final = {"add", "sub", "mul", "iadd", "imul", "add_", "mul_"}

Side = Literal["rows", "columns", "each"]


@dataclass(frozen=True, slots=True)
class Member:
    """A layer that has a group's channels: as rows of its weight, as columns, or as one number each (norms)."""

    layer: str
    side: Side
    spread: int = 1  # rows or columns of one channel, next to each other


@dataclass(eq=False)
class Group:
    """Channels that go together: channel i is the i-th of every member."""

    size: int
    members: list[Member] = field(default_factory=list)
    frozen: str = ""  # why none of them may go


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of a value: whose channels it has, and how they lie.

    `places`: (B, C, places), `flat`: (B, C x each so many), `last`: (..., C).
    """

    group: Group
    form: Literal["places", "flat", "last"]
    places: int = 0  # axes of them


def groups_of(module: nn.Module) -> list[Group]:
    """Return the groups of channels that a module has, frozen ones too."""
    owners = Counter(id(each) for layer in module.modules() for each in layer.parameters(recurse=False))
    shared = frozenset(each for each, count in owners.items() if count > 1)
    return list(_groups(module, "", shared, set()))


def _groups(module: nn.Module, prefix: str, shared: frozenset[int], known: set[int]) -> Iterator[Group]:
    if id(module) in known:
        return
    known.add(id(module))
    try:
        graph = _Tracer().trace(module)
    except Exception:  # noqa: BLE001  whatever the module's own code raises when it is fed proxies
        for name, child in module.named_children():
            if not isinstance(child, (*_MADE, *_NORMS)):
                yield from _groups(child, f"{prefix}{name}.", shared, known)
        return
    yield from _Follower(module, graph, prefix, shared).follow()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a layer is one step: torch's own, and ours that is like one of them."""
        return isinstance(m, Dense) or super().is_leaf_module(m, module_qualified_name)


class _Follower:
    """One walk through a module's steps."""

    def __init__(self, module: nn.Module, graph: fx.Graph, prefix: str, shared: frozenset[int]) -> None:
        self._module, self._graph, self._prefix, self._shared = module, graph, prefix, shared
        self._groups: list[Group] = []
        self._of: dict[fx.Node, _Seen] = {}
        self._calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def follow(self) -> list[Group]:
        for node in self._graph.nodes:
            if (seen := self._step(node)) is not None:
                self._of[node] = seen
        return self._groups

    def _step(self, node: fx.Node) -> _Seen | None:
        if node.op == "call_module":
            return self._layer(node)
        if node.op in {"call_function", "call_method"}:
            return self._function(node)
        return self._unknown(node, "it is what the module answers")

    def _layer(self, node: fx.Node) -> _Seen | None:
        name = str(node.target)
        layer, before = self._module.get_submodule(name), self._seen(node)
        if isinstance(layer, _SAME_LAYERS) or (isinstance(layer, _POOLS) and _has_places(before)):
            return before
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            return _flat(before)
        if self._calls[name] > 1 or any(id(each) in self._shared for each in layer.parameters(recurse=False)):
            return self._unknown(node, f"{name} is used more than once")
        if type(layer) in _NORMS:
            return self._norm(node, name, layer, before)
        if type(layer) in _MADE and getattr(layer, "groups", 1) == 1:
            return self._made(node, name, layer, before)
        return self._unknown(node, f"what {type(layer).__name__} does with it is not known here")

    def _made(self, node: fx.Node, name: str, layer: nn.Module, before: _Seen | None) -> _Seen:
        """Go through a product: its input's channels end here, and its own begin."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        linear = isinstance(layer, nn.Linear)
        if before is not None:
            spread, rest = divmod(weight.shape[1], before.group.size)
            fits = before.form == "flat" or (before.form == "last" and spread == 1)
            if rest or (not fits if linear else before.form != "places" or spread != 1):
                self._unknown(node, f"{name} takes it in another order")
            else:
                before.group.members.append(Member(self._prefix + name, "columns", spread))
        group = Group(weight.shape[0], [Member(self._prefix + name, "rows")])
        self._groups.append(group)
        return _Seen(group, "last") if linear else _Seen(group, "places", _PLACES[type(layer)])

    def _norm(self, node: fx.Node, name: str, layer: nn.Module, before: _Seen | None) -> _Seen | None:
        if before is None or before.group.size != getattr(layer, "num_features", None):
            return self._unknown(node, f"{name} has another number of channels")
        before.group.members.append(Member(self._prefix + name, "each"))
        return before

    def _function(self, node: fx.Node) -> _Seen | None:
        before, target = self._seen(node), node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if target in _SAME or (target in _POOLING and _has_places(before)):
            return before
        if name == "mean" and before is not None and _axes(node) in _all_places(before.places):
            return _flat(before)
        if name == "flatten" and node.args[1:] in {(1,), (1, -1)}:
            return _flat(before)
        if name in {"view", "reshape"} and len(node.args) == 3 and node.args[2] == -1:
            return _flat(before)  # (B, -1)
        if name == "size" and node.args[1:] == (0,):
            return None
        if name in _JOINED and not node.kwargs:
            return self._joined(node)
        return self._unknown(node, f"what {name or node.op} does with it is not known here")

    def _joined(self, node: fx.Node) -> _Seen | None:
        """Let channels that are added or multiplied one by one go together."""
        if all(not isinstance(each, fx.Node) for each in node.args[1:]):
            return self._seen(node)  # a number is the same for all
        found = [self._of.get(each) if isinstance(each, fx.Node) else None for each in node.args]
        first, second = found[0], found[-1]
        if len(found) != 2 or first is None or second is None:
            return self._unknown(node, "it is joined with something that stays")
        if (first.group.size, first.form) != (second.group.size, second.form):
            return self._unknown(node, "it is joined with something of another shape")
        self._merge(first.group, second.group)
        return first

    def _merge(self, one: Group, other: Group) -> None:
        if one is other:
            return
        one.members += other.members
        one.frozen = one.frozen or other.frozen
        self._groups.remove(other)
        for node, seen in self._of.items():
            if seen.group is other:
                self._of[node] = _Seen(one, seen.form, seen.places)

    def _seen(self, node: fx.Node) -> _Seen | None:
        return self._of.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None

    def _unknown(self, node: fx.Node, why: str) -> _Seen | None:
        """Freeze all that reaches a step; nothing is known of what comes of it."""
        for each in node.all_input_nodes:
            if (seen := self._of.get(each)) is not None:
                seen.group.frozen = seen.group.frozen or why
        return None


def _has_places(seen: _Seen | None) -> bool:
    return seen is None or seen.form == "places"


def _flat(seen: _Seen | None) -> _Seen | None:
    return _Seen(seen.group, "flat") if seen is not None and seen.form == "places" else seen


def _axes(node: fx.Node) -> object:
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _all_places(places: int) -> set[object]:
    both: dict[int, set[object]] = {1: {(2,), (-1,)}, 2: {(2, 3), (-2, -1)}}
    return both.get(places, set())
