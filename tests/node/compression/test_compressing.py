"""A trained model goes in with what is asked of it; out comes one that is so, and is served as it was measured."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from lepton.mesh.errors import UsageError
from lepton.node.__main__ import main
from lepton.node.blobs.layers import layer_blob
from lepton.node.compression import compress, quantise
from lepton.node.compression.contents import tensors_of
from lepton.node.compression.fitting import Fit, fit
from lepton.node.compression.manifest import Trained, read_manifest
from lepton.node.compression.search.compressing import TargetMissed
from lepton.node.compression.search.networks import Network
from lepton.node.compression.search.recipes import Distil, Prune, Recipe, Round
from lepton.node.compression.served import packed, save_served
from lepton.node.export import save_model
from lepton.node.learning.data import Dataset, digits
from lepton.node.models import Chain, build, layer_tensors
from lepton.node.objective import Objective
from lepton.node.programs.folder import layer_bytes, open_folder
from lepton.node.programs.run import Stage
from lepton.node.shapes import ModelSpec
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import Mixed

INT8: Recipe = (Round(bits=8),)
INT4: Recipe = (Round(bits=4),)
TRAINED: Recipe = (Round(bits=4, trained=True),)
NARROW: Recipe = (Prune(kind="channels", share=0.5), Round(bits=4))
PRUNED: Recipe = (Prune(kind="global", share=0.9), Round(bits=8))
TAUGHT: Recipe = (Distil(student="mlp:hidden=4", share=0.1), Round(bits=8))


@cache
def data() -> Dataset:
    return digits()


@cache
def classifier() -> Chain:
    chain = build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=48))
    x, y = torch.from_numpy(data().x), torch.from_numpy(data().y)
    fit(chain, (x, y), lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]), Fit(steps=300, rate=1e-2))
    return chain.eval()


def exported(path: Path) -> Path:
    chain = classifier()
    save_model(path, msgspec.to_builtins(chain.spec), [layer_blob(layer_tensors(chain, at)) for at in range(2)])
    return path


def zeros(module: nn.Module) -> float:
    """The share of zeros in a chain's first matrix."""
    return float((packed(module)["layers.0.weight"].dense() == 0).float().mean())


def answered(folder: Path, *inputs: Tensor) -> Tensor:
    """What a node that serves a folder answers."""
    found = open_folder(folder)
    stage = Stage(found.program, 0, found.program.layers, load_file(folder / "model.safetensors"))
    assert stage.weights_bytes <= sum(layer_bytes(found.program))  # as the record says: what is tied counts twice there
    parts = zip(*(each.split(100) for each in inputs), strict=True)
    return torch.cat([stage.run(part)[0].clone() for part in parts])


def test_a_classifier_becomes_as_small_as_asked_and_answers_as_it_was_measured(tmp_path: Path) -> None:
    recipes = (INT8, INT4, TRAINED, NARROW, PRUNED, TAUGHT)
    found = compress(
        classifier(), target="accuracy=-1.5", data=data(), out=tmp_path / "small", recipes=recipes, steps=60
    )
    assert found.outcome.picked is not None
    assert found.outcome.picked.figures is not None
    taken = found.outcome.picked.figures
    assert taken.size_bytes == (tmp_path / "small/model.safetensors").stat().st_size
    assert taken.size_bytes < 0.25 * found.outcome.before.size_bytes
    assert taken.lost <= 1.5
    x = torch.from_numpy(data().x_test)
    answers = answered(tmp_path / "small", x)
    assert isinstance(found.module, Chain)
    torch.testing.assert_close(answers, found.module.probabilities(x))
    right = float((answers.argmax(1) == torch.from_numpy(data().y_test)).float().mean())
    assert 100 * right == pytest.approx(taken.quality)
    manifest = read_manifest(tmp_path / "small")
    assert manifest.figures["accuracy"] == pytest.approx(taken.quality)
    assert manifest.size_bytes == taken.size_bytes


def test_each_kind_of_step_is_done_and_written_down() -> None:
    network = Network(classifier(), data(), recipes=(INT4, TRAINED, NARROW, PRUNED, TAUGHT), training=Fit(steps=40))
    made = {recipe: network.make(recipe) for recipe in network.recipes()}
    assert [[type(step).__name__ for step in each.manifest.steps] for each in made.values()] == [
        ["Quantised"], ["Trained", "Quantised"], ["Pruned", "Quantised"], ["Pruned", "Quantised"],
        ["Distilled", "Quantised"],
    ]  # fmt: skip
    assert made[TRAINED].manifest.steps[0] == Trained(bits=4, fitted_steps=40)
    assert 0.8 < zeros(made[PRUNED].module) < 1
    assert packed(made[NARROW].module)["layers.0.weight"].shape == (24, 64)
    assert made[TAUGHT].manifest.size_bytes < made[PRUNED].manifest.size_bytes < made[INT4].manifest.size_bytes
    pruned_and_trained = network.make((PRUNED[0], Round(bits=8, trained=True)))
    assert zeros(pruned_and_trained.module) > 0.8  # they stay while it is trained


def test_nothing_is_learned_from_what_is_measured_on_and_equal_seeds_give_equal_models() -> None:
    known = data()
    assert known.x_test is not None
    other = replace(known, x_test=np.flip(known.x_test, 1).copy(), y_test=np.zeros(len(known.x_test), np.int64))
    made = [
        Network(classifier(), each, recipes=(TRAINED,), training=Fit(steps=10, seed=seed)).make((PRUNED[0], *TRAINED))
        for each, seed in ((known, 0), (other, 0), (known, 1))
    ]
    same, moved, drawn = (tensors_of(each.module) for each in made)
    assert same.keys() == moved.keys()
    assert all(torch.equal(same[name], moved[name]) for name in same)
    assert not all(torch.equal(same[name], drawn[name]) for name in same if name in drawn)


def test_where_no_candidate_is_as_asked_nothing_is_written_and_the_nearest_are_named(tmp_path: Path) -> None:
    with pytest.raises(TargetMissed, match=r"The nearest: int4 \(.*misses size") as missed:
        compress(
            classifier(), target="size=2kB", data=data(), out=tmp_path / "small", recipes=(INT8, INT4), seed=1,
            keep_best=False,
        )  # fmt: skip
    assert not (tmp_path / "small").exists()
    assert [bool(each.figures) for each in missed.value.found.outcome.tried] == [False, True]  # int8 never is so small
    found = compress(
        classifier(), target="size=2kB", data=data(), out=tmp_path / "small", recipes=(INT8, INT4), keep_best=True
    )
    assert found.outcome.picked is None
    assert read_manifest(tmp_path / "small").quantised[0].bits == 4
    with pytest.raises(UsageError, match="is in use"):
        compress(classifier(), target="size=2kB", data=data(), out=tmp_path / "small")


@pytest.mark.parametrize("architecture", ["cnn", "lstm"])
@pytest.mark.parametrize("objective", ["cross_entropy", "mse", "binary_cross_entropy"])
def test_chains_are_served_as_they_answer(tmp_path: Path, architecture: str, objective: Objective) -> None:
    fields = {"architecture": architecture, "inputs": (8, 8), "classes": 3, "hidden": 24, "objective": objective}
    chain = build(msgspec.convert(fields, ModelSpec))
    x = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1))
    small = quantise(chain, bits=4, data=x, error_max=1.0)
    save_served(small, x[:2], tmp_path / "small", objective=objective)
    assert isinstance(small.module, Chain)
    torch.testing.assert_close(answered(tmp_path / "small", x), small.module.probabilities(x))
    assert open_folder(tmp_path / "small").description.objective == objective


def test_any_module_is_served_with_what_is_tied_stored_once(tmp_path: Path) -> None:
    module = Mixed(tied=True).eval()
    tokens = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(2))
    small = quantise(module, bits=8, data=tokens, error_max=1.0)
    save_served(small, tokens[:2], tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(answered(tmp_path / "small", tokens), small.module(tokens))
    names = load_file(tmp_path / "small/model.safetensors").keys()
    assert not any(name.startswith("out.weight") for name in names)


def test_a_damaged_weight_is_refused_in_a_sentence(tmp_path: Path) -> None:
    small = quantise(classifier(), bits=8, error_max=1.0)
    save_served(small, torch.zeros(2, 64), tmp_path / "small")
    program, tensors = open_folder(tmp_path / "small").program, load_file(tmp_path / "small/model.safetensors")
    name = next(each for each in tensors if each.startswith("layers.0.weight") and "scale" not in each)
    missing = {each: tensor for each, tensor in tensors.items() if each != name}
    for wrong, why in (
        (missing, "is not there"),
        ({**missing, "layers.0.weight": torch.zeros(48, 32, dtype=torch.uint8)}, "rounded"),
        ({**missing, "layers.0.weight_coded": torch.zeros(9, dtype=torch.uint8)}, "damaged"),
        ({**missing, "layers.0.weight": torch.zeros(48, 64)}, "int8 or uint8"),
    ):
        with pytest.raises(UsageError, match=why):
            Stage(program, 0, program.layers, wrong)


def test_data_and_models_that_do_not_go_together_are_said_so() -> None:
    known = data()
    for model, given, why in (
        (classifier(), None, "measured on data"),
        (classifier(), (known.x[:, :50], known.y), "takes samples of"),
        (nn.Linear(64, 3), known, "has 3 classes"),
        (nn.Flatten(0), known, "are understood"),
        (nn.Linear(60, 10), known, "does not take"),
    ):
        with pytest.raises(UsageError, match=why):
            compress(model, target="size=0.5x", data=given)
    with pytest.raises(UsageError, match="not of perplexity"):
        compress(classifier(), target="perplexity=+1%", data=known)


def test_what_could_not_be_served_is_refused_before_the_search(tmp_path: Path) -> None:
    class Undecided(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) if input.sum() > 0 else super().forward(-input)

    with pytest.raises(UsageError, match="cannot trace"):
        compress(
            Undecided(64, 10), target="size=0.5x", data=data(), out=tmp_path / "small",
            on_tried=lambda each: pytest.fail(str(each)),
        )  # fmt: skip


def test_what_is_saved_is_as_quick_as_was_said_when_a_node_runs_it(tmp_path: Path) -> None:
    for out in (None, tmp_path / "small"):
        with mock.patch.object(Stage, "run", autospec=True, side_effect=Stage.run) as ran:
            compress(classifier(), target="accuracy=-5", data=data(), out=out, recipes=(INT8,))
        assert ran.called == (out is not None)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["compress", *map(str, words)])


def test_the_command_prints_all_candidates_takes_one_and_says_how_to_serve_it(tmp_path: Path) -> None:
    known = data()
    assert known.x_test is not None
    assert known.y_test is not None
    np.savez(tmp_path / "digits.npz", x=known.x, y=known.y, x_test=known.x_test, y_test=known.y_test)
    model = exported(tmp_path / "digits.safetensors")
    words: list[str | Path] = [
        model,
        "--data",
        tmp_path / "digits.npz",
        "--candidates",
        "2",
        "--plot",
        tmp_path / "front.png",
    ]
    result = run(*words, "--target", "size=0.5x", "--target", "accuracy=-5")
    assert result.exit_code == 0, result.output
    assert " > " in result.output
    assert "359 samples of the data's test part, each of which is 0.28 points" in result.output.replace("\n", " ")
    assert f"serve {tmp_path / 'digits-small'}" in result.output.replace("\n", "")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert read_manifest(tmp_path / "digits-small").quantised[0].bits == 4
    result = run(*words, "--target", "size=1kB", "--out", tmp_path / "other")
    assert result.exit_code == 1, result.output
    assert "No candidate keeps the targets (at most 1,000 bytes)" in result.output.replace("\n", " ")
    assert not (tmp_path / "other").exists()
    for more, said in (
        (("--target", "size=0.5x", "--to", "int8"), "one of them"),
        (("--target", "speed=2x"), "is no target"),
        (("--target", "size=0.5x", "--plot", tmp_path / "front.gif"), "name a .png"),
        (("--target", "size=0.5x", "--out", tmp_path), "is in use"),
        (("--target", "size=0.5x", "--steps", "-1"), "not in the range"),
    ):
        result = run(model, "--data", tmp_path / "digits.npz", *more)
        assert (result.exit_code, said in result.output) == (2, True), result.output
    save_file({"w": torch.zeros(2)}, tmp_path / "strange.safetensors")
    assert "is not a model" in run(tmp_path / "strange.safetensors", "--target", "size=0.5x").output
