"""Objectives and optimisers: losses and R2 are the usual ones, Adam is torch's, and what does not fit is said."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.answers import Said
from lepton.node.learning.data import Dataset, DataSource, hold_out, load_data, load_samples
from lepton.node.learning.losses import loss_of, measured
from lepton.node.learning.partition import partition_dirichlet
from lepton.node.learning.settings import TrainSettings, as_said
from lepton.node.learning.trainer import Trainer, settings_for, train_alone
from lepton.node.models import build, load_vector, run_layers
from lepton.node.objective import OBJECTIVES, Objective
from lepton.node.shapes import ModelSpec, check_sizes
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import r2_score
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3)).astype(np.float32)
VALUES = (X @ np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]], np.float32) + 0.25).astype(np.float32)
LINE = Dataset(x=X[:40], y=VALUES[:40], classes=2, x_test=X[40:], y_test=VALUES[40:])
SPEC = ModelSpec(architecture="mlp", inputs=(3,), classes=2, hidden=8, objective="mse")
ADAM = TrainSettings(optimiser="adam", learning_rate=0.02, batch_size=16)


def test_losses_are_means_over_all_outputs() -> None:
    z, y = torch.from_numpy(VALUES[:5]), torch.from_numpy(VALUES[5:10])
    apart = (VALUES[:5] - VALUES[5:10]).astype(np.float64)
    assert float(loss_of("mse", z, y)) == pytest.approx((apart**2).mean())
    assert float(loss_of("mae", z, y)) == pytest.approx(np.abs(apart).mean())
    far = np.abs(apart)
    assert float(loss_of("huber", z, y)) == pytest.approx(np.where(far < 1, far**2 / 2, far - 0.5).mean())
    half = torch.full((5, 2), 0.5)
    p = 1 / (1 + np.exp(-VALUES[:5].astype(np.float64)))
    wanted = -(0.5 * np.log(p) + 0.5 * np.log(1 - p)).mean()
    assert float(loss_of("binary_cross_entropy", z, half)) == pytest.approx(wanted)


def test_r2_is_that_of_all_outputs_together_in_parts_or_whole() -> None:
    answers = torch.from_numpy(VALUES + RNG.standard_normal(VALUES.shape).astype(np.float32))
    truth = torch.from_numpy(VALUES)
    metrics = measured("mae", zip(answers.split(7), truth.split(7), strict=True))
    whole = measured("mae", [(answers, truth)])
    spread = ((VALUES - VALUES.mean(axis=0)) ** 2).sum(axis=0)
    each = r2_score(VALUES, answers.numpy(), multioutput="raw_values")
    assert metrics.r2 == pytest.approx(float((each * spread).sum() / spread.sum()), abs=1e-5)
    assert [metrics.r2, metrics.loss] == pytest.approx([whole.r2, whole.loss])
    assert np.isnan(metrics.accuracy)
    assert metrics.score == metrics.r2
    same = torch.ones(4, 1)
    assert measured("mse", [(same, same)]).r2 == 1.0  # nothing to explain, and not divided by nothing
    assert measured("mse", [(same * 2, same)]).r2 == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_answered_follows_the_objective(objective: Objective) -> None:
    chain = build(msgspec.structs.replace(SPEC, objective=objective))
    z = chain(torch.from_numpy(X)).detach()
    y = run_layers(chain, 0, 2, torch.from_numpy(X))
    wanted = {"cross_entropy": torch.softmax(z, 1), "binary_cross_entropy": torch.sigmoid(z)}.get(objective, z)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_adam_takes_the_steps_of_torch(optimiser: Any) -> None:
    settings = TrainSettings(
        optimiser=optimiser, learning_rate=0.02, batch_size=40, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1
    )
    trainer = Trainer(SPEC, LINE, settings)
    start = trainer.vector()
    trainer.run_steps(25)
    model = build(SPEC)
    load_vector(model, start)
    kind = torch.optim.Adam if optimiser == "adam" else torch.optim.AdamW
    torchs = kind(model.parameters(), lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for _ in range(25):
        torchs.zero_grad()
        nn.functional.mse_loss(model(torch.from_numpy(X[:40])), torch.from_numpy(VALUES[:40])).backward()
        torchs.step()
    theirs = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).numpy()
    np.testing.assert_allclose(trainer.vector(), theirs, atol=2e-5)
    assert np.abs(trainer.vector() - start).max() > 0.05


def test_both_moments_come_back_from_a_checkpoint_and_stay_at_an_average() -> None:
    one, other = Trainer(SPEC, LINE, ADAM), Trainer(SPEC, LINE, ADAM)
    one.run_steps(10)
    other.restore(one.vector(), one.state())
    one.run_steps(5)
    other.run_steps(5)
    np.testing.assert_array_equal(one.vector(), other.vector())
    before = one.state().momentum
    one.adopt(0.5 * one.vector(), averaged=True)
    np.testing.assert_array_equal(one.state().momentum, before)
    with pytest.raises(UsageError, match="its optimiser keeps"):
        Trainer(SPEC, LINE, TrainSettings()).restore(one.vector(), one.state())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (TrainSettings(optimiser="adam", momentum=0.5), "momentum"),
        (TrainSettings(optimiser="adam", momentum_kind="quasi_global"), "momentum_kind"),
        (TrainSettings(optimiser="adamw", tracking=1.0), "tracking"),
        (TrainSettings(beta2=0.9), "beta2"),
    ],
)
def test_options_of_another_optimiser_are_refused(settings: TrainSettings, key: str) -> None:
    with pytest.raises(UsageError, match=f"train.{key} is for the optimiser"):
        Trainer(SPEC, LINE, settings)


def test_settings_are_said_without_what_their_optimiser_does_not_have() -> None:
    assert {"beta1", "beta2", "eps"}.isdisjoint(as_said(TrainSettings()))
    assert {"momentum", "momentum_kind", "tracking"}.isdisjoint(as_said(ADAM))
    assert as_said(TrainSettings(optimiser="adam", tracking=0.5))["tracking"] == 0.5
    assert settings_for(SPEC, optimiser="adam").learning_rate < settings_for(SPEC).learning_rate * 10


@pytest.mark.parametrize("objective", ["mse", "mae", "huber"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_line_is_learned(objective: Any, optimiser: Any) -> None:
    spec = msgspec.structs.replace(SPEC, objective=objective)
    metrics = train_alone(spec, LINE, settings_for(spec, optimiser=optimiser), 600).evaluate()
    assert metrics.r2 is not None
    assert metrics.r2 > 0.95
    trainer = Trainer(spec, LINE, settings_for(spec))
    assert trainer.loss_of_guessing() > 5 * metrics.loss


def test_yes_or_no_is_learned_from_whole_labels() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    data = hold_out(Dataset(x=x, y=y.astype(np.int64), classes=2), 0.2, 0)
    spec = ModelSpec(architecture="mlp", inputs=(30,), classes=1, hidden=16, objective="binary_cross_entropy")
    trainer = train_alone(spec, data, settings_for(spec), 200)
    assert trainer.evaluate().accuracy >= 0.95
    assert trainer.loss_of_guessing() == pytest.approx(np.log(2))


def test_values_are_read_from_every_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    np.savez(tmp_path / "a.npz", x=X, y=VALUES)
    both = np.concatenate([X, VALUES], axis=1)
    np.savetxt(tmp_path / "a.csv", both, delimiter=",", fmt="%.9g")
    parquet.write_table(pa.table({f"c{i}": both[:, i] for i in range(5)}), tmp_path / "a.parquet")
    (tmp_path / "own_values.py").write_text(
        "import numpy as np\ndef both():\n    z = np.load(__file__.replace('own_values.py', 'a.npz'))\n"
        "    return z['x'], z['y']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sources: dict[str | Path, str | None] = {
        tmp_path / "a.npz": None,
        tmp_path / "a.csv": "values:2",
        tmp_path / "a.parquet": "values:2",
    }
    first = load_data(tmp_path / "a.npz", objective="mse")
    assert first.y.dtype == np.float32
    assert (first.y.shape, first.classes) == ((48, 2), 2)
    sources["own_values:both"] = None
    for where, target in sources.items():
        read = load_data(where, target=target, objective="huber")
        np.testing.assert_array_equal(read.x, first.x)
        np.testing.assert_array_equal(read.y, first.y)
        with pytest.raises(UsageError):
            load_data(where, target=target)
        assert str(where) in DataSource(str(where), target).check()
    one = load_data(tmp_path / "a.csv", objective="mae")
    assert (one.y.shape, one.feature_shape) == ((48, 1), (4,))
    asked = load_samples(tmp_path / "a.npz", objective="mse")
    np.testing.assert_array_equal(asked.y, VALUES)


@pytest.mark.parametrize(
    ("y", "objective", "why"),
    [
        (np.array([0.0, np.nan, 1.0]), "mse", "`y` is nan at row 1 .* finite numbers"),
        (np.array([0.0, 0.5, 1.5]), "binary_cross_entropy", r"`y` is 1.5 at row 2 .* 0 \(no\) to 1 \(yes\)"),
        (np.array(["a", "b", "c"]), "mse", "not numbers"),
        (np.zeros((3, 1, 1)), "mse", "must be"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, y: Any, objective: Objective, why: str) -> None:
    np.savez(tmp_path / "a.npz", x=X[:3], y=y)
    with pytest.raises(UsageError, match=why):
        load_data(tmp_path / "a.npz", objective=objective)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match="takes whole numbers of classes"):
        Trainer(msgspec.structs.replace(SPEC, objective="cross_entropy"), LINE, TrainSettings())
    with pytest.raises(UsageError, match="answers 3 numbers to a sample; the data have 2"):
        Trainer(msgspec.structs.replace(SPEC, classes=3), LINE, TrainSettings())
    with pytest.raises(UsageError, match="are 0 to 1"):
        Trainer(msgspec.structs.replace(SPEC, objective="binary_cross_entropy"), LINE, TrainSettings())
    with pytest.raises(UsageError, match="2 of them at least"):
        check_sizes(msgspec.structs.replace(SPEC, objective="cross_entropy", classes=1))
    with pytest.raises(UsageError, match="not by values"):
        partition_dirichlet(VALUES, 2, 0.5, np.random.default_rng(0))


def test_answers_are_said_as_what_they_are() -> None:
    values = Said("mse", np.array([[1.5, -2.0], [0.25, 4.0]], np.float32))
    assert list(values.lines()) == ["0\t1.5\t-2", "1\t0.25\t4"]
    assert values.plain() == [[1.5, -2.0], [0.25, 4.0]]
    assert values.compared(values.answers) == "2 samples: mean absolute error 0, R2 1.000"
    yes = Said("binary_cross_entropy", np.array([[0.75], [0.25]], np.float32))
    assert list(yes.lines()) == ["0\t1\t0.7500", "1\t0\t0.2500"]
    assert yes.plain() == [1, 0]
    assert yes.compared(np.array([[1.0], [1.0]])) == "1 of 2 right (50.0%)"
    classes = Said("cross_entropy", np.array([[0.1, 0.9], [0.6, 0.4]], np.float32))
    assert list(classes.lines()) == ["0\t1\t0.9000", "1\t0\t0.6000"]
    assert classes.compared(np.array([1, 0])) == "2 of 2 right (100.0%)"
