"""The engine's invariant, bit for bit, and what it refuses; on a tiny model of random weights made here."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.generation.engine import Cache, Piece
from lepton.node.kernels import available
from lepton.node.language.config import LanguageConfig, parse_config
from lepton.node.language.engine import LanguageEngine, load_engine
from lepton.node.language.layout import layer_shapes, layers, sizes

Float = npt.NDArray[np.float32]
FIELDS: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 50,
    "hidden_size": 36,  # no width here is a multiple of a vector register's
    "intermediate_size": 75,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "sliding_window": 90,
    "max_position_embeddings": 300,
}
CONFIG = parse_config(json.dumps(FIELDS))
LAST = layers(CONFIG) - 1


def random_layer(config: LanguageConfig, layer: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(layer)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 2 else 1)
        for name, shape in layer_shapes(config, layer).items()
    }


def engine_of(first: int = 0, end: int = LAST + 1) -> LanguageEngine:
    return load_engine(CONFIG, first, end, lambda layer: random_layer(CONFIG, layer))


ENGINE = engine_of()
TOKENS = np.random.default_rng(1).integers(0, 50, 200).astype(np.int32)


def logits_of(engine: LanguageEngine, cache: Cache, tokens: npt.NDArray[np.int32]) -> Float:
    (logits,) = engine.run([Piece(cache=cache, x=tokens, wants_logits=True)])
    assert logits is not None
    return np.array(logits, np.float32)


def token_by_token(engine: LanguageEngine, tokens: npt.NDArray[np.int32]) -> list[bytes]:
    """The bits of the logits behind every token."""
    cache = engine.new_cache()
    return [logits_of(engine, cache, tokens[at : at + 1]).tobytes() for at in range(len(tokens))]


BITS = token_by_token(ENGINE, TOKENS)
OTHER_BITS = token_by_token(ENGINE, TOKENS[::-1].copy())


@given(data=st.data())
def test_bits_follow_from_the_tokens_alone_whatever_the_pieces_and_the_company(data: st.DataObject) -> None:
    mine, others = ENGINE.new_cache(), ENGINE.new_cache()
    backwards = TOKENS[::-1].copy()
    while mine.length < len(TOKENS):
        count = data.draw(st.integers(1, len(TOKENS) - mine.length))
        pieces = [Piece(cache=mine, x=TOKENS[mine.length : mine.length + count], wants_logits=True)]
        if company := min(data.draw(st.integers(0, 20)), len(TOKENS) - others.length):
            other = Piece(cache=others, x=backwards[others.length : others.length + company], wants_logits=True)
            pieces.insert(data.draw(st.integers(0, 1)), other)
        for piece, logits in zip(pieces, ENGINE.run(pieces), strict=True):
            assert logits is not None
            assert logits.tobytes() == (BITS if piece.cache is mine else OTHER_BITS)[piece.cache.length - 1]


@given(cut=st.integers(1, LAST), pieces=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_two_stages_make_the_bits_of_one(cut: int, pieces: list[int]) -> None:
    front, back = engine_of(0, cut), engine_of(cut, LAST + 1)
    here, there = front.new_cache(), back.new_cache()
    for count in pieces:
        (between,) = front.run([Piece(cache=here, x=TOKENS[here.length : here.length + count])])
        assert between is not None
        assert (between.dtype, between.shape) == (np.dtype(np.float32), (count, 36))
        (logits,) = back.run([Piece(cache=there, x=between, wants_logits=True)])
    assert logits is not None
    assert logits.tobytes() == BITS[there.length - 1]


@given(data=st.data())
def test_a_fork_and_its_origin_go_on_as_if_alone(data: st.DataObject) -> None:
    origin = ENGINE.new_cache()
    logits_of(ENGINE, origin, TOKENS[:150])
    shared = data.draw(st.integers(0, 150))
    fork = origin.fork(shared)
    origin.truncate(kept := data.draw(st.integers(0, 150)))
    caches = {"origin": origin, "fork": fork}
    if kept:
        logits_of(ENGINE, origin, (TOKENS[kept:150] + 1) % 50 if kept < 150 else TOKENS[150:])  # another continuation
    for _, cache in data.draw(st.permutations(sorted(caches.items()))):
        cache.truncate(min(kept, shared))
        assert logits_of(ENGINE, cache, TOKENS[cache.length : 180]).tobytes() == BITS[179]


def test_shared_pages_are_charged_once_and_memory_goes_back() -> None:
    origin = ENGINE.new_cache()
    logits_of(ENGINE, origin, TOKENS[:150])
    page = 64 * ENGINE.cache_bytes_per_position
    assert origin.size_bytes == 3 * page
    fork = origin.fork(130)
    assert (origin.size_bytes, fork.size_bytes) == (3 * page, page)
    origin.close()
    assert (origin.size_bytes, fork.size_bytes) == (0, 3 * page)
    fork.truncate(64)
    assert fork.size_bytes == page
    fork.close()
    fork.close()
    assert fork.size_bytes == 0


def test_no_logits_where_none_are_wanted() -> None:
    quiet, wanting = (Piece(cache=ENGINE.new_cache(), x=TOKENS[:3], wants_logits=wants) for wants in (False, True))
    first, second = ENGINE.run([quiet, wanting])
    assert first is None
    assert second is not None
    assert second.tobytes() == BITS[2]
    assert ENGINE.run([]) == []


def refused(pieces: Sequence[Piece], engine: LanguageEngine = ENGINE) -> str:
    lengths = [piece.cache.length for piece in pieces]
    with pytest.raises(UsageError) as error:
        engine.run(pieces)
    assert [piece.cache.length for piece in pieces] == lengths
    return str(error.value)


def test_what_cannot_be_run_is_refused_before_any_cache_has_changed() -> None:
    good = Piece(cache=ENGINE.new_cache(), x=TOKENS[:4])
    for x in (TOKENS[:0], TOKENS[:4].astype(np.int64), TOKENS[:4, None], np.zeros((4, 36), np.float32)):
        assert "takes int32" in refused([good, Piece(cache=ENGINE.new_cache(), x=x)])
    for token in (-1, 50):
        assert "vocabulary of 50" in refused([good, Piece(cache=ENGINE.new_cache(), x=np.array([token], np.int32))])
    long = np.zeros(301, np.int32)
    assert "over the 300" in refused([good, Piece(cache=ENGINE.new_cache(), x=long)])
    assert "one piece of a session" in refused([good, good])
    closed = ENGINE.new_cache()
    closed.close()
    assert "closed" in refused([Piece(cache=closed, x=TOKENS[:1])])
    assert "another engine" in refused([Piece(cache=engine_of().new_cache(), x=TOKENS[:1])])
    late = engine_of(2, 4)
    assert "takes float32" in refused([Piece(cache=late.new_cache(), x=np.zeros((2, 35), np.float32))], late)


def test_only_the_layers_of_the_stage_are_read_and_a_wrong_tensor_is_named() -> None:
    read: list[int] = []

    def reading(layer: int) -> dict[str, torch.Tensor]:
        read.append(layer)
        return random_layer(CONFIG, layer)

    engine = load_engine(CONFIG, 1, 3, reading)
    assert read == [1, 2]
    planned = sum(sizes(CONFIG, "float32").weights_bytes[1:3])  # as the kernel packs them; torch takes no more
    assert engine.weights_bytes == planned or (not available().native and engine.weights_bytes < planned)
    assert engine.cache_bytes_per_position == sum(sizes(CONFIG, "float32").cache_bytes[1:3])
    with pytest.raises(UsageError, match="no run of layers 2:9"):
        load_engine(CONFIG, 2, 9, reading)
    for layer in range(LAST + 1):
        tensors = random_layer(CONFIG, layer)
        for name, tensor in tensors.items():
            for wrong in (tensor[:-1], tensor.to(torch.int8)):
                with pytest.raises(UsageError, match=name):
                    load_engine(CONFIG, layer, layer + 1, lambda _: {**tensors, name: wrong})  # noqa: B023 - used at once
            with pytest.raises(UsageError, match=f"Layer {layer} lacks 1 tensors: {name}"):
                load_engine(CONFIG, layer, layer + 1, lambda _: {n: t for n, t in tensors.items() if n != name})  # noqa: B023


def test_blocks_in_one_call_and_step_by_step_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton.node.language.block.Block._fuse", lambda _: None)
    stepwise = engine_of()
    wanted = logits_of(ENGINE, ENGINE.new_cache(), TOKENS)
    np.testing.assert_allclose(logits_of(stepwise, stepwise.new_cache(), TOKENS), wanted, rtol=1e-3, atol=1e-3)
    at_once = logits_of(stepwise, stepwise.new_cache(), TOKENS[:70]).tobytes()
    assert token_by_token(stepwise, TOKENS[:70])[-1] == at_once
