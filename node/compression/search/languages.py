"""A language model's folder as the subject of a search: each candidate is a folder that `serve` takes.

Perplexity is measured on the last fifth of the given text, or on texts that the model wrote and nothing was calibrated
on; latency is that of one token of one session, each candidate in turns with the folder as it was.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...blobs.publishing import FILES, WEIGHTS
from ...deployments import Precision
from ...generation.engine import Piece
from ...language.config import LanguageConfig
from ...language.engine import LanguageEngine
from ...language.folder import read_config, read_layers
from ...language.layout import HEAD, layer_shapes, layers
from ...language.tokenizer import LanguageTokenizer, read_files
from ..comparing import engine_of, held_out
from ..decoder import Decoder, read_decoder
from ..distilling import distil
from ..fitting import Fit
from ..folder import quantise_folder, size_bytes
from ..manifest import Distilled, read_manifest, write_manifest
from ..measured import medians_s, perplexity
from ..texts import POSITIONS, written_by
from .picking import Figures
from .recipes import Distil, Recipe, Round

FIT: Final = Fit(steps=400, batch_size=8, rate=1e-3)
_TAUGHT_MAX: Final = 20_000_000  # parameters of a model whose students are tried: of more, a step takes seconds
_TOKENS: Final = 16  # of one turn of the latency
_ROWS_MAX: Final = 512  # that a student learns from
_WRITTEN: Final = 128  # texts that the model writes where none is given


class Language:
    """Implements `Subject` for the folder of a language model; candidates are folders below ``work``."""

    def __init__(
        self, folder: Path, work: Path, *, text: str | None = None, seed: int = 0,
        recipes: Sequence[Recipe] | None = None, steps: int | None = None,
    ) -> None:  # fmt: skip
        """``steps`` are those of training, for students and behind the rounding."""
        self.config = read_config(folder)
        self._folder, self._work, self._seed, self._steps = folder, work, seed, steps
        self._fit = replace(FIT, seed=seed, steps=FIT.steps if steps is None else steps)
        self._recipes = tuple(recipes) if recipes is not None else recipes_for(self.config)
        self._engine = engine_of(folder, precision_of(folder, self.config))
        self._text, self._rows, self.measured_on = held_out(folder, self._engine, text, seed=seed)
        self._before: Figures | None = None
        self._students: dict[Recipe, tuple[Path, Distilled]] = {}

    def recipes(self) -> Sequence[Recipe]:
        return self._recipes

    def before(self) -> Figures:
        if self._before is None:
            (latency_s,) = medians_s([_Tokens(self._engine)])
            self._before = Figures(
                size_bytes=size_bytes(self._folder),
                latency_s=latency_s / _TOKENS,
                quality=perplexity(self._engine, self._rows),
            )
        return self._before

    def make(self, recipe: Recipe) -> Path:
        """Return a new folder."""
        out = self._work / f"candidate-{self._recipes.index(recipe)}"
        source, done = self._folder, tuple[Distilled, ...]()
        for step in recipe:
            if isinstance(step, Distil):
                source, taught = self._student(step)
                done = (taught,)
            if isinstance(step, Round):
                manifest = quantise_folder(
                    source, out, bits=step.bits, text=self._text, seed=self._seed, steps=self._steps
                )
                whole = msgspec.structs.replace(
                    manifest, steps=(*done, *manifest.steps), size_bytes_before=self.before().size_bytes
                )
                write_manifest(out, whole)
        return out

    def measure(self, made: Path) -> Figures:
        (rounded,) = read_manifest(made).quantised
        precision: Precision = "int4" if rounded.bits == 4 else "int8"
        engine, before = engine_of(made, precision), self.before()
        old, new = medians_s([_Tokens(self._engine), _Tokens(engine)])
        quality = perplexity(engine, self._rows)
        return Figures(
            size_bytes=size_bytes(made),
            latency_s=before.latency_s * new / old,
            quality=quality,
            lost=100 * (quality / before.quality - 1),
        )

    def drop(self, made: Path) -> None:
        shutil.rmtree(made)

    def _student(self, step: Distil) -> tuple[Path, Distilled]:
        if (step,) not in self._students:
            teacher = read_decoder(self._folder)
            taught = distil(teacher, step.student, self._lessons, fit=self._fit, teacher_name=self._folder.name)
            out = self._work / f"student-{len(self._students)}"
            assert isinstance(taught.module, Decoder)
            save_decoder(taught.module, self._folder, out)
            self._students[step,] = out, taught.step
        return self._students[step,]

    @cached_property
    def _lessons(self) -> Tensor:
        """Tokens int64 (n, T) of what may be learned from."""
        if self._text is None:
            return written_by(self._engine, self.config.bos, seed=self._seed, texts=_WRITTEN)
        tokens = LanguageTokenizer(read_files(self._folder)).encode(self._text)
        width = min(POSITIONS, self.config.positions_max, len(tokens))
        rows = min(len(tokens) // width, _ROWS_MAX)
        return torch.tensor(tokens[: rows * width]).reshape(rows, width)


def recipes_for(config: LanguageConfig) -> tuple[Recipe, ...]:
    """Return what is tried: both widths of numbers, and for small models students of fewer inner units and layers."""
    plain: tuple[Recipe, ...] = ((Round(bits=8),), (Round(bits=4),))
    if parameters_of(config, config.blocks, config.inner) > _TAUGHT_MAX:
        return plain
    sizes = [(config.blocks, config.inner * 3 // 4), (config.blocks, config.inner // 2)]
    if config.blocks > 1 and len(set(config.windows)) == 1:  # else config.json would have to say which went
        sizes.append((config.blocks - 1, config.inner))
    students = [
        Distil(student=f"layers={blocks},inner={inner}", share=_share(config, blocks, inner)) for blocks, inner in sizes
    ]
    return (*plain, *((student, Round(bits=bits)) for student in students for bits in (8, 4)))


def parameters_of(config: LanguageConfig, blocks: int, inner: int) -> int:
    """Return how many numbers a model has with so many blocks and inner units."""
    total = 0
    for layer in range(layers(config)):
        if layer == layers(config) - 1 and config.tied:
            total += config.width  # of the norm: the head is the embedding
            continue
        times = 1 if layer in {0, layers(config) - 1} else blocks / config.blocks
        for name, shape in layer_shapes(config, layer).items():
            total += int(np.prod(shape) * times * (inner / config.inner if ".mlp." in name else 1))
    return total


def precision_of(folder: Path, config: LanguageConfig) -> Precision:
    """Return the precision at which a folder of floats is served of itself."""
    find = read_layers(folder, config)
    kinds = {tensor.dtype for layer in range(layers(config)) for tensor in find(layer).values()}
    return "bfloat16" if kinds == {torch.bfloat16} else "float32"


def save_decoder(decoder: Decoder, source: Path, out: Path) -> None:
    """Write a decoder that was made smaller as a folder, with all else that its source has."""
    out.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}
    if decoder.config.tied:
        del state[HEAD]
    save_file(state, out / WEIGHTS)
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    fields: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    fields |= {"num_hidden_layers": decoder.config.blocks, "intermediate_size": decoder.config.inner}
    if fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][: decoder.config.blocks]  # they are alike where layers went
    (out / "config.json").write_text(json.dumps(fields, indent=1) + "\n")


def _share(config: LanguageConfig, blocks: int, inner: int) -> float:
    return parameters_of(config, blocks, inner) / parameters_of(config, config.blocks, config.inner)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Some tokens of a session, one behind the other."""

    engine: LanguageEngine

    def __call__(self) -> None:
        cache, x = self.engine.new_cache(), np.zeros(1, np.int32)
        for _ in range(min(_TOKENS, self.engine.positions_max)):
            self.engine.run([Piece(cache=cache, x=x, wants_logits=True)])
        cache.close()
