"""A sentence encoder from a folder, served by two nodes, asked for vectors by the official client on either."""

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import trio
from lepton.mesh.errors import UsageError
from tokenizers import Tokenizer, models, pre_tokenizers

from .fakes import PATIENCE_S, running

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "the", "cat", "dog", "sat", "ran", "home"]
TEXTS = ["the cat sat", "dog", "the dog ran home the dog ran home", "bird"]


def encoder(folder: Path) -> Any:
    """A tiny one with random weights, whose vectors are the mean of its last states."""
    torch.manual_seed(3)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=len(WORDS),
        max_position_embeddings=12,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def alone(model: Any, text: str) -> np.ndarray[Any, Any]:
    ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return np.asarray(states.mean(0).numpy())


async def test_vectors_are_those_of_one_process(tmp_path: Path) -> None:
    model = encoder(tmp_path / "hf")
    async with running(tmp_path, "a", "b", memory="60kB") as world:  # of 75 kB
        a, b = world.nodes.values()
        await a.serve(tmp_path / "hf", name="small")
        await b.wait_served("small", timeout_s=PATIENCE_S)
        (deployment,) = b.status()["deployments"]
        assert sorted(device for stage in deployment["stages"] for device in stage["devices"]) == ["a", "b"]
        for node in (a, b):
            assert node.web is not None
            answer = await trio.to_thread.run_sync(_ask, node.web.url)
            for text, found in zip(TEXTS, answer.data, strict=True):
                np.testing.assert_allclose(found.embedding, alone(model, text), atol=1e-5)
            assert answer.usage.prompt_tokens == 13
        with pytest.raises(UsageError, match=r"Text 1 has 13 tokens; this encoder takes 1 to 12"):
            await b.texts.embed("small", ["cat", "cat " * 13])
        with pytest.raises(UsageError, match=r"No encoder 'smal' is served in this mesh. Did you mean 'small'"):
            await b.texts.embed("smal", ["cat"])
        with pytest.raises(UsageError, match=r"Traced models are served as float32, not as int8"):
            await a.serve(tmp_path / "hf", name="other", precision="int8")


def _ask(url: str) -> Any:
    with openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE_S) as client:
        with pytest.raises(openai.NotFoundError, match="no model 'small' that makes text"):
            client.completions.create(model="small", prompt="x")
        return client.embeddings.create(model="small", input=TEXTS)
