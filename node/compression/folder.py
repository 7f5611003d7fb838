"""A language model's folder, rounded: another folder in the same layout, smaller, which `serve` takes as it is.

`model.safetensors` holds each matrix as integers and scales (``language/rounded.py``), all else as float32;
`config.json` says so (`quantization_config`), and `compression.json` what was done. The embedding and the head have 8
bits with either width: they are looked up and compared, and 4 bits there cost more than they save.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...mesh.errors import UsageError
from ..blobs.publishing import FILES, WEIGHTS
from ..kernels import Rounded
from ..kernels.grouping import GROUP
from ..language.config import METHOD, LanguageConfig
from ..language.engine import load_engine
from ..language.folder import read_config, read_layers
from ..language.layout import EMBEDDING, HEAD, SCALE, layers
from ..language.tokenizer import LanguageTokenizer, read_files
from ..programs.program import PROGRAM_FILE
from .calibration import round_parameters
from .decoder import Decoder, read_decoder
from .errors import NotSmaller
from .manifest import Bits, Manifest, Quantised, said_of, write_manifest
from .texts import TEXTS, cut_up, written_by
from .tuning import STEPS, tuned
from .whole import new_folder

_CONFIG: Final = "config.json"


def quantise_folder(
    folder: Path, out: Path, *, bits: Bits = 4, text: str | None = None, seed: int = 0, steps: int | None = None
) -> Manifest:
    """Round the model of ``folder`` into the new folder ``out``; returns what was done.

    Calibrated on ``text``, and where that is short or not there on what the model itself writes with this seed; with 4
    bits scales and norms are then tuned for so many ``steps``. The model is in memory twice, as float32. Raises
    UsageError for a folder that is not understood or was rounded before, or an ``out`` that is in use; NotSmaller, and
    writes nothing, where the files would not become smaller.
    """
    require_floats(folder)
    fields: dict[str, Any] = json.loads((folder / _CONFIG).read_bytes())
    with new_folder(out) as work:
        data, calibration = _data(folder, text, seed)
        decoder = read_decoder(folder)
        rounded = round_parameters(decoder, (data,), lambda name: 8 if name in {EMBEDDING, HEAD} else bits)
        steps = (STEPS if bits == 4 else 0) if steps is None else steps
        if steps:
            rounded = tuned(decoder, read_decoder(folder), rounded, data, steps=steps, seed=seed)
        save_file(_stored(decoder, rounded), work / WEIGHTS)
        before, after = size_bytes(folder), size_bytes(work)
        if after >= before:
            raise NotSmaller(before, after, f"{bits} bits")
        for name in FILES:
            if (folder / name).exists() and name != _CONFIG:
                shutil.copyfile(folder / name, work / name)
        said = {"quant_method": METHOD, "bits": bits, "vocabulary_bits": 8, "group_size": GROUP}
        (work / _CONFIG).write_text(json.dumps({**fields, "quantization_config": said}, indent=1) + "\n")
        step = Quantised(
            bits=bits,
            rounding="compensated",
            calibration=calibration,
            rows=len(data),
            tuned_steps=steps,
            tensors=said_of(rounded),
        )
        manifest = Manifest(steps=(step,), size_bytes_before=before, size_bytes=after)
        write_manifest(work, manifest)
    return manifest


def require_floats(folder: Path) -> LanguageConfig:
    """Return the config of a language model's folder. Raises UsageError for what is none, or was rounded before."""
    if (folder / PROGRAM_FILE).exists():
        raise UsageError(f"{folder} holds a traced program, which stays as it is; compress the model that it is of.")
    config = read_config(folder)
    if "quantization_config" in json.loads((folder / _CONFIG).read_bytes()):
        raise UsageError(f"{folder} was rounded before; round the float weights that it was made of.")
    return config


def _data(folder: Path, text: str | None, seed: int) -> tuple[Tensor, str]:
    """Return texts to calibrate on, and what they are. A short text is taught by heart, so others are put beside it."""
    config = read_config(folder)
    given = None
    if text is not None:
        given = cut_up(LanguageTokenizer(read_files(folder)).encode(text), config.positions_max)
        if (missing := TEXTS - len(given)) <= 0:
            return given, "a given text"
    engine = load_engine(config, 0, layers(config), read_layers(folder, config))
    if given is None:
        return written_by(engine, config.bos, seed=seed), f"texts that the model wrote, seed {seed}"
    written = written_by(engine, config.bos, seed=seed, texts=missing)
    return torch.cat((given, written)), f"a given text, and {missing} that the model wrote, seed {seed}"


def _stored(decoder: Decoder, rounded: dict[str, Rounded]) -> dict[str, Tensor]:
    state = decoder.state_dict()
    if decoder.config.tied:
        del state[HEAD]
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        matrix = rounded.get(name)
        if matrix is None:
            tensors[name] = tensor.to(torch.float32).contiguous()
        else:
            tensors |= {name: matrix.integers[:], name + SCALE: matrix.scales[:]}
    return tensors


def size_bytes(folder: Path) -> int:
    """Return what the weights of a folder take on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
