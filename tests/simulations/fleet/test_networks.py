"""The gradients and answers of many models at once are those of each by itself."""

import math

import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.learning.losses import loss_of
from lepton.node.objective import OBJECTIVES, Objective
from lepton.simulations.fleet.networks import first_values, made, network_for, split
from lepton.simulations.fleet.scenario import Model, Scenario
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .crowds import CLASSES, population

N, B = 3, 5
SHAPES = {"linear": (4,), "mlp": (2, 3), "cnn": (8, 7), "lstm": (5, 2), "own": (6,)}


def module_for(name: str, objective: Objective = "cross_entropy", activation: str = "relu") -> nn.Module:
    if name == "own":
        return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, CLASSES))
    scenario = Scenario(
        about="", nodes=N, rounds=1, objective=objective,
        model=Model(architecture=name, hidden=8, hidden_activation=activation),  # type: ignore[arg-type]
    )  # fmt: skip
    return made(scenario, population([B] * N, shape=SHAPES[name], objective=objective), None)


def compare(name: str, objective: Objective = "cross_entropy", activation: str = "relu") -> None:
    module = module_for(name, objective, activation)
    network = network_for(module, objective)
    torch.manual_seed(2)
    models = first_values(module) + 0.3 * torch.randn(N, len(first_values(module)))
    data = population([N * B], shape=SHAPES[name], objective=objective)
    x, y = data.inputs.unflatten(0, (N, B)), data.labels.unflatten(0, (N, B))
    sizes = torch.tensor([5, 3, 1])  # what is beyond only fills up
    share = (torch.arange(B) < sizes[:, None]) / sizes[:, None]
    into = torch.randn_like(models)
    wanted = into.clone()
    network.descend(split(models, network.shapes), x, y, share, into=split(into, network.shapes), keep=0.5, scale=-2.0)
    answers = network.outputs(split(models, network.shapes), data.test_inputs)
    for row in range(N):
        vector_to_parameters(models[row], module.parameters())
        size = int(sizes[row])
        gradients = torch.autograd.grad(
            loss_of(objective, module(x[row, :size]), y[row, :size]), list(module.parameters())
        )
        wanted[row] = 0.5 * wanted[row] - 2.0 * parameters_to_vector(gradients)
        torch.testing.assert_close(answers[row].t(), module(data.test_inputs).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(into, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_equal_those_of_autograd_model_by_model(name: str) -> None:
    compare(name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_its_own_slopes(objective: Objective) -> None:
    compare("mlp", objective)


def test_a_sigmoid_goes_back_as_a_sigmoid() -> None:
    compare("mlp", activation="sigmoid")


def test_a_linear_model_begins_as_wide_as_its_samples_say() -> None:
    first = first_values(module_for("linear"))
    assert len(first) == CLASSES * 4 + CLASSES
    assert 0 < float(first.abs().max()) <= 1 / math.sqrt(4)


def test_batch_normalisation_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(UsageError, match="GroupNorm"):
        network_for(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "cross_entropy")


def test_an_unknown_architecture_is_named() -> None:
    scenario = Scenario(about="", nodes=1, rounds=1, model=Model(architecture="transformer"))
    with pytest.raises(UsageError, match="transformer"):
        made(scenario, population([4]), None)
