"""Layers whose tensors got other sizes: what they say of themselves follows."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ...mesh.errors import UsageError

Shapes = Mapping[str, Sequence[int]]


def resize(module: nn.Module, shapes: Shapes) -> None:
    """Give a module the shapes of one that was narrowed, in place; its numbers there are anybody's.

    Raises UsageError for shapes that it cannot have become: names or axes that it has not, or larger ones.
    """
    state = module.state_dict()
    for name, shape in shapes.items():
        old = tuple(state[name].shape) if name in state else ()
        if len(old) != len(shape) or not old or any(not 1 <= new <= was for new, was in zip(shape, old, strict=True)):
            raise UsageError(f"{name[:128]!r} cannot have become {tuple(shape)}: it is {old or 'not there'} here.")
    layers = {name.rpartition(".")[0] for name in shapes}
    for path in sorted(layers):
        layer = module.get_submodule(path)
        for own, tensor in list(own_tensors(layer)):
            whole = f"{path}.{own}" if path else own
            if whole in shapes:
                put(layer, own, tensor.detach()[tuple(slice(size) for size in shapes[whole])].clone())
        say_sizes(layer)


def own_tensors(layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Give a layer's tensors that have an axis, by their names."""
    both = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    return ((name, tensor) for name, tensor in both if tensor.ndim)


def put(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in the place of a parameter or a buffer."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(tensor.contiguous(), requires_grad=old.requires_grad))
    else:
        setattr(layer, name, tensor.contiguous())


def say_sizes(layer: nn.Module) -> None:
    """Let a layer say of itself what its tensors are."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = next(len(tensor) for _, tensor in own_tensors(layer))
