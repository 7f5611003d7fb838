"""Small folders of random weights of every family, the trained TinyStories model, and what they answer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lepton.node.deployments import Precision
from lepton.node.generation.engine import Piece
from lepton.node.language.config import LanguageConfig, parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import layer_shapes, layers
from safetensors.torch import save_file

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K"
trained = pytest.mark.skipif(not STORIES.exists(), reason="needs ../shared/data/models/stories260K")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 5, "head_dim": 10},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 3},
}
SMALL = {"vocab_size": 70, "hidden_size": 36, "intermediate_size": 75, "num_hidden_layers": 2}
NARROW = {**SMALL, "hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}


def made(
    folder: Path, family: str, sizes: Mapping[str, Any] = SMALL, dtype: torch.dtype = torch.float32
) -> LanguageConfig:
    """Make a folder of random weights."""
    fields = {"model_type": family, **HEADS, **sizes, **FAMILIES[family]}
    config = parse_config(json.dumps(fields))
    draw = torch.Generator().manual_seed(7)
    tensors = {
        name: (torch.randn(shape, generator=draw) * 0.3).to(dtype)
        for layer in range(layers(config))
        for name, shape in layer_shapes(config, layer).items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return config


def engine_of(folder: Path, precision: Precision) -> LanguageEngine:
    config = read_config(folder)
    return load_engine(config, 0, layers(config), read_layers(folder, config), precision)


def logits_of(engine: LanguageEngine, tokens: list[int]) -> torch.Tensor:
    """Logits behind each token."""
    cache, found = engine.new_cache(), []
    for token in tokens:
        (answer,) = engine.run([Piece(cache=cache, x=np.array([token], np.int32), wants_logits=True)])
        found.append(torch.from_numpy(np.array(answer)))
    cache.close()
    return torch.stack(found)
