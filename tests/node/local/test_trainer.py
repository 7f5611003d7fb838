"""Training learns, repeats itself to the bit, and goes on after a stop as if there had been none."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.learning.data import Dataset, digits, load_data
from lepton.node.learning.partition import partition_dirichlet
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer, TrainerState, settings_for, train_alone
from lepton.node.shapes import ModelSpec

MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10)
RELU = msgspec.structs.replace(MLP, hidden_activation="relu")
CNN = msgspec.structs.replace(MLP, architecture="cnn")
LSTM = msgspec.structs.replace(MLP, architecture="lstm", inputs=(8, 8))  # the rows of a digit, from top to bottom
ALL = pytest.mark.parametrize("spec", [MLP, RELU, CNN, LSTM], ids=["mlp", "relu", "cnn", "lstm"])
STEPS = {"mlp": 4000, "cnn": 600, "lstm": 1000}
ROUNDS = {"mlp": 100, "cnn": 30, "lstm": 40}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(0)


@ALL
def test_a_mesh_learns_what_all_data_in_one_place_teach(spec: ModelSpec, data: Dataset) -> None:
    settings = settings_for(spec)
    central = train_alone(spec, data, settings, STEPS[spec.architecture]).evaluate()
    trainers = [Trainer(spec, part, settings) for part in parts(data)]
    weights = np.array([trainer.samples for trainer in trainers]) / sum(trainer.samples for trainer in trainers)
    for _ in range(ROUNDS[spec.architecture]):
        for trainer in trainers:
            trainer.run_steps(settings.local_steps)
        mean = np.average([trainer.vector() for trainer in trainers], axis=0, weights=weights).astype(np.float32)
        for trainer in trainers:
            trainer.adopt(mean)
    assert central.accuracy >= 0.965
    assert central.samples == 359
    assert trainers[0].evaluate().accuracy >= central.accuracy - 0.01


def test_a_node_alone_learns_far_less(data: Dataset) -> None:
    alone = [train_alone(MLP, part, settings_for(MLP), 500).evaluate().accuracy for part in parts(data)]
    assert max(alone) < 0.9


def parts(data: Dataset) -> list[Dataset]:
    shares = partition_dirichlet(data.y, 4, 0.3, np.random.default_rng(0))
    return [Dataset(x=data.x[i], y=data.y[i], classes=10, x_test=data.x_test, y_test=data.y_test) for i in shares]


@ALL
def test_training_repeats_itself_and_leaves_torch_alone(spec: ModelSpec, data: Dataset) -> None:
    settings = TrainSettings(batch_size=100, learning_rate=0.05, seed=3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (train_alone(spec, data, settings, 30) for _ in range(2))
    other = train_alone(spec, data, msgspec.structs.replace(settings, seed=4), 30)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(first.vector(), second.vector())
    assert first.evaluate() == second.evaluate()
    assert not np.array_equal(first.vector(), other.vector())


@ALL
@pytest.mark.parametrize("stop", [0, 1, 14, 15, 29])
def test_a_stop_changes_nothing(spec: ModelSpec, data: Dataset, stop: int) -> None:
    settings = TrainSettings(batch_size=100, learning_rate=0.05)
    unbroken, stopped, resumed = (Trainer(spec, data, settings) for _ in range(3))
    unbroken.run_steps(30)
    if stop:
        stopped.run_steps(stop)
    resumed.run_steps(7)  # whatever it did before
    resumed.restore(stopped.vector(), stopped.state())
    resumed.run_steps(30 - stop)
    assert resumed.step == 30
    np.testing.assert_array_equal(resumed.vector(), unbroken.vector())
    np.testing.assert_array_equal(resumed.state().momentum, unbroken.state().momentum)


def test_what_is_taken_out_is_a_copy(data: Dataset) -> None:
    trainer = train_alone(MLP, data, TrainSettings(), 2)
    vector, state = trainer.vector(), trainer.state()
    saved = vector.copy(), state.momentum.copy()
    trainer.run_steps(3)
    np.testing.assert_array_equal(vector, saved[0])
    np.testing.assert_array_equal(state.momentum, saved[1])
    trainer.restore(vector, state)
    trainer.run_steps(3)
    np.testing.assert_array_equal(state.momentum, saved[1])


def test_every_sample_has_its_turn_in_each_pass() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    trainer = Trainer(
        ModelSpec(architecture="mlp", inputs=(1,), classes=2),
        Dataset(x=x, y=np.zeros(10, np.int64), classes=2),
        TrainSettings(batch_size=4),
    )
    line = np.concatenate([trainer._order.batch(step, 4) for step in range(10)])
    for start in range(0, 40, 10):
        assert sorted(line[start : start + 10]) == list(range(10))
    assert not np.array_equal(line[:10], line[10:20])
    assert len(trainer._order.batch(3, 64)) == 10


def test_the_loss_is_the_mean_over_the_steps(data: Dataset) -> None:
    one_by_one, together = Trainer(MLP, data, TrainSettings()), Trainer(MLP, data, TrainSettings())
    losses = [one_by_one.run_steps(1) for _ in range(50)]
    assert together.run_steps(50) == pytest.approx(np.mean(losses))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_a_training_that_diverges_says_so(data: Dataset) -> None:
    with pytest.raises(LeptonError, match=r"diverged by step \d+: lower the learning rate, now 100"):
        train_alone(RELU, Dataset(x=data.x * 1e18, y=data.y, classes=10), TrainSettings(learning_rate=100), 50)
    trainer = Trainer(MLP, data, TrainSettings(learning_rate=100))
    trainer.restore(trainer.vector(), TrainerState(step=4, momentum=np.full(4810, 3e38, np.float32)))
    with pytest.raises(LeptonError, match="diverged by step 5:"):  # whose loss was still a number
        trainer.run_steps(1)


def test_what_does_not_fit_is_refused(data: Dataset) -> None:
    trainer = Trainer(MLP, data, TrainSettings())
    vector, state = trainer.vector(), trainer.state()
    with pytest.raises(UsageError, match="give 1 or more"):
        trainer.run_steps(0)
    with pytest.raises(UsageError, match=r"takes float32 \(4810,\)"):
        trainer.adopt(vector[1:])
    with pytest.raises(UsageError, match="the saved momentum"):
        trainer.restore(vector, TrainerState(step=1, momentum=state.momentum[1:]))
    with pytest.raises(UsageError, match="no test part"):
        Trainer(MLP, Dataset(x=data.x, y=data.y, classes=10), TrainSettings()).evaluate()
    with pytest.raises(UsageError, match=r"samples of \(63,\); the data are \(1438, 64\)"):
        Trainer(msgspec.structs.replace(MLP, inputs=(63,)), data, TrainSettings())
    with pytest.raises(UsageError, match=r"the model has 9 classes; the labels run from 0 to 9"):
        Trainer(msgspec.structs.replace(MLP, classes=9), data, TrainSettings())


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 0},
        {"batch_size": 0},
        {"batch_size": 5000},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"seed": -1},
    ],
)
def test_settings_out_of_bounds_are_refused(data: Dataset, changes: dict[str, Any]) -> None:
    settings = msgspec.structs.replace(TrainSettings(), **changes)
    with pytest.raises(UsageError, match=f"not valid.*{next(iter(changes))}"):
        Trainer(MLP, data, settings)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=TrainSettings)


@pytest.mark.parametrize("labels", ["index", "one-hot"])
@pytest.mark.parametrize("kind", ["csv", "npz"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_example_of_the_mission_runs(tmp_path: Path, labels: str, kind: str, activation: Any) -> None:
    """100 samples, 10 features, 5 classes, all random: there is nothing to learn but the samples themselves."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 10)), rng.integers(0, 5, 100)
    target = np.eye(5)[y] if labels == "one-hot" else y
    path = tmp_path / f"example.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=target)
    else:
        np.savetxt(path, np.column_stack([x, target]), delimiter=",")
    dataset = load_data(path, target="onehot:5" if (labels, kind) == ("one-hot", "csv") else None)
    spec = ModelSpec(
        architecture="mlp", inputs=dataset.feature_shape, classes=dataset.classes, hidden_activation=activation
    )
    assert (spec.inputs, spec.classes) == ((10,), 5)
    trainer = Trainer(spec, dataset, settings_for(spec))
    first = trainer.run_steps(20)
    assert trainer.run_steps(400) < first
    assert trainer.run_steps(20) < 0.1  # learnt by heart
    assert trainer.evaluate().samples == 20
