"""A compressed module on disk: `model.safetensors`, and `compression.json` that says what was done; and back again.

Rounded matrices are integers and scales. What becomes smaller so is stored coded (``coded.py``), as bytes under its
name and `_coded`. What the module is made of is its own code and is not stored: `load` is given one that is built anew,
and takes from the file what that one has room for, and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..kernels import Rounded
from ..kernels.grouping import GROUP
from ..language.layout import CODED, SCALE
from .choosing import choose, try_forms
from .coded import decoded
from .contents import tensors_of
from .folding import fold_norms
from .forms import Form
from .manifest import Manifest, Pruned, Tensors, read_manifest, write_manifest
from .modules import Compressed, install
from .resizing import resize
from .weight import PackedWeight

_WEIGHTS: Final = "model.safetensors"
_NAMES_BYTES_MAX: Final = 4 * 1024 * 1024  # beside the numbers of a file: 20,000 tensors with their names


class Wanted(NamedTuple):
    """What the module has room for."""

    shape: torch.Size
    dtype: torch.dtype
    halves: bool = False  # each byte holds two numbers of 4 bits


def save(compressed: Compressed, folder: Path) -> None:
    """Write a compressed module into a folder, which is made. What is tied is stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(compressed.module), folder / _WEIGHTS)
    write_manifest(folder, compressed.manifest)


def load(module: nn.Module, folder: Path, *, form: Form | Literal["auto"] = "auto") -> Compressed:
    """Fill a module, built as the stored one was, from a folder; it is changed. `auto` measures the forms here.

    Raises UsageError where the folder and the module are not of one model, or its files are damaged.
    """
    manifest = read_manifest(folder)
    module.eval()
    for step in manifest.steps:
        if isinstance(step, Pruned) and step.shapes:
            resize(module, step.shapes)
    if any(step.folded for step in manifest.quantised):
        fold_norms(module)
    packed = _packed(module, manifest, folder)
    tensors = _read(folder, _wanted(module, packed))
    for name, each in packed.items():
        if not {name, name + SCALE} <= tensors.keys():
            raise _strange(folder, name)
        rounded = Rounded(tensors.pop(name), tensors.pop(name + SCALE), each.columns)
        rounded.groups(slice(None))  # refuses scales that are not finite
        shape = module.get_parameter(name).shape
        install(module, name, PackedWeight(rounded, shape, _form(module, name, rounded, form)))
    _fill(module, tensors, folder)
    return Compressed(module=module, manifest=manifest)


def _packed(module: nn.Module, manifest: Manifest, folder: Path) -> dict[str, Tensors]:
    """Return the rounded matrices that a manifest speaks of, each one that the module has."""
    parameters = dict(module.named_parameters())
    packed = {name: each for step in manifest.quantised for name, each in step.tensors.items()}
    for name, each in packed.items():
        if name not in parameters or parameters[name].ndim < 2:
            raise _strange(folder, name)
        if (shape := parameters[name].flatten(1).shape)[1] != each.columns:
            raise UsageError(
                f"{folder} and this module are not of one model: {name[:128]!r} has {shape[1]} columns here."
            )
    return packed


def _wanted(module: nn.Module, packed: Mapping[str, Tensors]) -> dict[str, Wanted]:
    """Return the shape and type of everything that the module can take."""
    wanted = {name: Wanted(tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    for name, each in packed.items():
        rows, halves = wanted[name].shape[0], each.bits == 4
        width = -(-each.columns // 2) if halves else each.columns
        wanted[name] = Wanted(torch.Size((rows, width)), torch.uint8 if halves else torch.int8, halves)
        wanted[name + SCALE] = Wanted(torch.Size((rows, -(-each.columns // GROUP))), torch.bfloat16)
    return wanted


def _read(folder: Path, wanted: Mapping[str, Wanted]) -> dict[str, Tensor]:
    """Read a file of such tensors, coded or not. Raises UsageError for any other."""
    path = folder / _WEIGHTS
    try:
        room = sum(each.shape.numel() * each.dtype.itemsize for each in wanted.values()) + _NAMES_BYTES_MAX
        if path.stat().st_size > room:
            raise UsageError(f"{path} is larger than this module could be: are they of one model?")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    found = {}
    for stored, tensor in tensors.items():
        name = stored.removesuffix(CODED)
        if name not in wanted:
            raise _strange(folder, name)
        found[name] = tensor if stored == name else _opened(path, name, tensor, wanted[name])
        if (found[name].shape, found[name].dtype) != wanted[name][:2]:
            here = f"{tuple(wanted[name].shape)} here, of {wanted[name].dtype}"
            raise UsageError(f"{folder} and this module are not of one model: {name[:128]!r} is {here}.")
        if found[name].is_floating_point() and not torch.isfinite(found[name]).all():
            raise UsageError(f"{path} holds NaN or infinity in {name[:128]!r}: it is damaged.")
    return found


def _opened(path: Path, name: str, tensor: Tensor, wanted: Wanted) -> Tensor:
    try:
        return decoded(tensor, wanted.shape, wanted.dtype, halves=wanted.halves)
    except UsageError as error:
        raise UsageError(f"{path}: {name[:128]!r} is damaged: {error}.") from error


def _strange(folder: Path, name: str) -> UsageError:
    return UsageError(f"{folder} and this module are not of one model: {name[:128]!r} is not in both.")


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
