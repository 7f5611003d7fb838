"""A program as a folder: `program.json`, its weights as safetensors, and for an encoder its tokenizer."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import safetensors.torch

from ...mesh.errors import UsageError
from ..files import write_whole
from .description import Description, read_description
from .program import PROGRAM_FILE, Program, read_program, used, write_program
from .trace import Traced
from .weights import weight_bytes

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class ProgramFolder:
    """A folder that holds a program."""

    path: Path
    program: Program
    description: Description


def save(traced: Traced, path: Path, description: Description, tokenizer: Path | None = None) -> ProgramFolder:
    """Write a traced model into a folder, made if it is not there. Raises LeptonError from the disk."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path / WEIGHTS_FILE, safetensors.torch.save({n: t.contiguous() for n, t in traced.weights.items()}))
    write_whole(path / CONFIG_FILE, msgspec.json.encode(description))
    for name in TOKENIZER_FILES:
        if tokenizer is not None and (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, path / name)
    write_whole(path / PROGRAM_FILE, write_program(traced.program))  # last: with it the folder is one
    return ProgramFolder(path, traced.program, description)


def is_program_folder(path: Path) -> bool:
    return (path / PROGRAM_FILE).is_file()


def open_folder(path: Path) -> ProgramFolder:
    """Read what a folder holds, but not the weights. Raises UsageError that names the file that is wrong."""
    try:
        program = read_program((path / PROGRAM_FILE).read_bytes())
        description = read_description((path / CONFIG_FILE).read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read as a program: {error.strerror or error}: {error.filename}.") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return ProgramFolder(path, program, description)


def layers_of(program: Program) -> Mapping[str, tuple[int, ...]]:
    """Return for each tensor of the weights' file, by its name where it is not coded, the layers that use it."""
    edges = (0, *program.cuts, len(program.nodes))
    found: dict[str, set[int]] = {}
    for layer in range(program.layers):
        for node in program.nodes[edges[layer] : edges[layer + 1]]:
            for used_name in used(node):
                for name in program.tensors[used_name].names if used_name in program.tensors else ():
                    found.setdefault(name, set()).add(layer)
    return {name: tuple(sorted(layers)) for name, layers in found.items()}


def layer_bytes(program: Program) -> tuple[int, ...]:
    """Return the bytes of each layer's weights in memory, where those that were rounded are unpacked."""
    sizes = [0] * program.layers
    each = {weight.stored: weight_bytes(weight) for weight in program.tensors.values()}
    for name, layers in layers_of(program).items():
        for layer in layers:
            sizes[layer] += each.get(name, 0)  # which has its scales in it
    return tuple(sizes)
