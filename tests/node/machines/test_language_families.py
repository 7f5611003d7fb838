"""Each family against transformers: the same logits and the same greedy tokens, from the same files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lepton.node.generation.engine import Piece
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.folder import read_config, read_layers

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", **ROPE}}),
    "llama, llama3": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}},
    ),
    "llama, yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", **ROPE}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, window": ("Mistral", {"sliding_window": 20}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, some windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3, biases": ("Qwen3", {"attention_bias": True, "num_key_value_heads": 6}),
}


def saved(name: str, folder: Path) -> torch.nn.Module:
    """A tiny model of random weights, as transformers makes and saves it."""
    transformers = pytest.importorskip("transformers")
    kind, settings = FAMILIES[name]
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**(TINY | settings))
    model: torch.nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # norms and biases that are not all 1 and 0, attention that is not all even
        torch.nn.init.normal_(parameter, std=0.25, mean=1.0 if parameter.ndim == 1 else 0.0)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def loaded(folder: Path) -> LanguageEngine:
    config = read_config(folder)
    return load_engine(config, 0, config.blocks + 2, read_layers(folder, config))


def greedy(engine: LanguageEngine, prompt: Sequence[int], count: int) -> list[int]:
    tokens, cache = list(prompt), engine.new_cache()
    for _ in range(count):
        (logits,) = engine.run([Piece(cache=cache, x=np.array(tokens[cache.length :], np.int32), wants_logits=True)])
        assert logits is not None
        tokens.append(int(np.argmax(logits)))
    return tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, engine = saved(name, tmp_path), loaded(tmp_path)
    tokens = np.random.default_rng(3).integers(0, 97, 150).astype(np.int32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)[None].long()).logits[0].numpy()  # (150, vocabulary)
    cache = engine.new_cache()
    for position in (0, 1, 63, 64, 149):
        piece = Piece(cache=cache, x=tokens[cache.length : position + 1], wants_logits=True)
        (logits,) = engine.run([piece])
        assert logits is not None
        assert np.abs(logits - wanted[position]).max() < 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen2", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, engine = saved(name, tmp_path), loaded(tmp_path)
    given = torch.tensor([[5, 80, 3]])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=40, do_sample=False)  # type: ignore[operator]
    assert greedy(engine, [5, 80, 3], 40) == made[0].tolist()


def test_an_older_file_says_rope_scaling_and_means_the_same(tmp_path: Path) -> None:
    saved("llama, llama3", tmp_path)
    now = read_config(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_scaling": rope | {"rope_type": rope["type"]}}))
    assert read_config(tmp_path) == now


@pytest.mark.skipif(not STORIES.exists(), reason="the trained stories260K is not here")
def test_the_trained_model_tells_the_story_that_transformers_tells() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES)
    given = torch.tensor([[1]])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=200, do_sample=False)
    assert greedy(loaded(STORIES), [1], made.shape[1] - 1) == made[0].tolist()
