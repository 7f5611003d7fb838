"""A node makes models by the functions that its owner allowed, and never imports another's name."""

import sys
from pathlib import Path

import msgspec
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node import models, shapes
from lepton.node.config import load_config
from lepton.node.learning import factories
from lepton.node.learning.allowed import Factories
from lepton.node.learning.data import digits
from lepton.node.learning.factories import structure
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.shared import Shared
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import ModelSpec

OWN = ModelSpec(architecture="own", factory="factories_of_a_test:good", inputs=(64,), classes=10, seed=3)
SOURCE = """
import torch
from torch import nn

def good():
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)).eval()

def renamed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = good()
        def forward(self, x):
            return self.body(x)
    return Net()

def narrow(): return nn.Linear(64, 9)
def double(): return good().double()
def large(): return nn.Linear(4097, 4096)
def thing(): return 3
def broken(): raise RuntimeError("no weights here")
def picky():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)
        def forward(self, x):
            if self.training: raise ZeroDivisionError("in training")
            return self.layer(x)
    return Picky()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "factories_of_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "factories_of_a_test", raising=False)
    return "factories_of_a_test"


def allowed(*names: str) -> Factories:
    factories = Factories(names)
    factories.load()
    return factories


def own(name: str) -> ModelSpec:
    return msgspec.structs.replace(OWN, factory=name)


def test_a_name_that_the_owner_did_not_allow_is_never_imported(module: str) -> None:
    for each in (allowed(), allowed("json:loads")):
        with pytest.raises(UsageError, match="this node does not have the model factories_of_a_test:good: its owner"):
            each.make(OWN)
    assert module not in sys.modules
    allowed(f"{module}:good").make(OWN)
    assert module in sys.modules


def test_equal_seeds_make_equal_models_and_leave_torchs_own_alone(module: str) -> None:
    factories, before = allowed(f"{module}:good"), torch.get_rng_state()
    first, second = (models.parameter_vector(factories.make(OWN)) for _ in range(2))
    other = models.parameter_vector(factories.make(msgspec.structs.replace(OWN, seed=4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert (first == second).all()
    assert (first != other).any()
    assert factories.make(OWN).training
    assert isinstance(factories.make(msgspec.structs.replace(OWN, architecture="mlp", factory="")), models.Chain)


def test_a_structure_tells_models_of_one_size_apart(module: str) -> None:
    factories = allowed(f"{module}:good", f"{module}:renamed")
    good, again, renamed = (factories.make(own(f"{module}:{name}")) for name in ("good", "good", "renamed"))
    assert Shared(good).size == Shared(renamed).size
    assert structure(Shared(good), good) == structure(Shared(again), again)
    assert structure(Shared(good), good) != structure(Shared(renamed), renamed)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("narrow", r"makes \(2, 9\) of samples \(2, 64\); it must make logits \(2, 10\)"),
        ("double", "has parameters of torch.float64 on cpu"),
        ("large", "has 16,785,408 parameters, more than the 16,777,216"),
        ("thing", "returned int; return a torch.nn.Module"),
        ("broken", "failed: RuntimeError: no weights here"),
    ],
)
def test_what_makes_no_model_is_explained(module: str, name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "OWN_PARAMETERS_MAX", 2**24)  # of the limit itself, a test would take a gigabyte
    with pytest.raises(UsageError, match=why):
        allowed(f"{module}:{name}").make(own(f"{module}:{name}"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("factories_of_a_test:nothing", "cannot be imported: AttributeError"),
        ("no_such_module_at_all:f", "cannot be imported: ModuleNotFoundError"),
        ("factories_of_a_test:number", "is no function, but int"),
        ("good", "names no function that makes models"),
        ("../x:good", "names no function that makes models"),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_name_that_is_no_function_is_told_when_the_node_starts(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        allowed(name)


def test_a_model_that_fails_in_training_fails_the_task_and_not_the_node(module: str) -> None:
    spec = own(f"{module}:picky")
    trainer = Trainer(spec, digits(), TrainSettings(), model=allowed(spec.factory).make(spec))
    assert trainer.evaluate().samples == 359
    with pytest.raises(UsageError, match="the model factories_of_a_test:picky failed: ZeroDivisionError: in training"):
        trainer.run_steps(1)


def test_nobody_builds_such_a_model_from_its_description() -> None:
    for use in (shapes.check_spec, models.build, shapes.layer_count):
        with pytest.raises(UsageError, match="factories_of_a_test:good: its layers cannot be built from a description"):
            use(OWN)


def test_the_configuration_allows_by_name(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[models]\nallow = ["clinic.models:unet"]\n')
    assert load_config(path).models.allow == ("clinic.models:unet",)
    path.write_text('[models]\nallow = ["clinic"]\n')
    with pytest.raises(UsageError, match=r"models\.allow"):
        load_config(path)
