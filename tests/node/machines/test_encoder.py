"""Sentence encoders as programs: the vectors that transformers gives, however they are pooled and cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lepton.mesh.errors import PeerError, UsageError
from lepton.node.programs.encoder import is_encoder, trace_encoder
from lepton.node.programs.run import Stage, batch_max
from safetensors.torch import load_file
from torch import Tensor

transformers = pytest.importorskip("transformers")
TEXTS = ([3, 4, 5, 6, 7, 8], [9, 10, 2], [1])


def bert(folder: Path, *, pooling: str = "mean", unit: bool = True, positions: int = 0) -> Any:
    """A tiny one with random weights, laid out as sentence-transformers does."""
    torch.manual_seed(5)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100,
        max_position_embeddings=24, hidden_dropout_prob=0.1,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if unit else [])]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True})
    )
    if positions:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": positions}))
    return model


def padded() -> list[Tensor]:
    longest = max(map(len, TEXTS))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in TEXTS])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS])
    return [ids, mask]


@pytest.mark.parametrize(("pooling", "unit"), [("mean_tokens", True), ("cls_token", False)])
def test_an_encoder_gives_the_vectors_of_transformers_in_two_stages(
    tmp_path: Path, pooling: str, *, unit: bool
) -> None:
    model = bert(tmp_path / "hf", pooling=pooling, unit=unit, positions=0 if unit else 12)
    found = trace_encoder(tmp_path / "hf", tmp_path / "program")
    weights = load_file(tmp_path / "program/model.safetensors")
    ids, mask = padded()
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        wanted = states[:, 0] if pooling == "cls_token" else (states * weight).sum(1) / weight.sum(1)
        wanted = torch.nn.functional.normalize(wanted) if unit else wanted
    half = found.program.layers // 2
    first = Stage(found.program, 0, half, weights).run([ids, mask])
    (vectors,) = Stage(found.program, half, found.program.layers, weights).run(first)
    assert torch.allclose(vectors, wanted, atol=1e-5)
    assert found.description.program == "encoder"
    assert batch_max(found.program) > 1
    assert not any("pooler" in name for name in weights)  # what nobody asks is not sent
    # A text that is too long is refused, and not cut off silently.
    most = found.description.positions
    assert most == (24 if unit else 12)
    whole = Stage(found.program, 0, found.program.layers, weights)
    assert whole.run([torch.ones((1, most), dtype=torch.int64)] * 2)[0].shape == (1, 32)
    with pytest.raises(PeerError, match="input_ids"):
        whole.run([torch.ones((1, most + 1), dtype=torch.int64)] * 2)


def test_a_folder_says_whether_it_is_an_encoder(tmp_path: Path) -> None:
    assert not is_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not is_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert is_encoder(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        trace_encoder(tmp_path, tmp_path / "program")


def test_another_way_of_pooling_is_refused_by_name(tmp_path: Path) -> None:
    bert(tmp_path / "hf", pooling="max_tokens")
    with pytest.raises(UsageError, match="max_tokens"):
        trace_encoder(tmp_path / "hf", tmp_path / "program")
