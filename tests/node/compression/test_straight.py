"""Training against rounding: gradients go straight through it, and to round what was rounded changes nothing."""

from copy import deepcopy

import pytest
import torch
from lepton.mesh.errors import LeptonError
from lepton.node import digits
from lepton.node.compression import Fit, quantise, quantise_aware
from lepton.node.compression.fitting import fit
from lepton.node.compression.manifest import Bits, Trained
from lepton.node.compression.straight import Straight
from lepton.node.learning.data import Dataset
from lepton.node.learning.losses import loss_of
from lepton.node.learning.settings import DpSettings, Quantise, TrainSettings, bits_of
from lepton.node.learning.trainer import Trainer, train_alone
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from torch import Tensor, nn

from .networks import Mixed

DIGITS = digits()
assert DIGITS.x_test is not None
assert DIGITS.y_test is not None
X, Y = torch.from_numpy(DIGITS.x), torch.from_numpy(DIGITS.y)
X_TEST, Y_TEST = torch.from_numpy(DIGITS.x_test), torch.from_numpy(DIGITS.y_test)
TOKENS = torch.randint(0, 50, (24, 9), generator=torch.Generator().manual_seed(1))
BITS: list[Bits] = [8, 4]
NARROW = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=8, hidden_activation="relu")


def labels_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return loss_of("cross_entropy", module(batch[0]), batch[1])


def loss_on_test(module: nn.Module) -> float:
    with torch.inference_mode():
        return float(labels_loss(module.eval(), (X_TEST, Y_TEST)))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("data", [None, TOKENS], ids=["searched", "compensated"])
def test_quantise_makes_of_a_settled_module_the_numbers_it_was_trained_with(bits: Bits, data: Tensor | None) -> None:
    module = Mixed().eval()
    before = deepcopy(module.state_dict())
    Straight(module, bits).settle()
    assert not torch.equal(module.inner.weight, before["inner.weight"])
    small = quantise(module, bits=bits, data=data, form="resident", error_max=1.0, must=())
    with torch.inference_mode():
        torch.testing.assert_close(small.module(TOKENS), module(TOKENS), rtol=0, atol=0)
    again = deepcopy(module.state_dict())
    Straight(module, bits).settle()
    assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_rounded_weights_and_the_floats_come_back(bits: Bits) -> None:
    module = Mixed()
    settled = deepcopy(module)
    Straight(settled, bits).settle()
    settled(TOKENS).square().sum().backward()
    before = deepcopy(module.state_dict())
    with Straight(module, bits).rounded():
        module(TOKENS).square().sum().backward()
    for own, other in zip(module.parameters(), settled.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(RuntimeError), Straight(module, bits).rounded():
        module(TOKENS.float())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    nn.init.constant_(module.inner.weight, torch.nan)
    with pytest.raises(LeptonError, match="diverged"), Straight(module, bits).rounded():
        pass


def test_a_model_trained_so_minds_rounding_less() -> None:
    rounded = aware = 0.0
    for seed in range(3):
        module = build(ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=8, seed=seed))
        fit(module, (X, Y), labels_loss, Fit(steps=300, rate=3e-2))
        found = quantise_aware(module, (X, Y), labels_loss, 4, Fit(steps=200, rate=1e-2))
        assert found.step == Trained(bits=4, fitted_steps=200)
        aware += loss_on_test(found.module)
        fit(module, (X, Y), labels_loss, Fit(steps=200, rate=1e-2))  # as many steps, without
        Straight(module, 4).settle()
        rounded += loss_on_test(module)
    assert aware < 0.97 * rounded


def test_batch_norms_are_folded_before_and_not_missed() -> None:
    torch.manual_seed(4)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    x = X.view(-1, 1, 8, 8)
    fit(module, (x, Y), labels_loss, Fit(steps=20, rate=1e-2))
    found = quantise_aware(module, (x, Y), labels_loss, 4, Fit(steps=20))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in found.module.modules())
    small = quantise(found.module, bits=4, data=x[:32], form="resident", error_max=1.0, must=())
    with torch.inference_mode():
        torch.testing.assert_close(small.module(x), found.module(x))


@pytest.mark.parametrize("quantise_to", ["int8", "int4"])
def test_a_trainer_measures_the_rounded_model_and_averages_the_floats(quantise_to: Quantise) -> None:
    settings = TrainSettings(local_steps=5, quantise=quantise_to)
    trainer = train_alone(NARROW, DIGITS, settings, 40)
    floats = build(NARROW)
    state = trainer.tensors()
    floats.load_state_dict(state)
    assert loss_on_test(floats) == pytest.approx(trainer.evaluate().loss, rel=1e-5)
    settled = deepcopy(floats)
    Straight(settled, bits_of(settings)).settle()
    assert all(torch.equal(state[name], tensor) for name, tensor in settled.state_dict().items())
    vector = trainer.vector()
    assert len(set(vector[:512].round(6).tolist())) > 500  # float weights, and not one of 16 values a group
    again = Trainer(NARROW, DIGITS, settings, steps=40)
    again.run_steps(20)
    resumed = Trainer(NARROW, DIGITS, settings, steps=40)
    resumed.restore(again.vector(), again.state())
    resumed.run_steps(20)
    assert (resumed.vector() == vector).all()


def test_rounding_goes_with_differential_privacy() -> None:
    dp = DpSettings(epsilon=8, delta=1e-4, noise=1.0)
    few = Dataset(x=DIGITS.x[:200], y=DIGITS.y[:200], classes=10, x_test=DIGITS.x_test, y_test=DIGITS.y_test)
    trainer = Trainer(NARROW, few, TrainSettings(local_steps=5, quantise="int4", dp=dp), steps=5)
    before = trainer.vector()
    trainer.run_steps(5)
    assert (trainer.vector() != before).any()
