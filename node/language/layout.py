"""Which tensors make up each layer of a language model, under Hugging Face's names, and what they take in memory.

Layer 0 is the embedding, 1 to L are the blocks, L + 1 is the last norm with the head. A tied matrix is in both.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...mesh.errors import UsageError
from ..deployments import Precision
from .config import LanguageConfig
from .packing import packed_bytes, vocabulary_precision

Shape = tuple[int, ...]
EMBEDDING: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"
SCALE: Final = "_scale"  # behind a matrix's name: the scales of one that was rounded before (`rounded.py`)
CODED: Final = "_coded"  # behind a tensor's name: bytes that stand for it (`compression/coded.py`)
_BLOCK: Final = re.compile(r"model\.layers\.(\d{1,4})\.(.+)")
# Matrices of a block that take the same input are packed as one.
TOGETHER: Final = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
# Older checkpoints carry what follows from the configuration.
_NOT_NEEDED: Final = re.compile(r"(model\.layers\.\d{1,4}\.self_attn|model)\.rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What placement and admission need to know of a model, at one precision."""

    weights_bytes: tuple[int, ...]  # in memory, of each layer
    tied_bytes: int  # of those of the first and the last layer, what a node with both holds once
    cache_bytes: tuple[int, ...]  # of one position, of each layer
    width: int  # float32 numbers that one position takes between layers


def layers(config: LanguageConfig) -> int:
    """How many layers there are: the blocks and two."""
    return config.blocks + 2


def layer_of(name: str, config: LanguageConfig) -> tuple[int, ...]:
    """Return the layers that need the tensor ``name``; none where what it holds follows from the configuration.

    Raises UsageError for a name that no layer has: the file is of another model, or of one that is not supported.
    """
    last = layers(config) - 1
    if name in {EMBEDDING, EMBEDDING + SCALE}:
        return (0, last) if config.tied else (0,)
    if name == NORM:
        return (last,)
    if name in {HEAD, HEAD + SCALE}:
        return () if config.tied else (last,)
    match = _BLOCK.fullmatch(name)
    if match and int(match[1]) < config.blocks and _belongs(match[2], block_shapes(config)):
        return (int(match[1]) + 1,)
    if _NOT_NEEDED.fullmatch(name):
        return ()
    raise UsageError(f"No layer of this {config.family} model has a tensor {name[:128]!r}: are the files of one model?")


def _belongs(name: str, shapes: Mapping[str, Shape]) -> bool:
    return name in shapes or (name.endswith(SCALE) and len(shapes.get(name.removesuffix(SCALE), ())) == 2)


def layer_shapes(config: LanguageConfig, layer: int) -> dict[str, Shape]:
    """Return each tensor of ``layer`` by its name with the shape that it must have. Raises UsageError."""
    matrix = (config.vocabulary, config.width)
    if layer == 0:
        return {EMBEDDING: matrix}
    if layer == layers(config) - 1:
        return {NORM: (config.width,), EMBEDDING if config.tied else HEAD: matrix}
    if not 0 < layer < layers(config):
        raise UsageError(f"There is no layer {layer} in a model of {layers(config)} layers.")
    return {f"model.layers.{layer - 1}.{name}": shape for name, shape in block_shapes(config).items()}


def block_shapes(config: LanguageConfig) -> dict[str, Shape]:
    """Return the tensors of any block, named as behind `model.layers.N.`, with their shapes."""
    width, queries, keys = config.width, config.heads * config.head_width, config.key_value_heads * config.head_width
    shapes: dict[str, Shape] = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    for part, name, outputs, inputs in (
        ("self_attn", "q_proj", queries, width),
        ("self_attn", "k_proj", keys, width),
        ("self_attn", "v_proj", keys, width),
        ("self_attn", "o_proj", width, queries),
        ("mlp", "gate_proj", config.inner, width),
        ("mlp", "up_proj", config.inner, width),
        ("mlp", "down_proj", width, config.inner),
    ):
        shapes[f"{part}.{name}.weight"] = (outputs, inputs)
        if name in config.bias:
            shapes[f"{part}.{name}.bias"] = (outputs,)
    if config.head_norms:
        shapes |= {f"self_attn.{name}.weight": (config.head_width,) for name in ("q_norm", "k_norm")}
    return shapes


def sizes(config: LanguageConfig, precision: Precision) -> Sizes:
    """Work out what each layer takes in memory at ``precision``; nothing is loaded for it."""
    position = 2 * 4 * config.key_value_heads * config.head_width  # a key and a value, float32
    weights_bytes = tuple(_layer_bytes(config, layer, precision) for layer in range(layers(config)))
    return Sizes(
        weights_bytes=weights_bytes,
        tied_bytes=weights_bytes[0] if config.tied else 0,
        cache_bytes=(0, *[position] * config.blocks, 0),
        width=config.width,
    )


def _layer_bytes(config: LanguageConfig, layer: int, precision: Precision) -> int:
    shapes = layer_shapes(config, layer)
    size = sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
    if layer in {0, layers(config) - 1}:
        return size + packed_bytes(config.vocabulary, config.width, vocabulary_precision(precision))
    matrices = {name.split(".")[-2]: shape for name, shape in shapes.items() if len(shape) == 2}
    for names in TOGETHER:
        outputs = sum(matrices[name][0] for name in names)
        size += packed_bytes(outputs, matrices[names[0]][1], precision)
    return size
