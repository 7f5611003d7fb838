"""A model's config.json: what is read of it, what is refused, and which layer needs which tensor."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.deployments import Precision
from lepton.node.language.config import LanguageConfig, parse_config
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import EMBEDDING, HEAD, NORM, layer_of, layer_shapes, layers, sizes
from lepton.node.language.linear import Stacked
from safetensors.torch import save_file

FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def config(**changed: Any) -> LanguageConfig:
    return parse_config(json.dumps(FIELDS | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' are not supported; those of llama, mistral, qwen2, qwen3 are"),
        ({"model_type": 3}, "cannot be read"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 255}, "num_hidden_layers"),
        ({"hidden_size": 18}, "cut into 4 heads"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"head_dim": 5}, "must be even"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported; silu is"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' are not supported; default, linear, llama3"),
        ({"rope_scaling": {"type": "linear"}}, "need a `factor`"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"model_type": "qwen3", "num_key_value_heads": 4, "use_sliding_window": True, "layer_types": ["x"]},
            "layer_types",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(**changed)


@pytest.mark.parametrize("text", ["", "{", "[]", '"llama"', "null", "[" * 100_000, " " * 300_000])
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        parse_config(text)


def test_what_is_missing_is_what_the_family_means_by_it() -> None:
    assert (config().key_value_heads, config().head_width, config().rope.rope_theta) == (4, 4, 10_000)
    assert config(num_attention_heads=8, model_type="mistral").windows == (4096,) * 3
    assert config(model_type="qwen2", num_attention_heads=32, hidden_size=64).bias == {"q_proj", "k_proj", "v_proj"}
    assert config(model_type="qwen3", num_attention_heads=32).head_width == 128
    assert config(eos_token_id=[2, 7]).eos == (2, 7)
    assert config(eos_token_id=2).eos == (2,)


def test_every_tensor_is_in_the_layers_that_need_it() -> None:
    for tied in (False, True):
        model = config(tie_word_embeddings=tied)
        for layer in range(layers(model)):
            for name in layer_shapes(model, layer):
                assert layer in layer_of(name, model)
        assert layer_of(EMBEDDING, model) == ((0, 4) if tied else (0,))
        assert layer_of(HEAD, model) == (() if tied else (4,))
        assert layer_of(NORM, model) == (4,)
        assert layer_of("model.layers.2.self_attn.rotary_emb.inv_freq", model) == ()


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias", "x", ""])
def test_a_tensor_of_no_layer_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="are the files of one model"):
        layer_of(name, config())


@pytest.mark.parametrize("precision", get_args(Precision))
def test_sizes_are_those_of_the_weights_as_loaded(precision: Precision) -> None:
    model = config(num_key_value_heads=2, hidden_size=64, intermediate_size=160, attention_bias=True)
    said = sizes(model, precision)
    assert said.cache_bytes == (0, 256, 256, 256, 0)
    for layer in range(layers(model)):
        tensors = {name: torch.ones(shape) for name, shape in layer_shapes(model, layer).items()}
        engine = load_engine(model, layer, layer + 1, lambda _: tensors, precision)  # noqa: B023 - used at once
        assert (engine.weights_bytes, engine.cache_bytes_per_position) == (
            said.weights_bytes[layer],
            said.cache_bytes[layer],
        )


def test_a_tied_matrix_is_in_memory_once_where_both_ends_are() -> None:
    for tied in (False, True):
        model = config(tie_word_embeddings=tied)
        tensors = [{n: torch.ones(shape) for n, shape in layer_shapes(model, at).items()} for at in range(5)]
        said = sizes(model, "int8")
        whole = load_engine(model, 0, 5, lambda layer: tensors[layer], "int8")  # noqa: B023 - used at once
        assert whole.weights_bytes == sum(said.weights_bytes) - said.tied_bytes
        assert bool(said.tied_bytes) == tied


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        read_layers(tmp_path, config())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        read_layers(tmp_path, config())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "../elsewhere.safetensors"}}))
    with pytest.raises(UsageError, match="not a file of its folder"):
        read_layers(tmp_path, config())
    save_file({"other": torch.ones(2)}, tmp_path / "model.safetensors")
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "model.safetensors"}}))
    with pytest.raises(UsageError, match=r"does not hold 'model\.embed_tokens\.weight'"):
        read_layers(tmp_path, config())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_tensor_are_read_when_they_are_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    tied, path = config(tie_word_embeddings=True), tmp_path / "model.safetensors"
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in layer_shapes(tied, 0).items()}
    save_file(tensors, path)
    stored, matrix = read_layers(tmp_path, tied)(0)[EMBEDDING], tensors[EMBEDDING]
    assert (stored.shape, stored.dtype) == (tuple(matrix.shape), dtype)
    for rows in (slice(None), slice(3, 7), slice(5, 10**6), slice(4, 4)):
        assert torch.equal(stored[rows], matrix[rows])
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(stored[:2], matrix[:2])
    with pytest.raises(LeptonError, match="became shorter"):
        stored[len(matrix) - 1 :]
    path.unlink()
    with pytest.raises(LeptonError, match="cannot be read"):
        stored[:1]


def test_matrices_are_stacked_across_slices() -> None:
    parts = [torch.randn(count, 5) for count in (3, 1, 6)]
    stacked = Stacked([parts[0], parts[1].bfloat16(), parts[2]])
    parts[1] = parts[1].bfloat16().float()
    assert (stacked.shape, stacked.dtype) == ((10, 5), torch.float32)
    for first in range(10):
        assert torch.equal(stacked[first : first + 5], torch.cat(parts)[first : first + 5])
