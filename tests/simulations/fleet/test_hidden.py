"""Private groups of a fleet: the machines' very numbers, what losses do to them, and noise that the group shares."""

import numpy as np
import pytest
import torch
from lepton.gossip.private.masking import VALUE_MAX
from lepton.simulations.fleet.exchanges import traffic
from lepton.simulations.fleet.exchanges.fate import Fate
from lepton.simulations.fleet.exchanges.hidden import Hidden, clip_updates, mean_of
from lepton.simulations.fleet.exchanges.layout import Layout
from lepton.simulations.fleet.exchanges.ranks import Ranks, names_of

from .machines import MESH, TASK, Machines, private
from .walking import DIMENSION, moment, played, random_models, walkers


def hidden(nodes: int, size: int = 8, noise: float = 0.0, clip: float = 0.0) -> Hidden:
    return Hidden(Ranks(MESH, TASK, names_of(nodes)), size, noise, clip)


@pytest.mark.parametrize("count", [2, 3, 8, 20])
def test_rows_come_to_the_machines_very_numbers(count: int) -> None:
    machines = Machines(walkers(count), private(), rounds=5, local_steps=1)
    models, mixed = played(hidden(count), walkers(count), 5)
    assert np.array_equal(models, machines.models)
    assert (mixed[0].averaged.min() == 1) == (count == 2)


def test_bytes_are_those_that_machines_send() -> None:
    machines = Machines(walkers(8), private(), rounds=2, local_steps=1)
    sent, received = traffic.of_private(Layout(DIMENSION, 8, 1), names=2)
    assert sent.sum() * 2 == pytest.approx(machines.bytes_sent, rel=0.02)
    assert sent.sum() == received.sum()


def test_a_sum_wraps_as_32_bits_do() -> None:
    total = torch.tensor([2**31 + 5, -(2**31) - 5, 3, -(2**16)])
    expected = np.array([-(2**31) + 5, 2**31 - 5, 3, -(2**16)]) / 2**17
    np.testing.assert_array_equal(mean_of(total, 2), expected.astype(np.float32))


def test_as_many_rounds_are_skipped_as_by_machines_that_lose_messages() -> None:
    loss = 0.005
    machines = Machines(walkers(8, 16), private(), rounds=40, local_steps=1, loss=loss)
    told = np.mean([any(report.parts) for report in machines.reports])
    dice = np.random.default_rng(0)
    fates = [Fate.drawn(8, loss, dice) for _ in range(300)]
    assert np.mean([fate.reached.any(0).mean() for fate in fates]) == pytest.approx(told, abs=0.15)
    assert told < 0.8


def test_members_get_what_their_fate_is() -> None:
    after = random_models(80, 64)
    mixed = hidden(80).mix(moment(after, after.clone(), loss=0.01))
    skipped = torch.from_numpy(mixed.averaged == 1)
    assert torch.equal(mixed.models[skipped], after[skipped])
    assert 10 < int(skipped.sum()) < 70


def test_noise_is_shared_by_the_group_and_updates_are_clipped() -> None:
    before = torch.zeros(8, 20_000)
    after = torch.zeros(8, 20_000)
    after[:, 0] = 5.0
    mixed = hidden(8, noise=2.0, clip=1.0).mix(moment(before, after))
    spread = float(mixed.models[0, 1:].std()) * 8
    assert spread == pytest.approx(2.0 * (8 / 4) ** 0.5, rel=0.03)  # six survive at least, two of them may collude
    assert float(mixed.models[0, 0]) == pytest.approx(1.0, abs=5 * spread / 8)
    after = torch.zeros(8, 20_000)
    after[:, 0] = 5.0
    clip_updates(before, after, 1.0)
    np.testing.assert_allclose(after[:, 0], 1.0)


def test_who_has_too_large_a_value_takes_no_part() -> None:
    after = random_models(9, 64)
    after[4, 3], after[5, 2] = 2 * VALUE_MAX, float("nan")
    mixed = hidden(9).mix(moment(after, after.clone()))
    assert mixed.averaged.tolist() == [7, 7, 7, 7, 1, 1, 7, 7, 7]
    assert torch.isfinite(mixed.models[[0, 8]]).all()
