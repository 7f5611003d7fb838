"""A folder is rounded into a smaller one that says the same, and is published and loaded as any other."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.blobs.opening import stored_layer
from lepton.node.blobs.publishing import publish_folder
from lepton.node.blobs.store import BlobStore
from lepton.node.compression import NotSmaller, quantise_folder, read_manifest
from lepton.node.compression.decoder import Decoder, read_decoder
from lepton.node.compression.texts import cut_up, written_by
from lepton.node.deployments import Precision
from lepton.node.kernels import available
from lepton.node.language.config import parse_config
from lepton.node.language.engine import load_engine
from lepton.node.language.layout import HEAD, layer_of, layers, sizes
from lepton.node.language.rounded import rounded_tensors
from lepton.node.language.tokenizer import LanguageTokenizer, read_files
from lepton.node.sources import of_folder
from lepton.node.terms import Terms
from safetensors.torch import load_file
from torch.nn import functional as F

from .folders import FAMILIES, HEADS, NARROW, SMALL, STORIES, engine_of, logits_of, made, trained


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
def test_a_short_text_is_not_learned_by_heart(tmp_path: Path) -> None:
    text = (STORIES / "tinystories_sample.txt").read_text()
    short, rest = text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]
    tokenizer, losses = LanguageTokenizer(read_files(STORIES / "hf")), []
    quantise_folder(STORIES / "hf", tmp_path / "small", bits=4, text=short, steps=30)
    for folder in (STORIES / "hf", tmp_path / "small"):
        tokens = torch.tensor([tokenizer.encode(rest)])
        with torch.no_grad():
            losses.append(float(F.cross_entropy(read_decoder(folder)(tokens)[0, :-1], tokens[0, 1:])))
    assert math.exp(losses[1] - losses[0]) < 1.045  # on the 5 rows of the text alone 1.054


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


@pytest.mark.parametrize("bits", [4, 8])
def test_a_stage_loaded_from_blobs_says_what_the_folder_says(bits: int, tmp_path: Path) -> None:
    config = made(tmp_path / "model", "qwen2")
    quantise_folder(tmp_path / "model", tmp_path / "small", bits=4 if bits == 4 else 8, steps=0)
    precision: Precision = "int4" if bits == 4 else "int8"
    store = BlobStore(tmp_path / "store")
    published = publish_folder(store, tmp_path / "small", lambda name: layer_of(name, config), layers(config))
    tensors = partial(stored_layer, store, published.manifest)
    engine = load_engine(parse_config(published.manifest.config), 0, layers(config), tensors, precision)
    tokens = list(range(3, 12))
    assert torch.equal(logits_of(engine, tokens), logits_of(engine_of(tmp_path / "small", precision), tokens))
    planned = sum(sizes(config, precision).weights_bytes) - sizes(config, precision).tied_bytes
    assert engine.weights_bytes == planned or (not available().native and engine.weights_bytes < planned)
