"""Differential privacy in training: the mechanism does what its proof assumes, the account never says too little."""

import builtins
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.learning import ledger as accounts
from lepton.node.learning.data import Dataset, digits
from lepton.node.learning.ledger import Ledger, epsilon_of, noise_for
from lepton.node.learning.privacy import PrivateGradient, normal, uniform
from lepton.node.learning.settings import DpSettings, TrainSettings
from lepton.node.learning.trainer import Trainer, train_alone
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from opacus.accountants import RDPAccountant
from torch import nn
from torch.nn.functional import cross_entropy

MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=8)
CNN = ModelSpec(architecture="cnn", inputs=(64,), classes=10, hidden=8)
LSTM = ModelSpec(architecture="lstm", inputs=(8, 8), classes=10, hidden=8)
DP = DpSettings(epsilon=8, delta=1e-4)


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = digits(0)
    return torch.from_numpy(data.x[:count].copy()), torch.from_numpy(data.y[:count].copy())


def private(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **options: Any) -> PrivateGradient:
    usual: dict[str, Any] = {"rate": 1.0, "noise": 1e-9, "clip_norm": 1.0, "source": seeded(1)}
    return PrivateGradient(model, x, y, **(usual | options))


def gradient_of(mechanism: PrivateGradient, size: int) -> torch.Tensor:
    gradient = torch.full((size,), math.nan)
    mechanism.write(gradient)
    return gradient


def clipped_one_by_one(model: nn.Module, x: torch.Tensor, y: torch.Tensor, clip: float) -> torch.Tensor:
    """The definition, by torch's own backward pass."""
    parts = []
    for one, label in zip(x, y, strict=True):
        model.zero_grad()
        cross_entropy(model(one[None]), label[None]).backward()
        flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
        parts.append(flat * min(1.0, clip / float(flat.norm())))
    return torch.stack(parts).sum(dim=0)


# -- the mechanism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [MLP, CNN, LSTM], ids=["mlp", "cnn", "lstm"])
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_each_records_gradient_is_clipped_alone(spec: ModelSpec, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = build(spec), batch(16)
    wanted = clipped_one_by_one(model, x, y, clip) / 16
    size = len(wanted)
    assert torch.allclose(gradient_of(private(model, x, y, clip_norm=clip), size), wanted, atol=1e-6)
    monkeypatch.setattr("lepton.node.learning.privacy._PER_SAMPLE_NUMBERS_MAX", 5 * size)  # in parts of five
    assert torch.allclose(gradient_of(private(model, x, y, clip_norm=clip), size), wanted, atol=1e-6)


def test_one_record_moves_the_sum_by_the_clip_norm_at_most_whatever_it_holds() -> None:
    model, (x, y) = build(MLP), batch(8)
    size = sum(part.numel() for part in model.parameters())
    for strange in (1e30, math.inf, math.nan, -1e4):
        x[0] = strange
        with_it = gradient_of(private(model, x, y, clip_norm=0.5), size) * 8
        without = gradient_of(private(model, x[1:], y[1:], clip_norm=0.5), size) * 7
        assert torch.isfinite(with_it).all()
        assert float((with_it - without).norm()) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize(("noise", "clip"), [(0.5, 2.0), (3.0, 0.1)])
def test_the_noise_has_the_deviation_that_the_account_assumes(noise: float, clip: float) -> None:
    model, (x, y) = build(MLP), batch(40)
    size = sum(part.numel() for part in model.parameters())
    mechanism = private(model, x, y, rate=1e-12, noise=noise, clip_norm=clip)  # no record is ever chosen
    values = torch.cat([gradient_of(mechanism, size) for _ in range(100)]).double() * (1e-12 * 40)
    count = len(values)
    assert abs(float(values.mean())) < 5 * noise * clip / math.sqrt(count)
    assert abs(float(values.std()) / (noise * clip) - 1) < 5 / math.sqrt(2 * count)


def test_the_noise_is_normal() -> None:
    values = np.sort(normal(seeded(2), 100_000))
    expected = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values])
    distance = np.abs(expected - np.arange(len(values)) / len(values)).max()
    assert distance < 1.95 / math.sqrt(len(values))  # Kolmogorov and Smirnov's, at one in a thousand


def test_each_record_comes_with_a_coin_of_its_own() -> None:
    """Chi-square of how many are chosen, against the binomial; and of how often each is, against all alike."""
    records, rate, draws = 50, 0.1, 4000
    source = seeded(3)
    chosen = np.array([uniform(source, records) < rate for _ in range(draws)])
    sizes = np.bincount(chosen.sum(axis=1), minlength=records + 1).astype(float)
    expected = np.array([math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)])
    bins = [slice(0, 2), *(slice(k, k + 1) for k in range(2, 10)), slice(10, None)]
    seen, due = (np.array([values[part].sum() for part in bins]) for values in (sizes, expected * draws))
    assert ((seen - due) ** 2 / due).sum() < 27.9  # of 9 degrees of freedom, one in a thousand
    each = chosen.sum(axis=0)
    assert ((each - draws * rate) ** 2 / (draws * rate * (1 - rate))).sum() < 86.7  # of 50
    pairs = chosen.astype(float).T @ chosen / draws  # and no two go together
    assert np.abs(pairs - np.diag(np.diag(pairs)) - rate**2 * (1 - np.eye(records))).max() < 0.01


def test_a_step_divides_by_the_expected_batch_and_knows_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = build(MLP), batch(20)
    size = sum(part.numel() for part in model.parameters())
    asked: list[int] = []
    mechanism = private(model, x, y, rate=0.1)
    take = mechanism._clipped_sum

    def clipped_sum(chosen: np.ndarray[Any, Any]) -> Any:
        asked.append(len(chosen))
        return take(chosen)

    monkeypatch.setattr(mechanism, "_clipped_sum", clipped_sum)
    for _ in range(40):
        before = len(asked)
        gradient = gradient_of(mechanism, size)
        assert float(gradient.norm()) <= sum(asked[before:]) / 2 + 1e-6  # 2 are expected; each is 1 long at most
        assert torch.isfinite(gradient).all()
    assert 5 < len(asked) < 40  # some batches were empty: (1 - 0.1) ** 20 is one in eight
    assert len(set(asked)) > 2


def test_the_tasks_seed_says_nothing_of_coins_and_noise() -> None:
    settings = TrainSettings(dp=DP, local_steps=2, seed=3)
    first, second = (train_alone(MLP, digits(0), settings, 2) for _ in range(2))
    assert not np.array_equal(first.vector(), second.vector())
    assert math.isnan(first.run_steps(1))  # a loss would tell of the records


def test_models_that_mix_records_are_refused_by_name() -> None:
    x, y = batch(8)
    for tracked in (True, False):
        model = nn.Sequential(nn.BatchNorm1d(64, track_running_stats=tracked), nn.Linear(64, 10))
        with pytest.raises(UsageError, match="'0' of this model is a BatchNorm1d"):
            private(model, x, y)
    private(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 10)), x, y)  # this one does not


# -- the account -------------------------------------------------------------------------------------------------------


def test_the_epsilon_is_that_of_opacus_for_the_same_history(tmp_path: Path) -> None:
    kept = Ledger(tmp_path / "1.json", DP)
    theirs = RDPAccountant()
    before = kept.epsilon
    assert before == 0.0
    for noise, rate, steps in ((1.1, 0.05, 100), (1.1, 0.05, 50), (0.9, 0.02, 30), (1.1, 0.05, 10)):
        assert kept.spend(noise=noise, rate=rate, steps=steps)
        for _ in range(steps):
            theirs.step(noise_multiplier=noise, sample_rate=rate)
        assert kept.epsilon > before  # more steps, more epsilon
        before = kept.epsilon
    assert kept.epsilon == theirs.get_epsilon(DP.delta, alphas=accounts._ORDERS)
    assert kept.epsilon == pytest.approx(theirs.get_epsilon(DP.delta), rel=1e-6)
    assert kept.steps == 190


def test_the_account_goes_on_after_a_restart_and_counts_what_a_crash_undid(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    for rounds in range(1, 5):  # each time it is killed after the account was written, before any step was kept
        kept = Ledger(path, DP)
        assert kept.steps == 20 * (rounds - 1)
        assert kept.spend(noise=1.0, rate=0.1, steps=20)
        assert kept.epsilon == epsilon_of(((1.0, 0.1, 20 * rounds),), DP.delta)


def test_nothing_is_spent_that_could_not_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Ledger(tmp_path / "1.json", DP)

    def full(path: Path, data: bytes) -> None:
        raise LeptonError(f"{path}: no space left")

    monkeypatch.setattr(accounts, "write_whole", full)
    with pytest.raises(LeptonError, match="no space left"):
        kept.spend(noise=1.0, rate=0.1, steps=20)
    assert kept.steps == 0


def test_the_budget_is_never_exceeded(tmp_path: Path) -> None:
    kept = Ledger(tmp_path / "1.json", DP)
    rounds = 0
    while kept.spend(noise=1.0, rate=0.1, steps=20):
        rounds += 1
        assert kept.epsilon <= DP.epsilon
    assert rounds > 3
    assert kept.steps == Ledger(tmp_path / "1.json", DP).steps == 20 * rounds
    assert epsilon_of(((1.0, 0.1, 20 * (rounds + 1)),), DP.delta) > DP.epsilon


def test_an_account_that_is_damaged_or_lost_stops_the_training(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    kept = Ledger(path, DP)
    kept.spend(noise=1.0, rate=0.1, steps=20)
    kept.require_steps(20)
    with pytest.raises(LeptonError, match="knows of 20 steps, the checkpoint of 21"):
        kept.require_steps(21)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LeptonError, match="no record of what the task has cost"):
        Ledger(path, DP)


# -- how much noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
def test_the_noise_that_is_solved_for_is_enough_and_hardly_more(epsilon: float, rate: float) -> None:
    settings = DpSettings(epsilon=epsilon, delta=1e-5)
    noise = noise_for(settings, rate=rate, records=500, steps=300)
    assert 0.97 * epsilon <= epsilon_of(((noise, rate, 300),), 1e-5) <= epsilon


def test_too_little_noise_and_deltas_that_mean_nothing_are_refused() -> None:
    weak = msgspec.structs.replace(DP, noise=0.3)
    with pytest.raises(UsageError, match=r"300 steps with noise 0\.3 on 500 records cost epsilon \d+\.\d\d, more than"):
        noise_for(weak, rate=0.1, records=500, steps=300)
    enough = msgspec.structs.replace(DP, noise=5.0)
    assert noise_for(enough, rate=0.1, records=500, steps=300) == 5.0
    with pytest.raises(UsageError, match=r"delta 0\.01 of 100 records would allow giving one of them away"):
        noise_for(DpSettings(epsilon=8, delta=0.01), rate=0.1, records=100, steps=300)
    with pytest.raises(UsageError, match="give `noise`, or the steps"):
        Trainer(MLP, digits(0), TrainSettings(dp=DP))
    with pytest.raises(UsageError, match="these training settings are not valid"):
        Trainer(MLP, digits(0), TrainSettings(dp=DpSettings(epsilon=0, delta=1e-5)), steps=5)


def test_without_opacus_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "opacus":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"pip install 'lepton-node\[dp\]'"):
        Ledger(tmp_path / "1.json", DP)


# -- does it learn -----------------------------------------------------------------------------------------------------


def test_the_digits_are_learnt_at_epsilon_8_and_hardly_at_a_hundredth_of_it() -> None:
    data: Dataset = digits(0)
    spec = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden_activation="relu")

    def accuracy(epsilon: float) -> float:
        dp = DpSettings(epsilon=epsilon, delta=1e-4)
        settings = TrainSettings(batch_size=256, learning_rate=0.2, dp=dp)
        return train_alone(spec, data, settings, 100).evaluate().accuracy

    assert accuracy(8) > 0.88  # 0.93 to 0.944 in four runs
    assert accuracy(0.08) < 0.6
