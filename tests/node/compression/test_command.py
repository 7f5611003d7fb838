"""`lepton-node compress` makes a folder, says what that changed, and refuses what it cannot do in a sentence."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from lepton.mesh.errors import UsageError
from lepton.node.__main__ import main
from lepton.node.compression.comparing import compared
from lepton.node.compression.manifest import read_manifest
from lepton.node.compression.measured import perplexity
from lepton.node.language.engine import load_engine
from lepton.node.language.folder import read_config, read_layers
from lepton.node.language.layout import layers
from torch.nn import functional as F

from .folders import STORIES, engine_of, logits_of, made, trained


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["compress", *map(str, words)])


def numbers(line: str) -> list[float]:
    return [float(word.replace(",", "")) for word in line.replace("%", "").split() if word[-1].isdigit()]


def line_of(result: Result, name: str) -> Sequence[float]:
    (line,) = (line for line in result.output.splitlines() if line.strip().startswith(name))
    return numbers(line)


def test_a_folder_is_made_beside_the_first_and_the_difference_is_said(tmp_path: Path) -> None:
    made(tmp_path / "model", "llama")
    result = run(tmp_path / "model", "--to", "int8", "--steps", "1")
    assert result.exit_code == 0, result.output
    before, after, change = line_of(result, "size, MB")
    assert after < 0.5 * before
    assert change < -50
    old, new, _ = line_of(result, "perplexity")
    assert abs(new / old - 1) < 0.05
    assert "texts that the model wrote" in result.output
    assert read_manifest(tmp_path / "model-int8").quantised[0].bits == 8
    assert f"serve {tmp_path / 'model-int8'}" in result.output.replace("\n", "")


def test_mistakes_are_said_in_a_sentence(tmp_path: Path) -> None:
    made(tmp_path / "model", "llama")
    (tmp_path / "text").write_bytes(b"\xff")
    for words, said in (
        ((tmp_path / "nowhere",), "is not there"),
        ((tmp_path / "model", "--data", tmp_path / "nowhere"), "cannot be read as text"),
        ((tmp_path / "model", "--data", tmp_path / "text"), "cannot be read as text"),
        ((tmp_path / "model", "--out", tmp_path), "is in use"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert said in result.output
        assert "Errno" not in result.output
        assert "Calibrating" not in result.output  # it takes minutes, and comes to nothing


@trained
def test_nothing_is_measured_on_what_was_calibrated_on(tmp_path: Path) -> None:
    text = (STORIES / "tinystories_sample.txt").read_text()
    before, after, measured_on = compared(STORIES / "hf", tmp_path / "small", bits=8, text=text, steps=0)
    assert "last fifth" in measured_on
    assert before.perplexity < after.perplexity < 1.01 * before.perplexity
    assert (
        read_manifest(tmp_path / "small").quantised[0].calibration
        == "a given text, and 27 that the model wrote, seed 0"
    )
    with pytest.raises(UsageError, match="last fifth"):
        compared(STORIES / "hf", tmp_path / "other", bits=8, text="Once upon a time")


def test_perplexity_is_that_of_each_token_by_those_before_it(tmp_path: Path) -> None:
    config = made(tmp_path / "model", "qwen3")
    engine = load_engine(config, 0, layers(config), read_layers(tmp_path / "model", read_config(tmp_path / "model")))
    texts = [[3, 4, 5, 6, 7], [9, 8, 7]]
    logits = [logits_of(engine_of(tmp_path / "model", "float32"), text)[:-1] for text in texts]
    wanted = torch.tensor([token for text in texts for token in text[1:]])
    assert perplexity(engine, texts) == pytest.approx(float(F.cross_entropy(torch.cat(logits), wanted).exp()), rel=1e-4)
