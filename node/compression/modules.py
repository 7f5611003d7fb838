"""Any module, rounded: Linear, convolutions, embeddings, LSTM, GRU, and our own layers, each in its quickest form.

What gains nothing stays as it was, and the manifest says why. The module that was given is not changed.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..kernels import Rounded
from .calibration import BitsOf, matrices, round_parameters
from .choosing import ERROR_MAX, Tried, choose, least_s, try_forms
from .contents import plain_bytes, stored_bytes
from .errors import NotFaster, NotSmaller
from .folding import fold_norms
from .forms import Form, error_of
from .manifest import Bits, Manifest, Quantised, said_of
from .weight import PackedWeight

Must = Literal["smaller", "faster"]
_SAMPLES: Final = 1  # rows of the data that are answered at once when forms are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A rounded module, what was done, and what was measured on this device."""

    module: nn.Module
    manifest: Manifest
    tried: Mapping[str, Sequence[Tried]] = field(default_factory=dict)  # forms of each product
    taken_s_before: float | None = None  # of one answer; None without data
    taken_s: float | None = None


def quantise(
    module: nn.Module,
    *,
    bits: Bits = 8,
    data: Tensor | Sequence[Any] | None = None,
    form: Form | Literal["auto"] = "auto",
    samples: int = _SAMPLES,
    error_max: float | None = None,
    must: tuple[Must, ...] = ("smaller",),
    bits_of: BitsOf | None = None,
) -> Compressed:
    """Round a copy of a module to integers of so many bits with a scale for each 32 numbers.

    ``data``, the module's argument or all its arguments, calibrate (``calibration.py``); without them only the scales
    are searched. ``form`` says how products are worked out; `auto` measures on ``samples`` rows of the data which is
    the quickest here whose outputs are within ``error_max`` of the float layer's (relative; 0.02 with 8 bits, 0.2 with
    4). A layer that is not smaller, or misses that bound, stays float. ``bits_of`` names other bits for single
    parameters, 0 to leave one alone. Sizes are those of the files, before and after. Raises NotSmaller, NotFaster where
    the whole is not what it ``must`` be, with the figures; UsageError for `faster` without data, and for a form that is
    not here.
    """
    if "faster" in must and data is None:
        raise UsageError("Whether a module becomes faster can only be said with data; give some.")
    given = None if data is None else (data,) if isinstance(data, Tensor) else tuple(data)
    few = None if given is None else tuple(each[:samples] if isinstance(each, Tensor) else each for each in given)
    before = deepcopy(module).eval()
    folded = fold_norms(before)
    work = deepcopy(before)
    rounded = round_parameters(work, given, bits_of or (lambda _: bits))
    result, tried, left = _installed(before, work, rounded, few, form, error_max)
    step = Quantised(
        bits=bits,
        rounding="searched" if given is None else "compensated",
        calibration="" if given is None else "given data",
        rows=0 if given is None else len(given[0]),
        folded=folded,
        tensors=said_of({name: each for name, each in rounded.items() if name not in left}),
        left=left,
    )
    manifest = Manifest(steps=(step,), size_bytes_before=plain_bytes(module), size_bytes=stored_bytes(result))
    if "smaller" in must and manifest.size_bytes >= manifest.size_bytes_before:
        raise NotSmaller(manifest.size_bytes_before, manifest.size_bytes, f"{bits} bits")
    if few is None:
        return Compressed(module=result, manifest=manifest, tried=tried)
    old, new = _compared(module, result, few)
    if "faster" in must and new >= old:
        raise NotFaster(old, new, f"{bits} bits")
    return Compressed(module=result, manifest=manifest, tried=tried, taken_s_before=old, taken_s=new)


def _installed(
    before: nn.Module,
    work: nn.Module,
    rounded: Mapping[str, Rounded],
    few: tuple[Any, ...] | None,
    form: Form | Literal["auto"],
    error_max: float | None,
) -> tuple[nn.Module, dict[str, Sequence[Tried]], dict[str, str]]:
    """Return a copy of ``before`` with what was rounded in ``work``, the forms that were tried, and what stays."""
    result, seen = deepcopy(before), _inputs(before, few)
    tried: dict[str, Sequence[Tried]] = {}
    left: dict[str, str] = {}
    for name, layer, parameter in list(matrices(before)):
        if name not in rounded:
            left[name] = "it was to be left alone"
            continue
        other = work.get_submodule(name.rpartition(".")[0])
        bound = ERROR_MAX[rounded[name].bits] if error_max is None else error_max
        chosen, tried[name], why = _chosen(layer, other, parameter, rounded[name], seen.get(name), form, bound)
        if chosen is None:
            left[name] = why
        else:
            install(result, name, PackedWeight(rounded[name], parameter.shape, chosen))
    return result, tried, left


def install(module: nn.Module, name: str, weight: PackedWeight) -> None:
    """Put a packed weight in the place of a parameter, and in every other place where the same one is (tied)."""
    parameter = module.get_parameter(name)
    for layer in list(module.modules()):
        for own, each in list(layer.named_parameters(recurse=False)):
            if each is parameter:
                delattr(layer, own)
                setattr(layer, own, weight)


def _chosen(
    layer: nn.Module,
    other: nn.Module,
    parameter: nn.Parameter,
    rounded: Rounded,
    given: tuple[Any, ...] | None,
    form: Form | Literal["auto"],
    error_max: float,
) -> tuple[Form | None, Sequence[Tried], str]:
    """Return the form of a layer's matrix, or why it stays; ``other`` is the layer with its numbers rounded."""
    if rounded.size_bytes >= parameter.nbytes:
        return None, (), f"it would take {rounded.size_bytes:,} bytes, and takes {parameter.nbytes:,}"
    if not isinstance(layer, nn.Linear):
        plain: Form = "resident" if form in {"auto", "resident"} and not isinstance(layer, nn.Embedding) else "unpacked"
        error = _layer_error(layer, other, given) if given else error_of(rounded[:], parameter.detach().flatten(1))
        missed = f"its outputs would be off by {error:.3f}, more than {error_max:.3f}"
        return (plain, (), "") if error <= error_max else (None, (), missed)
    x = given[0].reshape(-1, layer.in_features) if given else torch.randn(_SAMPLES, layer.in_features)
    tried = try_forms(rounded, parameter.detach(), x)
    chosen = choose(tried, error_max) if form == "auto" else form
    least = min(each.error for each in tried)
    return chosen, tried, f"its outputs would be off by {least:.3f}, more than {error_max:.3f}"


def _layer_error(layer: nn.Module, other: nn.Module, given: tuple[Any, ...]) -> float:
    with torch.inference_mode():
        wanted, found = layer(*given), other(*given)
    return error_of(found, wanted) if isinstance(wanted, Tensor) else error_of(found[0], wanted[0])


def _inputs(module: nn.Module, data: tuple[Any, ...] | None) -> dict[str, tuple[Any, ...]]:
    """Return what each layer is given first when the module answers."""
    found: dict[str, tuple[Any, ...]] = {}
    if data is None:
        return found

    def keep(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found.setdefault(name, args)

    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer, _ in matrices(module)]
    try:
        with torch.inference_mode():
            module(*data)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _compared(module: nn.Module, result: nn.Module, data: tuple[Any, ...]) -> tuple[float, float]:
    before = deepcopy(module).eval()
    with torch.inference_mode():
        old, new = least_s([lambda: before(*data), lambda: result(*data)])
    return old, new
