"""Attacks on a fleet are those that the table of the policy `robust` is about."""

from typing import get_args

import numpy as np
import pytest
import torch
from lepton.simulations import attacks as one_by_one
from lepton.simulations.fleet.attacks import ATTACKS, SIZE_MAX, attack, give_back
from lepton.simulations.fleet.fleet import Fleet
from lepton.simulations.fleet.scenario import AttackKind, Averaging, Faults, Model, Scenario

from .crowds import population
from .walking import random_models

BAD = np.arange(20) % 5 == 1
HERE = np.arange(20) != 6  # an attacker among them


def flags(of: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(of)


@pytest.mark.parametrize("kind", ["sign_flip", "scaled", "insider"])
def test_what_is_sent_is_the_attack_of_one(kind: AttackKind) -> None:
    before, after = random_models(20, 50), random_models(20, 50, seed=1)
    honest, last = after[flags(~BAD & HERE)].numpy(), before[flags(~BAD & HERE)].mean(0).numpy()
    sent = after.clone()
    dice = np.random.default_rng(0)
    own = attack(kind, before, sent, here=HERE, bad=BAD, dice=dice)
    for node in range(20):
        expected = after[node].numpy()
        if BAD[node] and HERE[node]:
            expected = one_by_one.ATTACKS[kind](honest, expected, last, dice)
        np.testing.assert_allclose(sent[node], expected, atol=1e-4)
    give_back(kind, sent, own, here=HERE, bad=BAD)
    assert torch.equal(sent, after)


@pytest.mark.parametrize(("kind", "size"), [("replacement", 16.0), ("noise", 1.0)])
def test_noise_has_the_size_that_is_said(kind: AttackKind, size: float) -> None:
    after = random_models(20, 5000)
    sent = after.clone()
    attack(kind, after, sent, here=HERE, bad=BAD, dice=np.random.default_rng(0))
    assert float(sent[flags(BAD & HERE)].std()) == pytest.approx(size, rel=0.1)


def test_who_only_has_false_labels_sends_what_it_learned_and_takes_the_mean() -> None:
    after = random_models(20, 50)
    sent = after.clone()
    own = attack("label_flip", after, sent, here=HERE, bad=BAD, dice=np.random.default_rng(0))
    assert torch.equal(sent, after)
    give_back("label_flip", sent.zero_(), own, here=HERE, bad=BAD)
    assert not sent.any()
    assert set(get_args(AttackKind)) == {*ATTACKS, "label_flip"}


def test_what_is_sent_is_a_number_that_can_be_sent() -> None:
    before, after = torch.zeros(20, 9), random_models(20, 9) * 1e30
    attack("scaled", before, after, here=HERE, bad=BAD, dice=np.random.default_rng(0))
    assert after[flags(BAD & HERE)].abs().max() == SIZE_MAX


@pytest.mark.parametrize(
    ("averaging", "learned"),
    [(Averaging(group_size=4), False), (Averaging(topology="pull", degree=8, policy="robust"), True)],
)
def test_robust_pulling_withstands_what_pulls_groups_down(averaging: Averaging, learned: bool) -> None:
    said = Scenario(
        about="attacked", nodes=20, rounds=15, evaluate_every=15, model=Model(architecture="linear"),
        averaging=averaging, faults=Faults(attackers=0.2, attack="sign_flip"),
    )  # fmt: skip
    [row] = Fleet(said, population([20] * 20, test=200)).rounds()
    assert (row.mean > 0.85) == learned
