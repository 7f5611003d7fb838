"""The search over a language model's folder: candidates are folders, and the one taken is served as it is."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from lepton.mesh.errors import UsageError
from lepton.node.__main__ import main
from lepton.node.compression import TargetMissed, compress, read_manifest
from lepton.node.compression.comparing import engine_of
from lepton.node.compression.search import languages
from lepton.node.compression.search.languages import parameters_of, precision_of, recipes_for
from lepton.node.compression.search.recipes import Distil, Recipe, Round
from lepton.node.language.folder import read_config
from lepton.node.language.layout import layer_shapes, layers

from .folders import made

INT8: Recipe = (Round(bits=8),)
STUDENT: Recipe = (Distil(student="layers=1,inner=40", share=0.5), Round(bits=4))


def test_a_folder_is_searched_and_the_one_taken_is_moved_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "_WRITTEN", 8)  # texts to learn from, which take their time
    made(tmp_path / "model", "llama")
    found = compress(
        tmp_path / "model", target="size=0.2x", out=tmp_path / "small", recipes=(INT8, STUDENT), steps=2, seed=3
    )
    assert [each.why for each in found.outcome.tried] == ["", ""]
    assert found.outcome.picked is not None
    assert found.outcome.picked.recipe == STUDENT
    manifest = read_manifest(tmp_path / "small")
    assert [type(step).__name__ for step in manifest.steps] == ["Distilled", "Quantised"]
    assert manifest.size_bytes == (tmp_path / "small/model.safetensors").stat().st_size
    assert manifest.size_bytes_before == (tmp_path / "model/model.safetensors").stat().st_size
    assert manifest.figures["perplexity"] > 0
    config = read_config(tmp_path / "small")
    assert (config.blocks, config.inner) == (1, 40)
    assert json.loads((tmp_path / "small/config.json").read_text())["quantization_config"]["bits"] == 4
    assert engine_of(tmp_path / "small", "int4").vocabulary == 70
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]  # nothing half made is left


def test_a_target_that_no_folder_keeps_leaves_nothing_behind(tmp_path: Path) -> None:
    made(tmp_path / "model", "qwen2")
    with pytest.raises(TargetMissed, match=r"nearest: int8 \([0-9,]+ bytes.*perplexity"):
        compress(tmp_path / "model", target="size=0.26x", out=tmp_path / "small", recipes=(INT8,))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(UsageError, match="not of accuracy"):
        compress(tmp_path / "model", target="accuracy=-1", out=tmp_path / "small")
    with pytest.raises(UsageError, match="name one"):
        compress(tmp_path / "model", target="size=0.5x")


def test_what_is_tried_follows_from_the_size_of_the_model(tmp_path: Path) -> None:
    config = made(tmp_path / "model", "llama")
    counted = sum(math.prod(shape) for at in range(layers(config)) for shape in layer_shapes(config, at).values())
    assert parameters_of(config, config.blocks, config.inner) == counted
    assert parameters_of(config, 1, config.inner) < counted
    assert precision_of(tmp_path / "model", config) == "float32"
    assert recipes_for(config)[:2] == (INT8, (Round(bits=4),))
    assert len(recipes_for(config)) > 2


def test_the_command_takes_a_folder_and_a_target(tmp_path: Path) -> None:
    made(tmp_path / "model", "mistral")
    words = ["compress", str(tmp_path / "model"), "--target", "size=0.5x", "--candidates", "1", "--steps", "1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert " > " in result.output
    assert "texts that the model wrote" in result.output
    assert read_manifest(tmp_path / "model-small").quantised[0].bits == 8
