"""What a node's model learns from: labels, a teacher's word, or both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import digits, unlabelled
from lepton.node.learning.lessons import Lesson
from lepton.node.learning.losses import loss_of, taught_loss
from lepton.node.learning.settings import Distil, TrainSettings
from lepton.node.learning.trainer import Trainer, train_alone
from lepton.node.models import build
from lepton.node.shapes import ModelSpec

DIGITS = digits()
SPEC = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=16)
MODEL = build(SPEC)
TAUGHT = np.random.default_rng(0).standard_normal((len(DIGITS.x), 10)).astype(np.float32)
BATCH = torch.arange(32)


def lost(labels: float, y: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    dataset = replace(DIGITS, y=y, taught=TAUGHT)
    return float(Lesson(SPEC, dataset, Distil(teacher="t", temperature=2.0, labels=labels)).loss(MODEL, BATCH).detach())


def test_labels_and_a_teachers_word_have_their_weights_and_missing_labels_none() -> None:
    y = DIGITS.y.astype(np.int64)
    outputs = MODEL(torch.from_numpy(DIGITS.x[:32])).detach()
    by_teacher = float(taught_loss("cross_entropy", outputs, torch.from_numpy(TAUGHT[:32]), 2.0))
    by_labels = float(loss_of("cross_entropy", outputs, torch.from_numpy(y[:32])))
    assert lost(0.0, y) == pytest.approx(by_teacher)
    assert lost(0.25, y) == pytest.approx(0.75 * by_teacher + 0.25 * by_labels)
    assert lost(0.0, np.full_like(y, -1)) == pytest.approx(by_teacher)
    assert lost(0.25, np.full_like(y, -1)) == pytest.approx(0.75 * by_teacher)
    some = np.where(np.arange(len(y)) < 8, y, -1)
    of_those = float(loss_of("cross_entropy", outputs[:8], torch.from_numpy(y[:8])))
    assert lost(0.25, some) == pytest.approx(0.75 * by_teacher + 0.25 * of_those)


def test_a_trainer_learns_from_a_teacher_alone() -> None:
    large = train_alone(SPEC, DIGITS, TrainSettings(), 600)
    with torch.inference_mode():
        whole = build(SPEC)
        whole.load_state_dict(large.tensors())
        taught = whole(torch.from_numpy(DIGITS.x)).numpy()
    bare = replace(unlabelled(DIGITS.x, 10, DIGITS.x_test, DIGITS.y_test), taught=taught)
    found = train_alone(SPEC, bare, TrainSettings(learning_rate=0.1), 600, distil=Distil(teacher="t"))
    assert found.evaluate().accuracy > 0.93
    assert found.loss_of_guessing() == pytest.approx(np.log(10))


def test_values_are_taught_as_values() -> None:
    spec = ModelSpec(architecture="mlp", inputs=(64,), classes=2, hidden=8, objective="mse")
    bare = replace(unlabelled(DIGITS.x, 2), taught=np.stack((DIGITS.x.mean(1), DIGITS.x[:, 3]), axis=1))
    trainer = Trainer(spec, bare, TrainSettings(learning_rate=0.01), distil=Distil(teacher="t"))
    assert trainer.run_steps(200) > trainer.run_steps(200)
    assert trainer.loss_of_guessing() > 0


def test_a_teacher_that_says_something_else_is_refused() -> None:
    for taught in (None, TAUGHT[:5], TAUGHT[:, :3]):
        with pytest.raises(UsageError, match=r"a teacher must give \(1438, 10\)"):
            Lesson(SPEC, replace(DIGITS, taught=taught), Distil(teacher="t"))
