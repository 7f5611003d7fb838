"""Models are looked at as one would look at each; equal ones once, and a silo on its own part of the test."""

import dataclasses

import numpy as np
import pytest
import torch
from lepton.node.learning.losses import measured
from lepton.node.objective import OBJECTIVES, Objective
from lepton.simulations.fleet.evaluation import Examiner, consensus_of, distinct_of
from lepton.simulations.fleet.networks import first_values, made, network_for
from lepton.simulations.fleet.population import Population
from lepton.simulations.fleet.scenario import Model, Scenario
from torch import nn
from torch.nn.utils import vector_to_parameters

from .crowds import population

N = 6


def setting(objective: Objective = "cross_entropy") -> tuple[Scenario, Population, nn.Module, torch.Tensor]:
    said = Scenario(about="", nodes=N, rounds=1, objective=objective, model=Model(hidden=5))
    data = population([2] * N, objective=objective, test=700)  # more than are looked at in one go
    module = made(said, data, None)
    torch.manual_seed(1)
    models = first_values(module) + 0.2 * torch.randn(N, len(first_values(module)))
    models[3], models[5] = models[0], models[0]
    return said, data, module, models


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_quality_and_loss_are_those_of_each_model_by_itself(objective: Objective) -> None:
    said, data, module, models = setting(objective)
    found = Examiner(network_for(module, objective), said, data, models.device).examine(models, np.array([5, 1, 0, 2]))
    for place, node in enumerate([5, 1, 0, 2]):
        vector_to_parameters(models[node], module.parameters())
        wanted = measured(objective, [(module(data.test_inputs).detach(), data.test_labels)])
        assert found.quality[place] == pytest.approx(wanted.score, rel=1e-5)
        assert found.loss[place] == pytest.approx(wanted.loss, rel=1e-5)


def test_a_silo_is_tested_on_its_own_part() -> None:
    said, data, module, models = setting()
    parts = tuple(np.arange(node, 700, N) for node in range(N))
    owned = dataclasses.replace(
        data, own_tests=parts, measure=lambda out, picked: {"first": float(picked[0]), "n": len(out)}
    )
    found = Examiner(network_for(module, "cross_entropy"), said, owned, models.device).examine(models, np.array([4, 3]))
    for place, node in enumerate([4, 3]):
        vector_to_parameters(models[node], module.parameters())
        index = torch.from_numpy(parts[node])
        wanted = measured("cross_entropy", [(module(data.test_inputs[index]).detach(), data.test_labels[index])])
        assert found.quality[place] == pytest.approx(wanted.accuracy)
    assert found.extra == {"first": 3.5, "n": (len(parts[4]) + len(parts[3])) / 2}


def test_equal_models_are_looked_at_once() -> None:
    *_, models = setting()
    found = distinct_of(models, np.arange(N))
    assert sorted(found.counts) == [1, 1, 1, 3]
    assert torch.equal(models[torch.from_numpy(found.nodes[found.of])], models)


def test_models_whose_bits_only_add_up_alike_are_told_apart() -> None:
    models = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    found = distinct_of(models, np.arange(3))
    assert torch.equal(models[torch.from_numpy(found.nodes[found.of])], models)


def test_consensus_is_the_distance_from_the_mean_in_norms_of_it() -> None:
    models = torch.tensor([[3.0, 0.0], [3.0, 8.0], [9.0, 9.0], [3.0, 8.0]])
    assert consensus_of(models, distinct_of(models, np.array([0, 1]))) == pytest.approx(4 / 5)
    assert consensus_of(models, distinct_of(models, np.array([0, 1, 3, 0]))) == pytest.approx(4 / 5)
    assert consensus_of(models, distinct_of(models, np.array([2]))) == 0
