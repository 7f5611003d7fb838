"""Pulling in a fleet: the machines' robust mixing, row by row, and who is asked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.codecs import CODECS
from lepton.gossip.robust import nearest_clipped
from lepton.simulations.fleet.exchanges.pulled import Pulled, choose
from lepton.simulations.fleet.exchanges.pulled import nearest_clipped as of_rows
from lepton.simulations.fleet.exchanges.rounding import rounding

from .walking import moment, random_models


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 99))
def test_everybody_asks_others_each_once(count: int, k: int, seed: int) -> None:
    chosen = choose(count, k, np.random.default_rng(seed))
    assert chosen.shape == (count, min(k, count - 1))
    for me, asked in enumerate(chosen.tolist()):
        assert sorted(set(asked)) == asked
        assert set(asked) <= set(range(count)) - {me}


def test_everybody_is_asked_about_equally_often() -> None:
    chosen = choose(20, 4, np.random.default_rng(0))
    for seed in range(1, 200):
        chosen = np.concatenate([chosen, choose(20, 4, np.random.default_rng(seed))])
    often = np.bincount(chosen.ravel(), minlength=20)
    assert abs(often - 800).max() < 5 * 800**0.5


@given(st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_robust_rows_are_what_the_machine_mixes(count: int, seed: int, twins: bool) -> None:
    dice = np.random.default_rng(seed)
    own, others = dice.standard_normal(50), dice.standard_normal((count, 50)) * dice.uniform(0.5, 3, (count, 1))
    if twins and count > 1:
        others[0], others[1] = own, others[-1]
    vectors = {f"{number:02}": other.astype(np.float32) for number, other in enumerate(others)}
    mixed = nearest_clipped(own.astype(np.float32), vectors)
    apart = torch.from_numpy(others - own).float().view(1, count, 50)
    shares = of_rows(torch.linalg.vector_norm(apart, dim=2), torch.ones(1, count, dtype=torch.bool))
    np.testing.assert_allclose(own + (shares @ apart.view(count, 50)).numpy()[0], mixed.vector, atol=1e-5)


def test_what_did_not_come_does_not_count() -> None:
    distances, arrived = torch.tensor([[3.0, 1.0, 2.0, 9.0, 4.0]]), torch.tensor([[True, False, True, True, True]])
    shares = of_rows(distances, arrived)  # of 2, 3, 4 and 9 the last is dropped; 3 is the median
    np.testing.assert_allclose(shares, [[1 / 4, 0, 1 / 4, 0, 3 / 4 / 4]])
    assert of_rows(distances, arrived & (distances > 2.5)).sum() > 0
    assert of_rows(distances, arrived & (distances > 3.5)).sum() == 0  # of two it cannot be said which is the odd one


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_all_rows_mix_what_they_asked_for(codec: str) -> None:
    before, after, own = random_models(30, 600, 1), random_models(30, 600) * 0.1, random_models(30, 600) * 0.1
    exchange = Pulled(rounding(codec), 8, robust=True)
    mixed = exchange.mix(moment(before, after))
    dice = np.random.default_rng(5)
    asked = choose(30, 8, dice)
    dice.random((2, *asked.shape))
    offered = rounding(codec).through(own.clone(), dice)
    for me, peers in enumerate(asked):
        expected = nearest_clipped(own[me].numpy(), {f"{peer:02}": offered[peer].numpy() for peer in peers})
        np.testing.assert_allclose(mixed.models[me], expected.vector, atol=1e-6)
    assert mixed.averaged.tolist() == [7] * 30
    answers = np.bincount(asked.ravel(), minlength=30)
    assert (mixed.bytes_sent - answers * CODECS[codec].size_bytes(600) >= 0).all()
    assert mixed.bytes_sent.sum() == mixed.bytes_received.sum()


def test_plain_pulling_takes_the_mean_and_losses_leave_models_out() -> None:
    after = random_models(200, 20)
    mixed = Pulled(rounding("float32"), 8, robust=False).mix(moment(after, after.clone(), loss=0.3))
    assert 1 + 8 * 0.44 < mixed.averaged.mean() < 1 + 8 * 0.54  # both ways: 0.7 squared
    assert mixed.bytes_sent.sum() > mixed.bytes_received.sum()
    full = Pulled(rounding("float32"), 8, robust=False).mix(moment(after, after.clone()))
    asked = choose(200, 8, np.random.default_rng(5))
    np.testing.assert_allclose(full.models[7], (after[7] + after[asked[7]].sum(0)) / 9, atol=1e-6)
