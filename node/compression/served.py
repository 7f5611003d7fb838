"""A compressed module as a folder that `serve` takes: its program, its weights as they were rounded, what was done.

Integers and scales, coded where that is smaller, travel and lie on disk; whoever serves the folder unpacks them when it
is loaded (``programs/weights.py``). What the module computes is traced on the numbers that the integers stand for, so
the answers are the same.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

import msgspec
from torch import Tensor, nn

from ..language.layout import CODED
from ..models import Chain, answered
from ..objective import Objective
from ..programs.description import Description
from ..programs.folder import ProgramFolder, open_folder
from ..programs.folder import save as save_program
from ..programs.program import Weight
from ..programs.trace import Traced, trace
from .contents import tensors_of
from .manifest import write_manifest
from .modules import Compressed
from .weight import PackedWeight
from .whole import new_folder


class Answering(nn.Module):
    """A chain that answers as it is served: probabilities, or values. Its parameters have the chain's names."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.layers, self._objective = chain.layers, chain.spec.objective

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return answered(self._objective, x)


def save_served(
    compressed: Compressed, example: Tensor | Sequence[Tensor], folder: Path, *, objective: Objective = "cross_entropy"
) -> ProgramFolder:
    """Write a module into a new folder, which `serve` takes; ``example`` are arguments of it, the batch first.

    A chain gives its answers there, another module what it gives. Raises UsageError for a folder that is in use, and
    for a module that cannot be traced.
    """
    with new_folder(folder) as work:
        write_served(compressed, example, work, objective=objective)
    return open_folder(folder)


def write_served(
    compressed: Compressed, example: Tensor | Sequence[Tensor], folder: Path, *, objective: Objective
) -> None:
    """Write the files of `save_served` into a folder that is there."""
    module = compressed.module
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    save_program(traced(module, example), folder, Description(source=kind, objective=objective))
    write_manifest(folder, compressed.manifest)


def traced(module: nn.Module, example: Tensor | Sequence[Tensor]) -> Traced:
    """Trace what a module answers, with its weights as its file holds them. Raises UsageError as `trace` does."""
    whole = Answering(module) if isinstance(module, Chain) else module
    return _packed(trace(dense(whole), (example,) if isinstance(example, Tensor) else example), whole)


def packed(module: nn.Module) -> dict[str, PackedWeight]:
    """Return every packed weight under each of its names."""
    named = module.named_modules(remove_duplicate=False)
    return {name: each for name, each in named if isinstance(each, PackedWeight)}


def dense(module: nn.Module) -> nn.Module:
    """Return a copy whose packed weights are the float32 parameters that they stand for; what is tied stays so."""
    work = deepcopy(module)
    numbers = {id(each): nn.Parameter(each.dense().clone(), requires_grad=False) for each in packed(work).values()}
    for layer in list(work.modules()):
        for name, each in list(layer.named_children()):
            if isinstance(each, PackedWeight):
                delattr(layer, name)
                setattr(layer, name, numbers[id(each)])
    return work.eval()


def _packed(found: Traced, module: nn.Module) -> Traced:
    """Put what the file of the module holds in the place of its numbers."""
    rounded, first, file = packed(module), _first_names(module), tensors_of(module)
    tensors: dict[str, Weight] = {}
    stored: dict[str, Tensor] = {}
    for value, weight in found.program.tensors.items():
        if (name := first.get(weight.stored)) is None:  # made on the way: no parameter, and no buffer that is saved
            tensors[value], stored[weight.stored] = weight, found.weights[weight.stored]
            continue
        bits: Literal[0, 4, 8] = 0
        if (small := rounded.get(name)) is not None:
            bits = 4 if small.rounded.bits == 4 else 8
        tensors[value] = msgspec.structs.replace(weight, stored=name, bits=bits)
        kept = [each + end for each in tensors[value].names for end in ("", CODED)]
        stored |= {each: file[each] for each in kept if each in file}
    return Traced(msgspec.structs.replace(found.program, tensors=tensors), stored)


def _first_names(module: nn.Module) -> dict[str, str]:
    """Return for each name of what is saved the one under which the file has it: of what is tied, the first."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for prefix, layer in module.named_modules(remove_duplicate=False):
        own = [] if isinstance(layer, PackedWeight) else [*layer.named_parameters(recurse=False)]
        own += [] if isinstance(layer, PackedWeight) else [*layer.named_buffers(recurse=False)]
        named = [(prefix, layer)] if isinstance(layer, PackedWeight) else []
        for name, each in (*named, *((f"{prefix}.{name}" if prefix else name, each) for name, each in own)):
            found[name] = first.setdefault(id(each), name)
    saved = {name.removesuffix(CODED) for name in tensors_of(module)}
    return {name: stored for name, stored in found.items() if stored in saved}
