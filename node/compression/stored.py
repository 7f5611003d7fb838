"""A rounded module on disk: `model.safetensors` with integers and scales, and `compression.json`; and back again.

What the module is made of is its own code and is not stored: `load` is given one that is built anew.
"""

from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..kernels import Rounded
from ..language.layout import SCALE
from .choosing import choose, try_forms
from .folding import fold_norms
from .forms import Form
from .manifest import read_manifest, write_manifest
from .modules import Compressed, install
from .weight import PackedWeight

_WEIGHTS: Final = "model.safetensors"


def save(compressed: Compressed, folder: Path) -> None:
    """Write a rounded module into a folder, which is made. What is tied is stored once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, layer in compressed.module.named_modules(remove_duplicate=False):
        if isinstance(layer, PackedWeight):
            if id(layer) not in seen:
                tensors |= {name: layer.integers, name + SCALE: layer.scales}
            seen.add(id(layer))
            continue
        for own, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if id(tensor) not in seen and own not in layer._non_persistent_buffers_set:  # noqa: SLF001
                tensors[f"{name}.{own}" if name else own] = tensor.detach().contiguous()
            seen.add(id(tensor))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS)
    write_manifest(folder, compressed.manifest)


def load(module: nn.Module, folder: Path, *, form: Form | Literal["auto"] = "auto") -> Compressed:
    """Fill a module, built as the stored one was, from a folder; it is changed. `auto` measures the forms here.

    Raises UsageError where the folder and the module are not of one model, or its files are damaged.
    """
    manifest = read_manifest(folder)
    try:
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder / _WEIGHTS} cannot be read: {error}.") from error
    module.eval()
    packed = {name: each for step in manifest.quantised for name, each in step.tensors.items()}
    if any(step.folded for step in manifest.quantised):
        fold_norms(module)
    parameters = dict(module.named_parameters())
    if missing := [name for name in packed if name not in parameters or not {name, name + SCALE} <= tensors.keys()]:
        raise UsageError(f"{folder} and this module are not of one model: {missing[0][:128]!r} is not in both.")
    for name, each in packed.items():
        rounded = Rounded(tensors.pop(name), tensors.pop(name + SCALE), each.columns)
        if rounded.shape != (shape := parameters[name].shape) and rounded.shape != parameters[name].flatten(1).shape:
            raise UsageError(f"{folder} and this module are not of one model: {name[:128]!r} is {tuple(shape)} here.")
        rounded.groups(slice(None))  # refuses scales that are not finite
        install(module, name, PackedWeight(rounded, shape, _form(module, name, rounded, form)))
    _fill(module, tensors, folder)
    return Compressed(module=module, manifest=manifest)


def _form(module: nn.Module, name: str, rounded: Rounded, form: Form | Literal["auto"]) -> Form:
    layer = module.get_submodule(name.rpartition(".")[0])
    if not isinstance(layer, nn.Linear):
        return "resident" if form in {"auto", "resident"} and not isinstance(layer, nn.Embedding) else "unpacked"
    if form != "auto":
        return form
    x = torch.randn((1, layer.in_features), generator=torch.Generator().manual_seed(0))
    return choose(try_forms(rounded, rounded[:], x), 0.02) or "unpacked"  # how near it was before, its maker saw


def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        wrong = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UsageError(f"{folder} and this module are not of one model: {str(error)[:300]}") from error
    buffers = ("integers", "scales")  # of what is installed already
    named = {id(each) for name, each in module.named_parameters(remove_duplicate=False) if name in tensors}
    others = dict(module.named_parameters(remove_duplicate=False))
    missing = [
        name
        for name in wrong.missing_keys
        if name.rpartition(".")[2] not in buffers and id(others.get(name)) not in named
    ]
    if strange := [*missing, *wrong.unexpected_keys]:
        raise UsageError(f"{folder} and this module are not of one model: {strange[0][:128]!r} is not in both.")
