"""What of a module travels: parameters and moments of batch normalisation, and nothing that is frozen or local."""

from typing import Any

import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.node.learning.settings import Parts
from lepton.node.learning.shared import Shared
from torch import nn


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return nn.Sequential(*layers).to(dtype)


def test_what_was_read_can_be_written_and_is_a_copy() -> None:
    one, other = Shared(network(0)), Shared(network(1))
    vector = one.read()
    assert vector.dtype == np.float32
    assert vector.shape == (one.size,)
    assert not np.array_equal(vector, other.read())
    other.write(vector)
    np.testing.assert_array_equal(other.read(), vector)
    vector[:] = 0
    assert other.read().any()


def test_averaged_statistics_are_those_of_all_data_together() -> None:
    """Two nodes with different images: the average has the mean and variance of both sets in one."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.normal(shift, 1 + shift, (64, 4, 6, 6)).astype(np.float32)) for shift in (0, 3)]
    norms = []
    for x in images:
        module = nn.Sequential(nn.BatchNorm2d(4, momentum=1.0))  # the last batch counts, and is all there is
        module(x)
        norms.append(module)
    both = torch.cat(images)
    plain = np.mean([module.state_dict()["0.running_var"].numpy() for module in norms], axis=0)
    assert (plain < both.var((0, 2, 3)).numpy() - 1).all()  # what averaging variances would have given
    Shared(norms[0]).write(np.mean([Shared(module).read() for module in norms], axis=0))
    state = norms[0].state_dict()
    torch.testing.assert_close(state["0.running_mean"], both.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state["0.running_var"], both.var((0, 2, 3)), rtol=1e-2, atol=1e-2)


def test_rounding_never_makes_a_variance_negative() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    shared = Shared(module)
    vector = shared.read()
    vector[-4:-2] = 5.0  # means
    vector[-2:] = 24.99  # moments that are a little too small for them
    shared.write(vector)
    assert isinstance(module[0], nn.BatchNorm1d)
    assert module[0].running_var is not None
    assert (module[0].running_var == 0).all()


def test_bfloat16_travels_as_float32_and_comes_back_as_it_was() -> None:
    module = network(dtype=torch.bfloat16)
    shared = Shared(module)
    before = [parameter.clone() for parameter in module.parameters()]
    shared.write(shared.read())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert module[0].weight.dtype == torch.bfloat16


def test_frozen_parameters_do_not_travel_and_are_not_trained() -> None:
    module = network()
    shared = Shared(module, Parts(train=("4.*",)))
    assert [parameter.requires_grad for parameter in module.parameters()] == [False] * 4 + [True] * 2
    assert shared.size == 4 * 36 * 3 + 3 + 8  # the head, and what batch normalisation has seen
    assert shared.local == []


def test_local_layers_are_trained_and_stay() -> None:
    module = network()
    shared = Shared(module, Parts(local=("4.*",)))
    head = module.state_dict()["4.weight"].clone()
    other = Shared(network(1), Parts(local=("4.*",)))
    shared.write(other.read())
    assert torch.equal(module.state_dict()["4.weight"], head)
    assert shared.read_local().shape == (4 * 36 * 3 + 3,)
    assert module[4].weight.requires_grad
    shared.write_local(other.read_local())
    np.testing.assert_array_equal(shared.read_local(), other.read_local())
    with pytest.raises(UsageError, match="435 local parameters"):
        shared.write_local(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (Parts(train=("5.*",)), r"'5\.\*' fits no parameter of this model; it has 0\.weight"),
        (Parts(local=("heads.*",)), "fits no parameter"),
        (Parts(local=("*",)), "no parameter of this model would be averaged"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_named(parts: Parts, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Shared(network(), parts)


def test_what_does_not_fit_changes_nothing() -> None:
    shared = Shared(network())
    vector = shared.read()
    bads: list[Any] = [vector[1:], vector.astype(np.float64), np.full_like(vector, np.nan)]
    for bad in bads:
        with pytest.raises(UsageError):
            shared.write(bad)
    np.testing.assert_array_equal(shared.read(), vector)
