"""Tokens and text: a model's own tokenizer, its chat template kept small, characters whole, stop strings held back."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.language import chat
from lepton.node.language.chat import ChatTemplate
from lepton.node.language.text import Stops, TextStream, Transcript
from lepton.node.language.tokenizer import GENERATION, SETTINGS, TEMPLATE, TOKENIZER, LanguageTokenizer, read_files
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="the trained stories260K is not here")


def bytes_tokenizer() -> bytes:
    """A tokenizer as of GPT-2 and Qwen, whose tokens are single bytes: every character but ASCII takes several."""
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made.to_str().encode()


BYTES = LanguageTokenizer({TOKENIZER: bytes_tokenizer()})


@given(text=st.text(max_size=60))
@settings(max_examples=50)
def test_text_comes_in_whole_characters_and_adds_up(text: str) -> None:
    stream = TextStream(BYTES)
    pieces = [stream.push(token) for token in BYTES.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@needs_stories
@given(text=st.text(alphabet="ab cd.\n é猫🙂", max_size=40), prompt=st.sampled_from(["", "Once upon a", "a "]))
@settings(max_examples=50)
def test_spaces_are_those_of_the_whole_text_with_fallback_bytes_too(text: str, prompt: str) -> None:
    tokenizer = LanguageTokenizer(read_files(STORIES))
    context, tokens = tokenizer.encode(prompt), tokenizer.encode(" " + text, special=False)
    whole = tokenizer.decode(context + tokens)
    stream = TextStream(tokenizer, context)
    pieces = [stream.push(token) for token in tokens]
    assert tokenizer.decode(context) + "".join(pieces) + stream.finish() == whole


def test_broken_bytes_come_out_as_what_they_are_and_are_not_waited_for_for_ever() -> None:
    half = BYTES.encode("猫")[:2]
    stream = TextStream(BYTES)
    assert [stream.push(token) for token in half] == ["", ""]
    assert stream.finish() == "\ufffd"
    stream = TextStream(BYTES)
    endless = [stream.push(half[1]) for _ in range(40)]
    assert any(endless)
    assert set("".join(endless)) == {"\ufffd"}


def test_special_tokens_are_silent() -> None:
    stream = TextStream(BYTES)
    end = BYTES.vocabulary - 1
    tokens = [*BYTES.encode("a"), end, end, *BYTES.encode("b")]
    assert [stream.push(token) for token in tokens] == ["a", "", "", "b"]


@given(text=st.text(alphabet="abc", max_size=30), stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4)))
def test_a_stop_string_is_found_wherever_the_text_is_cut(text: str, stops: list[str]) -> None:
    finder = Stops(stops)
    given_text = "".join(finder.push(character) for character in text) + finder.finish()
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert (given_text, finder.found) == (text, None)
        return
    assert finder.found in stops
    assert text.startswith(given_text + finder.found)
    assert len(given_text + finder.found) == min(ends)  # as soon as any of them is there
    assert not any(stop in given_text for stop in stops)


def test_a_transcript_ends_before_its_stop_string() -> None:
    transcript = Transcript(BYTES, ["END"])
    pieces = [transcript.push(token) for token in BYTES.encode("an EN, the END of it")]
    assert "".join(pieces) == "an EN, the "
    assert transcript.stopped
    assert transcript.finish() == ""
    held = Transcript(BYTES, ["END"])
    assert ("".join(held.push(token) for token in BYTES.encode("the EN")), held.finish()) == ("the ", "EN")


# -- the tokenizer's files ---------------------------------------------------------------------------------------------


@needs_stories
def test_tokens_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    reference, ours = transformers.AutoTokenizer.from_pretrained(STORIES), LanguageTokenizer(read_files(STORIES))
    for text in ("Once upon a time", " there  was", "", "<s>x</s>", "é猫🙂"):
        assert ours.encode(text) == reference(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == reference.decode(
            reference(text)["input_ids"], skip_special_tokens=True
        )
    assert ours.eos == {reference.eos_token_id}
    assert ours.vocabulary == 512


def test_what_ends_an_answer_is_looked_up_as_transformers_does() -> None:
    made = {TOKENIZER: bytes_tokenizer(), SETTINGS: json.dumps({"eos_token": {"content": "</s>"}}).encode()}
    end = BYTES.vocabulary - 1
    assert LanguageTokenizer(made).eos == {end}
    assert LanguageTokenizer(made, eos=[3]).eos == {3}
    assert LanguageTokenizer(made | {GENERATION: b'{"eos_token_id": [5, 6]}'}, eos=[3]).eos == {5, 6}
    assert BYTES.eos == frozenset()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="save_pretrained"):
        LanguageTokenizer(read_files(tmp_path))
    for name in (TOKENIZER, SETTINGS, GENERATION):
        with pytest.raises(UsageError, match=name):
            LanguageTokenizer({TOKENIZER: bytes_tokenizer()} | {name: b'{"eos_token": 3, "eos_token_id": "x"'})


# -- chat templates ----------------------------------------------------------------------------------------------------

CHATML = """{% for message in messages %}{{ '<|' + message.role + '|>' + message['content'] | trim }}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' ~ bos_token }}{% generation %}{% endgeneration %}{% endif %}"""
TALK = [{"role": "user", "content": " Hi! "}, {"role": "assistant", "content": "Yes?"}]


def test_a_conversation_is_put_as_the_template_says() -> None:
    files = {TOKENIZER: bytes_tokenizer(), SETTINGS: json.dumps({"bos_token": "<s>", "chat_template": CHATML}).encode()}
    tokenizer = LanguageTokenizer(files)
    assert tokenizer.chat_template is not None
    text = "<|user|>Hi!\n<|assistant|>Yes?\n<|assistant|><s>"
    assert tokenizer.chat_template.render(TALK, prompt=True, named=tokenizer.named) == text
    assert tokenizer.encode_chat(TALK) == tokenizer.encode(text)
    assert tokenizer.encode_chat(TALK, prompt=False) == tokenizer.encode(text.removesuffix("<|assistant|><s>"))
    own = LanguageTokenizer(files | {TEMPLATE: b"{{ messages | tojson }}"})
    assert own.encode_chat(TALK) == own.encode(json.dumps(TALK))
    several = json.dumps({"chat_template": [{"name": "default", "template": "x{{ eos_token }}"}]}).encode()
    assert LanguageTokenizer(files | {SETTINGS: several}).encode_chat(TALK) == BYTES.encode("x")
    with pytest.raises(UsageError, match="no chat template"):
        BYTES.encode_chat(TALK)


def test_templates_render_as_transformers_renders_them() -> None:
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    for source in (
        CHATML,
        "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% continue %}{% endfor %}{{ n.i }}",
        "{{ messages[0].content.strip().split('!')[0] }} {{ messages[-1]['content'].replace('?', '!!') }}",
        "{{ messages | map(attribute='role') | join(', ') }} {{ messages | tojson(indent=2) }}",
        "{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages|length * 2) }}{{ '-' * 3 }}{{ 7 % 4 }}",
    ):
        rendered = render_jinja_template([TALK], chat_template=source, add_generation_prompt=True, bos_token="<s>")[0]
        assert ChatTemplate(source).render(TALK, prompt=True, named={"bos_token": "<s>"}) == rendered[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system messages, please') }}", "no system messages, please"),
        ("{{ messages[7].content }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses|stopped"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{{ 'a' * 10 ** 9 }}", r"operator \*\*"),
        ("{{ 'a' * 999999999 }}", "more than"),
        ("{{ 999999999 * ['a'] }}", "more than"),
        ("{{ '%999999999d' % 1 }}", "operator %"),
        ("{{ '{:999999999}'.format(1) }}", "refuses"),
        ("{{ 'a'.ljust(999999999) }}", "refuses"),
        ("{{ 'a' | center(999999999) }}", "cannot be read"),
        ("{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more than"),
        ("{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "more than"),
        ("{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}", "more than"),
        ("{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}", "more than"),
        ("{% set x = 'a' * 99999 %}{{ x.join(x) }}{{ x }}", "more than"),
        ("{% set x = 'a' * 99999 %}{{ range(9999) | join(x) }}", "more than"),
        ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "more than"),
        ("{% if %}", "cannot be read"),
        ("x" * 200_000, "more than"),
    ],
)
def test_a_template_that_runs_wild_is_stopped(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "STEPS_MAX", 20_000)
    before: Any = sys.gettrace()
    with pytest.raises(UsageError, match=message):
        ChatTemplate(source).render(TALK, prompt=True, named={})
    assert sys.gettrace() is before
