"""What `serve` and `generate` print: sizes, who holds what, what is lacking; text in its line and pauses beside it."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lepton.node import serving_commands
from lepton.node.deployed import described
from lepton.node.deployments import BlobRef, DeploymentRecord
from lepton.node.placement import Plan

RECORD = DeploymentRecord(
    version=1, kind="causal_lm", manifest=BlobRef(digest="ab" * 32, size_bytes=1), weights_bytes=(1000, 2_000_000),
    cache_bytes=(0, 10), replicas=2, sessions=3, positions=100,
)  # fmt: skip
PLAN = Plan(stages=((0, 1), (1, 2)), assigned={"k" * 9: (0, 1), "d" * 9: (1, 2), "e" * 9: (1, 2)}, tokens_per_s=12.345)


def run(monkeypatch: pytest.MonkeyPatch, steps: list[Any], result: Any, *words: str) -> Any:
    """Run a command against a node that says this."""

    def ask(_home: Path, _command: str, _arguments: Any, *, on_progress: Any) -> tuple[Any, Any]:
        for step in steps:
            on_progress(step)
        return result, ()

    monkeypatch.setattr(serving_commands, "ask", ask)
    name, *rest = words
    return CliRunner().invoke(getattr(serving_commands, name), rest)


def test_what_will_be_served_is_shown_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    offer = described("tales", RECORD, PLAN, {"k" * 9: "kitchen", "d" * 9: "desk"}, {})
    loading = described("tales", RECORD, PLAN, {}, {(1, 2): ["d" * 9]}) | {"trouble": ""}
    steps = [{"reading": "x"}, {"offer": offer}, {"loading": loading}, {"loading": loading}]
    result = {"name": "tales", "kind": "causal_lm", "url": "http://127.0.0.1:7533/v1"}
    shown = run(monkeypatch, steps, result, "serve", "org/tales")
    assert shown.output.splitlines() == [
        "Reading x ...",
        "tales: 2 layers, 2.0 MB as float32; 3.0 kB for 3 sessions of 100 tokens",
        "  layers 0 to 0         1.0 kB  kitchen",
        "  layers 1 to 1         2.0 MB  desk, eeeeeeee",
        "Only 1 of 2 copies for now: the others wait for more devices or memory.",
        "Expected: 12 tokens/s for one session.",
        "Loaded on 1 of 3 devices.",
        "Served. Ask it: lepton-node generate tales 'Once upon a time'",
        "Programs find it under OpenAI's interface at http://127.0.0.1:7533/v1 as 'tales'.",
    ]


def test_a_file_is_not_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    shown = run(monkeypatch, [], {}, "serve", str(tmp_path / "config.json"))
    assert shown.exit_code == 2
    assert "is a file; name the folder that holds it" in shown.output


def test_text_is_written_as_it_comes_and_pauses_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [{"text": "Once", "pause": ""}, {"text": "", "pause": "desk left"}, {"text": " upon", "pause": ""}]
    shown = run(monkeypatch, steps, {}, "generate", "tales", "x")
    assert shown.stdout == "Once\n upon\n"
    assert shown.stderr == "[desk left]\n"


def test_a_system_prompt_is_part_of_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, [], {}, "generate", "tales", "x", "--system", "y")
    assert shown.exit_code == 2
    assert "--system is part of a conversation: say --chat too" in shown.output
