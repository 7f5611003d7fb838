"""A language model's folder with narrower feed-forward parts, or fewer heads: another folder that `serve` takes.

Zeros would gain nothing there: a served matrix is stored and read whole. So channels go, in all blocks as many, since
`config.json` has one number for all: `intermediate_size`, and the heads'. What stays learns to say what the whole model
says, on texts that this one writes.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ....mesh.errors import UsageError
from ...blobs.publishing import FILES, WEIGHTS
from ...language.engine import load_engine
from ...language.folder import read_config, read_layers
from ...language.layout import HEAD, layers
from ...language.tokenizer import LanguageTokenizer, read_files
from .. import fitting
from ..decoder import Attention, Decoder, read_decoder
from ..errors import NotSmaller
from ..fitting import Fit
from ..manifest import Manifest, Pruned, write_manifest
from ..texts import cut_up, written_by
from ..whole import new_folder
from .channels import drop_channels, drop_from
from .tracing import Group, Member

FIT: Final = Fit(steps=200, batch_size=8, rate=1e-3)
TEXTS: Final = 128  # that the model writes, to learn from: with 32 it learns those by heart
_CONFIG: Final = "config.json"


def prune_folder(
    folder: Path,
    out: Path,
    *,
    share: float = 0.25,
    heads: int = 0,
    text: str | None = None,
    seed: int = 0,
    fit: Fit | None = FIT,
) -> Manifest:
    """Write the model of ``folder`` into the new folder ``out``, its feed-forward parts narrower by this share.

    ``heads`` are key/value heads that go from each block, with the queries that share them. Calibrated and trained on
    ``text``, or without one on what the model writes with this seed. Numbers keep the type that they have. Raises
    UsageError for a folder that is not understood or was rounded before, an ``out`` that is in use, and heads that are
    not there; NotSmaller, and writes nothing, where the files would not become smaller.
    """
    config = read_config(folder)
    fields: dict[str, Any] = json.loads((folder / _CONFIG).read_bytes())
    if "quantization_config" in fields:
        raise UsageError(f"{folder} was rounded before: prune first, and round what comes of it.")
    if not 0 <= heads < config.key_value_heads:
        raise UsageError(f"{heads} of {config.key_value_heads} key/value heads cannot go.")
    with new_folder(out) as work:
        data = _data(folder, text, seed)
        decoder = read_decoder(folder)
        step = narrowed(decoder, data, share=share, heads=heads)
        if fit is not None and fit.steps:
            fitting.fit(decoder, (data,), like(read_decoder(folder)), fit)
            step = msgspec.structs.replace(step, fitted_steps=fit.steps)
        tensors = _stored(decoder, folder)
        before, after = _size_bytes(folder), sum(tensor.nbytes for tensor in tensors.values())
        if after >= before:
            raise NotSmaller(before, after, f"{100 * share:.0f} % of its inner channels gone")
        save_file(tensors, work / WEIGHTS)
        for name in FILES:
            if (folder / name).exists() and name != _CONFIG:
                shutil.copyfile(folder / name, work / name)
        new = decoder.config
        said = {
            "intermediate_size": new.inner,
            "num_attention_heads": new.heads,
            "num_key_value_heads": new.key_value_heads,
            "head_dim": new.head_width,
        }
        (work / _CONFIG).write_text(json.dumps({**fields, **said}, indent=1) + "\n")
        manifest = Manifest(steps=(step,), size_bytes_before=before, size_bytes=_size_bytes(work))
        write_manifest(work, manifest)
    return manifest


def narrowed(decoder: Decoder, data: Tensor, *, share: float, heads: int = 0) -> Pruned:
    """Narrow a decoder in place, calibrated on texts int64 (n, T); its ``config`` then says what it is."""
    config, run = decoder.config, partial(_read_through, decoder, data)
    before = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    if heads:
        drop_from(decoder, list(head_groups(decoder)), heads / config.key_value_heads, run)
    step = drop_channels(decoder, share=share, leave=(), run=run)
    after = {name: tensor.shape for name, tensor in decoder.state_dict().items() if tensor.shape != before[name]}
    shared = config.heads // config.key_value_heads
    decoder.config = replace(
        config,
        inner=next(part.out_features for name, part in _linears(decoder) if name.endswith("up_proj")),
        heads=config.heads - heads * shared,
        key_value_heads=config.key_value_heads - heads,
    )
    gone = {name: round(1 - shape.numel() / before[name].numel(), 4) for name, shape in after.items()}
    return msgspec.structs.replace(step, shares=gone, shapes={name: tuple(shape) for name, shape in after.items()})


def head_groups(decoder: Decoder) -> Iterator[Group]:
    """Give each block's key/value heads, with the queries that share them: those lie next to each other."""
    config = decoder.config
    keys, queries = config.head_width, config.heads // config.key_value_heads * config.head_width
    for name, layer in decoder.named_modules():
        if isinstance(layer, Attention):
            members = [Member(f"{name}.{each}_proj", "rows", keys) for each in "kv"]
            members += [Member(f"{name}.q_proj", "rows", queries), Member(f"{name}.o_proj", "columns", queries)]
            yield Group(config.key_value_heads, members)


def like(teacher: nn.Module) -> fitting.Loss:
    """Give a loss: the divergence of what a module expects of each next token from what the teacher does."""
    teacher.eval()

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(*batch), dim=-1)
        found = F.log_softmax(module(*batch), dim=-1)
        return F.kl_div(found, wanted, reduction="sum", log_target=True) / batch[0].numel()

    return loss


def _read_through(decoder: Decoder, data: Tensor) -> None:
    decoder(data)


def _linears(decoder: Decoder) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, layer) for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear))


def _data(folder: Path, text: str | None, seed: int) -> Tensor:
    config = read_config(folder)
    if text is not None:
        return cut_up(LanguageTokenizer(read_files(folder)).encode(text), config.positions_max)
    engine = load_engine(config, 0, layers(config), read_layers(folder, config))
    return written_by(engine, config.bos, seed=seed, texts=TEXTS)


def _stored(decoder: Decoder, folder: Path) -> dict[str, Tensor]:
    """Return what a folder holds of this model, each tensor of the type that it has in the old one."""
    config = read_config(folder)
    find = read_layers(folder, config)
    types = {name: tensor.dtype for layer in range(layers(config)) for name, tensor in find(layer).items()}
    state = decoder.state_dict()
    if decoder.config.tied:
        del state[HEAD]
    return {name: tensor.to(types[name]).contiguous() for name, tensor in state.items()}


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
