"""A student learns what a teacher says, with labels or without, from its outputs and its hidden layers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trio
from lepton.mesh.errors import UsageError
from lepton.node import digits
from lepton.node.compression import Fit, answers_from, distil, distil_from_mesh
from lepton.node.compression.decoder import Decoder
from lepton.node.compression.fitting import fit
from lepton.node.compression.manifest import Distilled, Manifest, read_manifest, write_manifest
from lepton.node.compression.students import Shape, shorter, student_of
from lepton.node.language.config import parse_config
from lepton.node.learning.allowed import Factories
from lepton.node.learning.losses import logits_from, loss_of, taught_loss
from lepton.node.models import build
from lepton.node.objective import Objective
from lepton.node.shapes import ModelSpec
from torch import Tensor, nn

DIGITS = digits()
assert DIGITS.x_test is not None
assert DIGITS.y_test is not None
X, Y = torch.from_numpy(DIGITS.x), torch.from_numpy(DIGITS.y)
X_TEST, Y_TEST = torch.from_numpy(DIGITS.x_test), torch.from_numpy(DIGITS.y_test)
SMALL = "mlp:hidden=8,hidden_activation=relu"
CONFIG = (
    '{"model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, '
    '"num_attention_heads": 2, "tie_word_embeddings": true}'
)


def labels_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return loss_of("cross_entropy", module(batch[0]), batch[1])


def accuracy(module: nn.Module) -> float:
    with torch.inference_mode():
        return float((module(X_TEST).argmax(1) == Y_TEST).float().mean())


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    module = build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=128, hidden_activation="relu"))
    fit(module, (X, Y), labels_loss, Fit(steps=400, rate=1e-2))
    assert accuracy(module) > 0.96
    return module


def decoder() -> Decoder:
    torch.manual_seed(5)
    return Decoder(parse_config(CONFIG)).eval()


@pytest.mark.parametrize("objective", ["cross_entropy", "binary_cross_entropy", "mse"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_nothing_is_lost_against_an_equal_teacher_nor_between_its_outputs_and_its_answers(
    objective: Objective, temperature: float
) -> None:
    made = torch.Generator().manual_seed(1)
    student, outputs = (torch.randn(6, 3, 5, generator=made) for _ in range(2))
    answer: Callable[[Tensor], Tensor] = {
        "cross_entropy": lambda z: z.softmax(-1), "binary_cross_entropy": torch.sigmoid, "mse": lambda z: z,
    }[objective]  # fmt: skip
    assert float(taught_loss(objective, outputs, outputs, temperature)) == pytest.approx(0, abs=1e-6)
    wanted = taught_loss(objective, student, outputs, temperature)
    assert float(wanted) > 0.1
    found = taught_loss(objective, student, logits_from(objective, answer(outputs)), temperature)
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


def test_the_loss_is_hintons() -> None:
    """T^2 KL(softmax(v/T) || softmax(z/T)), whose gradient is T (softmax(z/T) - softmax(v/T)) / rows."""
    z, v = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True), torch.tensor([[0.0, 3.0, 1.0]])
    taught_loss("cross_entropy", z, v, 5.0).backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, 5 * ((z / 5).softmax(1) - (v / 5).softmax(1)).detach())


def test_answers_that_became_nought_are_finite() -> None:
    assert torch.isfinite(logits_from("cross_entropy", torch.tensor([[1.0, 0.0]]))).all()
    assert torch.isfinite(logits_from("binary_cross_entropy", torch.tensor([[1.0, 0.0]]))).all()


def test_without_a_label_a_student_learns_more_than_from_few(teacher: nn.Module) -> None:
    few = build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=8, hidden_activation="relu"))
    fit(few, (X[:50], Y[:50]), labels_loss, Fit(steps=400, rate=1e-2))
    said = Fit(steps=400, rate=1e-2)
    taught = distil(teacher, SMALL, X, fit=said)
    assert accuracy(taught.module) > max(accuracy(few) + 0.08, 0.9)
    assert len(taught.losses) == 400
    assert taught.step == Distilled(student=SMALL, teacher="Chain", temperature=2.0, fitted_steps=400)
    labels = torch.full((len(X),), -1)
    labels[:50] = Y[:50]
    both = distil(teacher, SMALL, X, labels=labels, labels_weight=0.3, fit=said)
    assert accuracy(both.module) > 0.9
    assert both.step.labels == 0.3


def test_labels_alone_are_plain_training(teacher: nn.Module) -> None:
    begin = build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=8, hidden_activation="relu"))
    taught = distil(teacher, begin, X, labels=Y, labels_weight=1.0, fit=Fit(steps=20))
    fit(begin, (X, Y), labels_loss, Fit(steps=20))
    for found, wanted in zip(taught.module.parameters(), begin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


async def test_answers_teach_as_the_teacher_itself(teacher: nn.Module) -> None:
    """From memory, from a function asked at each step, and from something that is elsewhere and answers shares."""
    asked: list[int] = []

    async def elsewhere(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        asked.append(len(x))
        with torch.inference_mode():
            answers: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = teacher(x).softmax(1).numpy()
        return answers

    said = Fit(steps=20, batch_size=8)  # fewer rows than there are, so that a teacher here is asked step by step
    answers = logits_from("cross_entropy", await answers_from(elsewhere, X, rows=1000))
    assert asked == [1000, len(X) - 1000]
    modules = [distil(each, SMALL, X, fit=said).module for each in (teacher, teacher.__call__, answers)]
    for other in modules[1:]:
        for found, wanted in zip(other.parameters(), modules[0].parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_hidden_layers_are_taught_through_a_projection_that_is_thrown_away(teacher: nn.Module) -> None:
    begin = student_of("mlp:hidden=8", teacher=teacher)  # sigmoid units, which do not die
    before = {name: tensor.clone() for name, tensor in begin.state_dict().items()}
    said = Fit(steps=400, rate=1e-2)
    taught = distil(teacher, begin, X, features=[("layers.0", "layers.0")], features_weight=30, fit=said)
    assert taught.module.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in begin.state_dict().items())
    plain = distil(teacher, begin, X, fit=said)
    assert explained(taught.module, teacher) > explained(plain.module, teacher) + 0.05
    assert accuracy(taught.module) > accuracy(plain.module) + 0.03
    assert taught.step.features == 30
    again = distil(teacher, begin, X, features=[("layers.0", "layers.0")], features_weight=30, fit=said)
    assert again.losses == taught.losses


def explained(student: nn.Module, teacher: nn.Module) -> float:
    """How much of the teacher's hidden numbers a linear function of the student's gives."""
    with torch.inference_mode():
        own, theirs = (part.get_submodule("layers.0")(X_TEST) for part in (student, teacher))
    own = torch.cat((own, torch.ones(len(own), 1)), dim=1)
    missed = theirs - own @ torch.linalg.lstsq(own, theirs, driver="gelsd").solution
    return 1 - float(missed.square().sum() / (theirs - theirs.mean(0)).square().sum())


def test_images_of_other_sizes_and_channels_are_compared() -> None:
    torch.manual_seed(2)
    x = torch.rand(40, 1, 8, 8)
    large = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 3))
    small = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    large.train()
    taught = distil(large, small, x, features=[("1", "1")], fit=Fit(steps=30, rate=1e-2))
    assert taught.losses[-1] < 0.8 * taught.losses[0]
    assert large.training
    with pytest.raises(UsageError, match=r"Layers of \(2, 4, 4, 4\) and \(2, 768\) cannot be compared"):
        distil(large, small, x, features=[("2", "1")])
    with pytest.raises(UsageError, match="The student has no layer '9'; it has 0, 1, 2, 3"):
        distil(large, small, x, features=[("1", "9")])
    assert not any(layer._forward_hooks for layer in large)


def test_a_language_model_teaches_one_of_some_of_its_own_layers() -> None:
    teacher, tokens = decoder(), torch.randint(0, 40, (32, 12), generator=torch.Generator().manual_seed(3))
    same = shorter(teacher)
    torch.testing.assert_close(same(tokens), teacher(tokens))
    student = student_of("layers=2,inner=16", teacher=teacher)
    assert isinstance(student, Decoder)
    assert (student.config.blocks, student.config.inner) == (2, 16)
    theirs, own = teacher.state_dict(), student.state_dict()
    for place, block in ((0, 0), (1, 3)):
        name = "model.layers.{}.self_attn.q_proj.weight"
        assert torch.equal(own[name.format(place)], theirs[name.format(block)])
    assert torch.equal(own["lm_head.weight"], own["model.embed_tokens.weight"])
    taught = distil(teacher, "layers=2,inner=16", tokens, fit=Fit(steps=30, batch_size=8), temperature=1.0)
    assert taught.losses[-1] < 0.5 * taught.losses[0]
    for wrong, why in {
        "layers=9": "has 4 layers",
        "layers=0": "has 4 layers",
        "inner=25": "has 24 inner units",
    }.items():
        with pytest.raises(UsageError, match=why):
            student_of(wrong, teacher=teacher)


def small_student() -> nn.Module:
    return nn.Linear(64, 10)


def test_students_are_made_by_name_and_functions_only_where_their_owner_allows_it() -> None:
    name, shape = f"{__name__}:small_student", Shape((64,), 10)
    with pytest.raises(UsageError, match="this node does not have the model"):
        student_of("os:getcwd", shape)
    allowed = Factories([name])
    allowed._made[name] = small_student
    assert isinstance(student_of(name, shape, factories=allowed), nn.Linear)
    assert isinstance(student_of("cnn:hidden=8", shape), nn.Module)
    for wrong, why in {
        "mlp:width=3": "'width=3' is not understood; it has hidden, hidden_activation, seed",
        "mlp:hidden=0": "cannot be",
        "layers=x": "is no whole number",
        "forest": "names no student",
        "lstm": "takes samples",
    }.items():
        with pytest.raises(UsageError, match=why):
            student_of(wrong, shape, teacher=decoder())
    with pytest.raises(UsageError, match="this teacher is none"):
        student_of("layers=2", shape)


def test_what_does_not_go_together_is_said(teacher: nn.Module) -> None:
    with pytest.raises(UsageError, match="answers are of 3 rows, the data have"):
        distil(torch.zeros(3, 10), SMALL, X)
    with pytest.raises(UsageError, match=r"The student gives \(64, 9\) where the teacher gives"):
        distil(teacher, nn.Linear(64, 9), X)
    with pytest.raises(UsageError, match="only be taught by a module"):
        distil(torch.zeros(len(X), 10), SMALL, X, features=[("layers.0", "layers.0")])
    with pytest.raises(UsageError, match="temperature=0"):
        distil(teacher, SMALL, X, temperature=0)
    with pytest.raises(UsageError, match="one tensor"):
        distil(lambda x: (x, x), SMALL, X)  # type: ignore[arg-type, return-value]


def test_the_step_is_written_down(tmp_path: Path) -> None:
    step = Distilled(student=SMALL, teacher="mesh:large", temperature=2.0, fitted_steps=3, labels=0.1, features=1.0)
    write_manifest(tmp_path, Manifest(steps=(step,), size_bytes_before=9, size_bytes=1))
    assert read_manifest(tmp_path).steps == (step,)


def test_a_student_of_the_mesh_may_be_a_function_that_the_nodes_owner_allows() -> None:
    async def predict_all(_: str, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [x[:, :10]]

    name = f"{__name__}:small_student"
    allowed = Factories([name])
    allowed._made[name] = small_student
    view = SimpleNamespace(models=dict, deployments=dict)
    node: Any = SimpleNamespace(view=view, factories=allowed, predict_all=predict_all)
    teach = partial(distil_from_mesh, node, "program", name, X[:50], fit=Fit(steps=1))
    assert isinstance(trio.run(teach).module, nn.Linear)
    node.factories = Factories(())
    with pytest.raises(UsageError, match="its owner allows it"):
        trio.run(teach)
