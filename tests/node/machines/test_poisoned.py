"""What a model that somebody else deployed cannot do to those who serve or ask it: programs, templates, tokenizers."""

import json
import resource
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.inference.parts import ProgramPart
from lepton.node.language.chat import ChatTemplate
from lepton.node.language.config import parse_config
from lepton.node.language.tokenizer import GENERATION, SETTINGS, TOKENIZER, LanguageTokenizer
from lepton.node.programs.program import Program, Value, read_program
from lepton.node.programs.run import Stage, batch_max

MEMORY_BYTES = 3 * 2**30  # more than any of these may take, over what is there already


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """A bomb that goes off fails its test instead of ending the suite."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- chat templates ---------------------------------------------------------------------------------------------------

LONG = "{% set s = 'x' * 4000000 %}"
BOMBS = {
    "numbers": "{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "hidden numbers": "{% set n = ('f' * 100000)|int(base=16) %}{{ n // 3 }}",
    "lists in lists": "{% set n = namespace(x=['x'*999]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "dictionaries": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = {1: n.x, 2: n.x} %}{% endfor %}"
    "{{ n.x }}",
    "tuples": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x }}",
    "kept texts": LONG + "".join(f"{{% set s{i} = s[1:] %}}" for i in range(3000)),
    "kept lists": "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = n.l + ['x' * 4000000] %}"
    "{% endfor %}",
    "a block": LONG + "{% set x %}{% for i in range(100000) %}{{ s }}{% endfor %}{% endset %}",
    "a macro": LONG + "{% macro m() %}{% for i in range(100000) %}{{ s }}{% endfor %}{% endmacro %}{{ m()|length }}",
    "mapped": LONG + "{{ range(100000)|map('default', s, true)|map('string')|list|length }}{% set x = [s] * 1000 %}",
    "many of one": LONG
    + "{% set x = [0]|map('default', s, true)|list %}{{ ([0] * 100000)|map('default', s, true)|list }}",
    "translated": "{{ ('a' * 4000000).translate({97: 'x' * 4000000}) }}",
    "bytes": "{{ (5).to_bytes(9000000000, 'big')|length }}",
    "encoded": "{{ ('a' * 4000000).encode().replace('a'.encode(), ('b' * 4000000).encode())|length }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_makes_much_of_little_is_stopped(name: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        ChatTemplate(BOMBS[name]).render([{"role": "user", "content": "hello"}], prompt=True, named={})


# -- tokenizers and configurations ------------------------------------------------------------------------------------

STRANGE = b'{"normalizer": "\xff", "eos_token": "\xff", "eos_token_id": "\xff", "model_type": "\xff"}'
FILES = (TOKENIZER, SETTINGS, GENERATION)
PLAIN: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
}  # fmt: skip
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a token that there is not": {
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}], "pair": [],
            "special_tokens": {},
        }
    },
    "a broken table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "pieces of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 6}},
    "growth of answers": {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 6}},
    "a pattern in answers": {"decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}},
    "a long token": {"model": {"type": "WordLevel", "vocab": {"a" * 10**6: 0, "[UNK]": 1}, "unk_token": "[UNK]"}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_breaks_the_library_is_an_error_like_others(name: str) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        LanguageTokenizer({TOKENIZER: json.dumps(PLAIN | TOKENIZERS[name]).encode()}).encode("a a a")


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_text_are_an_error_like_others(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        LanguageTokenizer({TOKENIZER: json.dumps(PLAIN).encode(), name: STRANGE})
    with pytest.raises(UsageError):
        parse_config(STRANGE)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e-320},
        {"rope_type": "default", "rope_theta": 5e-324},
    ],
)
def test_rotations_that_cannot_be_worked_out_are_refused_when_the_configuration_is_read(rope: dict[str, Any]) -> None:
    config = {
        "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }  # fmt: skip
    assert parse_config(json.dumps(config)).head_width == 8
    with pytest.raises(UsageError, match="rotary"):
        parse_config(json.dumps(config | {"rope_parameters": rope}))


# -- programs ---------------------------------------------------------------------------------------------------------


def program(*nodes: tuple[str, str, list[Any]], outputs: list[str], **changes: Any) -> Program:
    """One input x (batch, 8); nodes are (name, operation, arguments)."""
    made = [
        {"name": name, "op": op, "args": args, "value": {"dtype": "float32", "shape": [None]}}
        for name, op, args in nodes
    ]
    about = {
        "inputs": {"x": {"dtype": "float32", "shape": ["batch", 8]}}, "tensors": {}, "symbols": {"batch": [1, 16]},
        "nodes": made, "outputs": outputs, "cuts": [],
    }  # fmt: skip
    return read_program(json.dumps(about | changes).encode())


def ref(name: str) -> dict[str, str]:
    return {"is": "value", "name": name}


def several(*items: Any) -> dict[str, Any]:
    return {"is": "list", "items": list(items)}


X = ref("x")
GRU = [X, ref("h"), several(ref("w"), ref("w")), False, 1, 0.0, False, False, True]
SIZE = ("n", "sym_size.int", [X, 1])
FULL = [several(8192, 4096), 1.0]
PROGRAMS: dict[str, list[tuple[str, str, list[Any]]]] = {
    "division by nought": [SIZE, ("y", "operator.floordiv", [ref("n"), 0])],
    "numbers without end": [
        SIZE, *[(f"n{i}", "operator.mul", [ref(f"n{i - 1}" if i else "n")] * 2) for i in range(60)],
    ],
    "a long text": [("y", "operator.mul", ["x" * 1000, 10**9])],
    "a long list": [("y", "operator.mul", [several(*range(1000)), 10**9])],
    "a list that doubles": [("y", "operator.add", [several(1), several(1)])],
    "many parts": [("f", "full.default", [several(10**6), 1.0]), ("y", "unbind.int", [ref("f")])],
    "many pieces": [("f", "full.default", [several(10**6), 1.0]), ("y", "split.Tensor", [ref("f"), 1])],
    "many alive": [
        *[(f"f{i}", "full.default", FULL) for i in range(40)],
        ("y", "stack.default", [several(*(ref(f"f{i}") for i in range(40)))]),
    ],
    "scores": [
        ("q", "full.default", [several(1, 1, 100_000, 8), 1.0]),
        ("y", "scaled_dot_product_attention.default", [ref("q")] * 3),
    ],
    "values behind the end": [
        ("q", "full.default", [several(1, 1, 64, 8), 1.0]), ("v", "full.default", [several(1, 1, 1, 8), 1.0]),
        ("y", "scaled_dot_product_attention.default", [ref("q"), ref("q"), ref("v")]),
    ],
    "norms behind the end": [
        ("s", "full.default", [several(1), 1.0]),
        ("y", "_native_batch_norm_legit_no_training.default", [X, *[ref("s")] * 4, 0.1, 1e-5]),
    ],
    "gates that are not there": [
        ("i", "unsqueeze.default", [X, 0]), ("h", "full.default", [several(1, 1, 5), 1.0]),
        ("w", "full.default", [several(2, 8), 1.0]),
        ("y", "gru.input", [ref("i"), ref("h"), *GRU[2:]]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_would_take_all_or_crash_is_refused_before_it_is_run(name: str) -> None:
    nodes = PROGRAMS[name]
    with pytest.raises(UsageError):
        batch_max(program(*nodes, outputs=[nodes[-1][0]]))


def test_a_program_cannot_give_a_weight_as_what_it_computed() -> None:
    weight = {"stored": "w", "dtype": "float32", "shape": [1]}
    with pytest.raises(UsageError, match="cannot be cut"):
        program(("y", "relu.default", [X]), outputs=["w"], tensors={"w": weight})


def test_what_another_stage_sends_is_tried_without_numbers_first() -> None:
    nodes: list[tuple[str, str, list[Any]]] = [
        ("n", "sym_size.int", [X, 1]),
        ("z", "relu.default", [X]),
        ("y", "full.default", [several(ref("n"), ref("n")), 1.0]),
    ]
    whole = program(*nodes, outputs=["y"])
    value = Value(dtype="int64", shape=None)
    cut = msgspec.structs.replace(
        whole, nodes=(msgspec.structs.replace(whole.nodes[0], value=value), *whole.nodes[1:]), cuts=(2,)
    )
    part = ProgramPart(Stage(cut, 1, 2, {}))
    assert part.run([torch.tensor(8).numpy()])[0].shape == (8, 8)
    with pytest.raises(LeptonError):
        part.run([torch.tensor(10**5).numpy()])
