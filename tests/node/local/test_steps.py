"""What is done with gradients: each idea against its formula, and all of them in a small mesh with skewed data."""

import math
from itertools import pairwise
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import Dataset, digits
from lepton.node.learning.partition import partition_dirichlet
from lepton.node.learning.settings import Schedule, TrainSettings
from lepton.node.learning.steps.momentum import Momentum
from lepton.node.learning.steps.proximal import add_proximal
from lepton.node.learning.steps.schedule import rate_at
from lepton.node.learning.steps.tracking import LEAK, Tracking
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import ModelSpec

MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden_activation="relu")


def test_schedules_begin_and_end_where_they_should() -> None:
    for schedule in get_args(Schedule):
        rates = [rate_at(step, 100, rate=0.4, schedule=schedule, warmup_steps=10) for step in range(101)]
        assert rates[0] == pytest.approx(0.04)
        assert rates[9:11] == pytest.approx([0.4, 0.4])
        assert rates[-1] == pytest.approx(0.4 if schedule == "constant" else 0.004)
        assert all(later <= sooner for sooner, later in pairwise(rates[10:]))
    assert rate_at(55, 100, rate=1.0, schedule="cosine", warmup_steps=10) == pytest.approx(0.5)
    assert rate_at(55, 100, rate=1.0, schedule="linear", warmup_steps=10) == pytest.approx(0.5)
    assert rate_at(7, 0, rate=1.0, schedule="cosine") == 1.0  # an end that is not known never comes


def test_plain_momentum_sums_gradients_that_fade() -> None:
    momentum = Momentum(2, kind="plain", beta=0.5)
    momentum.direction(torch.tensor([1.0, 0.0]))
    assert momentum.direction(torch.tensor([1.0, 2.0])).tolist() == [1.5, 2.0]
    momentum.round_ended(torch.tensor([9.0, 9.0]), 1.0)
    assert momentum.buffer.tolist() == [1.5, 2.0]


def test_quasi_global_momentum_remembers_rounds_and_not_steps() -> None:
    momentum = Momentum(1, kind="quasi_global", beta=0.9)
    for _ in range(3):
        assert momentum.direction(torch.tensor([2.0])).tolist() == [2.0]
    momentum.round_ended(torch.tensor([-0.6]), 0.3)  # the mesh moved by -0.6 in steps of 0.3 in all: a gradient of 2
    assert momentum.buffer.item() == pytest.approx(0.2)
    assert momentum.direction(torch.tensor([2.0])).item() == pytest.approx(2.18)


def test_the_proximal_term_pulls_back() -> None:
    gradient = torch.tensor([1.0])
    add_proximal(gradient, torch.tensor([3.0]), torch.tensor([2.0]), 0.5)
    assert gradient.item() == pytest.approx(1.5)


def test_tracking_corrects_two_nodes_to_their_common_direction() -> None:
    """Gradients +3 and -1, five steps of 0.1: after one round both go the mean way, and the corrections sum to 0."""
    nodes = [Tracking(1, strength=1.0) for _ in range(2)]
    ends = [torch.tensor([-3.0 * 0.5]), torch.tensor([1.0 * 0.5])]
    average = (ends[0] + ends[1]) / 2
    gradients = [torch.tensor([3.0]), torch.tensor([-1.0])]
    for node, end, gradient in zip(nodes, ends, gradients, strict=True):
        node.round_ended(end, average, 0.5)
        node.apply(gradient)
        assert gradient.item() == pytest.approx(1.0)
    assert sum(node.correction.item() for node in nodes) == pytest.approx(0.0)
    nodes[0].round_ended(average, average, 0.5)
    assert nodes[0].correction.item() == pytest.approx(-2.0 * LEAK)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cosine": {"schedule": "cosine", "warmup_steps": 10},
    "quasi_global": {"momentum_kind": "quasi_global"},
    "proximal": {"proximal": 0.1},
    "tracking": {"tracking": 1.0, "momentum": 0.0},
    "tracking with momentum": {"tracking": 1.0},
    "clipped": {"clip_norm": 1.0, "weight_decay": 1e-4},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_learns_from_skewed_data_and_resumes_to_the_bit(name: str) -> None:
    settings = msgspec.structs.replace(TrainSettings(learning_rate=0.1, local_steps=10), **VARIANTS[name])
    data = digits(0)
    shares = partition_dirichlet(data.y, 4, 0.1, np.random.default_rng(0))
    parts = [Dataset(x=data.x[i], y=data.y[i], classes=10, x_test=data.x_test, y_test=data.y_test) for i in shares]
    trainers = [Trainer(MLP, part, settings, steps=300) for part in parts]
    for _ in range(30):
        one_round(trainers)
    assert trainers[0].evaluate().accuracy > 0.9
    copies = [Trainer(MLP, part, settings, steps=300) for part in parts]
    for copy, trainer in zip(copies, trainers, strict=True):
        copy.restore(trainer.vector(), trainer.state())
    one_round(trainers)
    one_round(copies)
    np.testing.assert_array_equal(copies[0].vector(), trainers[0].vector())


def one_round(trainers: list[Trainer]) -> None:
    for trainer in trainers:
        trainer.run_steps(trainer.settings.local_steps)
    mean = np.stack([trainer.vector() for trainer in trainers]).mean(axis=0)
    for trainer in trainers:
        trainer.adopt(mean, averaged=True)


def test_a_model_that_was_taken_from_a_peer_says_nothing_of_others_data() -> None:
    settings = TrainSettings(tracking=1.0, momentum_kind="quasi_global")
    trainer = Trainer(MLP, digits(0), settings)
    trainer.run_steps(5)
    trainer.adopt(np.zeros_like(trainer.vector()))
    state = trainer.state()
    assert not state.momentum.any()
    assert not state.correction.any()


def test_a_state_of_other_settings_is_refused() -> None:
    with_tracking = Trainer(MLP, digits(0), TrainSettings(tracking=0.5))
    without = Trainer(MLP, digits(0), TrainSettings())
    with pytest.raises(UsageError, match="other settings"):
        without.restore(without.vector(), with_tracking.state())
    with pytest.raises(UsageError, match="other settings"):
        with_tracking.restore(without.vector(), without.state())


def test_the_rate_is_never_nothing() -> None:
    assert math.isclose(rate_at(1000, 10, rate=1.0, schedule="linear"), 0.01)
