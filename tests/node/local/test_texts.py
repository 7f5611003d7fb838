"""Prompts become tokens and tokens text: with a tokenizer of letters, and a session that says what it is told."""

import json
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import pytest
import trio
from lepton.mesh.errors import LinkError, UsageError
from lepton.node.deployments import BlobRef, DeploymentRecord, Manifest
from lepton.node.generation.sampling import Sampling
from lepton.node.texts import TextModel, Texts, as_prompt
from lepton.node.tokenizing import Tokenizers
from lepton.node.web.models import Part, Turn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz ", "user", "END"]
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
REF = BlobRef(digest="ab" * 32, size_bytes=1)
CONFIG = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "eos_token_id": 1,
}  # fmt: skip


def tokenizer() -> bytes:
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<s>", "</s>"])
    return str(made.to_str()).encode()


class Token(NamedTuple):
    id: int
    position: int


@dataclass
class Session:
    tokens: list[int]
    finish: str | None = None
    on_pause: Any = None
    closed: bool = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        await trio.lowlevel.checkpoint()
        if not self.tokens:
            self.finish = self.finish or "length"
            raise StopAsyncIteration
        token = self.tokens.pop(0)
        if token == 0:
            raise LinkError("No next token within 60 s.")
        if token < 0:
            self.on_pause("kitchen left")
            token = -token
        if token == 1:
            self.finish = "stop"
        return Token(token, 0)


@dataclass
class World:
    """What texts are made from, and what was asked of it."""

    says: str | list[int] = "a tale"
    sessions: list[Session] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=lambda: {"chat_template": CHAT})
    positions: int = 40
    trouble: str = ""

    @property
    def model(self) -> TextModel:
        return TextModel(self.texts, "tales")

    def __post_init__(self) -> None:
        self.texts = Texts(self, self, Tokenizers(self), self, lambda _: self.trouble)  # type: ignore[arg-type]

    def deployments(self) -> dict[str, DeploymentRecord]:
        record = DeploymentRecord(
            version=1_700_000_000_123, kind="causal_lm", manifest=REF, weights_bytes=(1,), positions=self.positions
        )
        return {"tales": record}

    def generate(self, name: str, ids: Sequence[int], sampling: Sampling, stop_ids: Collection[int]) -> Session:
        self.asked.append((list(ids), sampling, set(stop_ids)))
        says = [WORDS.index(letter) for letter in self.says] if isinstance(self.says, str) else list(self.says)
        self.sessions.append(Session(says[: sampling.tokens_max]))
        return self.sessions[-1]

    async def manifest(self, name: str, ref: BlobRef) -> Manifest:
        await trio.lowlevel.checkpoint()
        files = {"tokenizer.json": REF, "tokenizer_config.json": REF, "vocab.txt": REF}
        return Manifest(kind="causal_lm", config=json.dumps(CONFIG), files=files, layers=((REF,),))

    async def data(self, name: str, ref: BlobRef) -> bytes:
        await trio.lowlevel.checkpoint()
        self.fetched.append(name)
        return tokenizer() if len(self.fetched) % 2 else json.dumps(self.settings).encode()


async def parts(model: TextModel, prompt: Any, **drawing: Any) -> list[Part]:
    async with aclosing(model.generate(prompt, **drawing)) as given:
        return [part async for part in given]


async def test_text_comes_in_parts_and_the_last_says_why_it_ended() -> None:
    world = World()
    given = await parts(world.model, "once", seed=3, temperature=0.5)
    assert "".join(part.text for part in given) == "a tale"
    assert [part.finish for part in given] == [None] * 6 + ["length"]
    assert (given[-1].prompt_tokens, given[-1].tokens) == (4, 6)
    ((ids, sampling, stop_ids),) = world.asked
    assert ids == [WORDS.index(letter) for letter in "once"]
    assert sampling == Sampling(seed=3, temperature=0.5, tokens_max=36)  # the rest of the session's positions
    assert stop_ids == {1}


async def test_the_token_of_the_end_is_not_text() -> None:
    world = World(says=[*(WORDS.index(letter) for letter in "ab"), 1])
    given = await parts(world.model, "x")
    assert "".join(part.text for part in given) == "ab"
    assert (given[-1].finish, given[-1].tokens) == ("stop", 3)


async def test_a_stop_string_ends_the_session_and_is_not_said() -> None:
    world = World(says="a tale of two")
    given = await parts(world.model, "x", stop=" o")
    assert "".join(part.text for part in given) == "a tale"
    assert given[-1].finish == "stop"
    assert world.sessions[0].closed
    assert world.sessions[0].tokens  # not all were waited for
    assert await world.model.text("x", stop=["zz", "le"]) == "a ta"


async def test_who_leaves_early_ends_the_session() -> None:
    world = World()
    async with aclosing(world.model.generate("x")) as given:
        async for _ in given:
            break
    assert world.sessions[0].closed


async def test_a_conversation_goes_through_the_models_template() -> None:
    world = World()
    await world.model.text([{"role": "user", "content": "hi"}])
    assert "".join(WORDS[token] for token in world.asked[0][0]) == "user hi "
    plain = World(settings={})
    with pytest.raises(UsageError, match=r"no chat template"):
        await plain.model.text([{"role": "user", "content": "hi"}])


async def test_token_ids_are_taken_as_they_are() -> None:
    world = World()
    await world.model.text([5, 6, 7])
    assert world.asked[0][0] == [5, 6, 7]


async def test_a_tokenizer_is_fetched_once() -> None:
    world = World()
    for _ in range(3):
        await world.model.text("x")
    assert len(world.fetched) == 2  # of three files those that a tokenizer is made of


async def test_a_pause_is_told_when_it_begins() -> None:
    world = World(says=[2, -3, 4])
    told: list[str] = []
    await parts(world.model, "x", on_pause=told.append)
    assert told == ["kitchen left"]


async def test_who_waits_for_layers_that_nobody_holds_is_told_why() -> None:
    world = World(says=[2, 0], trouble="700 B of memory are missing")
    told: list[str] = []
    with pytest.raises(LinkError, match=r"No next token within 60 s. For 'tales' holds: 700 B of memory are missing."):
        await parts(world.model, "x", on_pause=told.append)
    assert told == ["tales cannot answer now: 700 B of memory are missing"]


@pytest.mark.parametrize(
    ("prompt", "drawing", "said"),
    [
        ("x" * 40, {}, r"The prompt has 40 tokens, and sessions of 'tales' hold 40 with the answer"),
        ("", {}, r"The prompt is empty"),
        ([], {}, r"A prompt is a text, token ids, or turns"),
        ([-1], {}, r"A prompt is a text, token ids, or turns"),
        ([{"role": "user"}], {}, r"A prompt is a text, token ids, or turns"),
        (["x"], {}, r"A prompt is a text, token ids, or turns"),
        ("x", {"temprature": 1}, r"There is no setting 'temprature'. Did you mean 'temperature'"),
        ("x", {"top_p": 0}, r"top_p: Expected `float` > 0"),
        ("x", {"tokens_max": 0}, r"tokens_max: Expected `int` >= 1"),
        ("x", {"stop": [""]}, r"stop\[0\]: Expected `str` of length >= 1"),
    ],
)
async def test_what_cannot_be_asked_is_said(prompt: Any, drawing: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        await World().model.text(prompt, **drawing)


async def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UsageError, match=r"No language model 'tale' is served in this mesh. Did you mean 'tales'"):
        await TextModel(World().texts, "tale").text("x")


async def test_models_are_listed_with_what_their_text_follows_from() -> None:
    (model,) = World().texts.models()
    assert (model.name, model.kind, model.created_s, model.fingerprint) == (
        "tales",
        "causal_lm",
        1_700_000_000,
        "ababababab_float32",
    )


def test_prompts_are_told_apart() -> None:
    assert as_prompt([{"role": "user", "content": "x"}]) == (Turn("user", "x"),)
    assert as_prompt((1, 2)) == (1, 2)
