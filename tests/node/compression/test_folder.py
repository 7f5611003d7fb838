"""A folder is rounded into a smaller one that says the same, and is published and loaded as any other."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.blobs.store import BlobStore
from lepton.node.compression import NotSmaller, quantise_folder, read_manifest
from lepton.node.compression.decoder import Decoder, read_decoder
from lepton.node.compression.texts import cut_up, written_by
from lepton.node.deployments import Precision
from lepton.node.generation.engine import Piece
from lepton.node.language.config import LanguageConfig, parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import HEAD, layer_of, layer_shapes, layers
from lepton.node.language.rounded import rounded_tensors
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from lepton.node.sources import of_folder
from lepton.node.terms import Terms
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_is_the_engine(family: str, tmp_path: Path) -> None:
    made(tmp_path / "model", family)
    tokens = list(range(3, 23))
    with torch.no_grad():
        ours = read_decoder(tmp_path / "model")(torch.tensor([tokens]))[0]
    torch.testing.assert_close(ours, logits_of(engine_of(tmp_path / "model", "float32"), tokens), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_any_family_is_rounded_and_served(family: str, bits: int, tmp_path: Path) -> None:
    made(tmp_path / "model", family)
    out = tmp_path / "small"
    quantise_folder(tmp_path / "model", out, bits=4 if bits == 4 else 8, steps=2)
    precision: Precision = "int4" if bits == 4 else "int8"
    tokens = list(range(3, 23))
    served = logits_of(engine_of(out, precision), tokens)
    # As float32 it is the same numbers, so nothing was rounded a second time.
    torch.testing.assert_close(served, logits_of(engine_of(out, "float32"), tokens), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(served, read_decoder(out)(torch.tensor([tokens]))[0], rtol=1e-3, atol=1e-4)


def test_a_deployment_of_it_has_its_precision_and_only_its_bytes(tmp_path: Path) -> None:
    config = made(tmp_path / "model", "llama")
    manifest = quantise_folder(tmp_path / "model", tmp_path / "small", bits=4, steps=0)
    assert manifest == read_manifest(tmp_path / "small")
    assert manifest.size_bytes < 0.45 * manifest.size_bytes_before
    store = BlobStore(tmp_path / "store")
    record = of_folder(store, tmp_path / "small", tmp_path / "traced")(Terms(), 1)
    assert record.precision == "int4"
    names = load_file(tmp_path / "small/model.safetensors")
    assert all(layer_of(name, config) for name in names)


def test_what_would_not_be_smaller_or_is_in_the_way_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "model", "qwen2")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(UsageError, match="in use"):
        quantise_folder(tmp_path / "model", tmp_path / "used")
    quantise_folder(tmp_path / "model", tmp_path / "small", bits=8)
    with pytest.raises(UsageError, match="rounded before"):
        quantise_folder(tmp_path / "small", tmp_path / "smaller")
    made(tmp_path / "narrow", "llama", NARROW, torch.bfloat16)  # two numbers and their scale: as much as before
    with pytest.raises(NotSmaller, match="it takes"):
        quantise_folder(tmp_path / "narrow", tmp_path / "smaller", bits=8)
    assert not (tmp_path / "smaller").exists()


def test_scales_without_their_matrix_are_refused(tmp_path: Path) -> None:
    config = made(tmp_path / "model", "llama")
    scales = torch.ones(36, dtype=torch.bfloat16)
    for name in ("model.norm.weight_scale", "lm_head.bias_scale"):
        with pytest.raises(UsageError, match=r"belongs to|has a tensor"):
            layer_of(name, config)
        with pytest.raises(UsageError, match="belongs to"):
            rounded_tensors({name: scales, "model.norm.weight": scales}, config, layers(config) - 1)


def test_texts_are_cut_into_rows_and_too_short_ones_refused() -> None:
    assert cut_up(range(100), 16).shape == (6, 16)
    with pytest.raises(UsageError, match="15 tokens; give 16"):
        cut_up(range(15), 16)


@trained
def test_a_trained_model_at_4_bits_loses_less_than_6_percent(tmp_path: Path) -> None:
    out = tmp_path / "small"
    quantise_folder(STORIES / "hf", out, bits=4, steps=15)  # more of them gain more
    tokenizer, decoder = LanguageTokenizer(read_files(out)), read_decoder(out)
    stories = (STORIES / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    texts = [torch.tensor([tokenizer.encode(story.strip())]) for story in stories]
    with torch.no_grad():
        losses = [F.cross_entropy(decoder(text)[0, :-1], text[0, 1:], reduction="sum") for text in texts]
    count = sum(text.numel() - 1 for text in texts)
    assert math.exp(float(sum(losses)) / count) < 1.06 * 3.548


@trained
def test_a_model_writes_the_same_texts_with_the_same_seed() -> None:
    engine = engine_of(STORIES / "hf", "float32")
    first, again, other = (written_by(engine, 1, seed=seed, texts=2) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_tied_decoder_has_one_matrix() -> None:
    config = parse_config(json.dumps({"model_type": "qwen2", **SMALL, **HEADS, "tie_word_embeddings": True}))
    decoder = Decoder(config)
    assert decoder.get_parameter(HEAD) is decoder.get_parameter("model.embed_tokens.weight")
