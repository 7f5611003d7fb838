"""Groups of a fleet: the same groups, means, gates and bytes as those of the machines."""

from typing import Any

import numpy as np
import pytest
import torch
from lepton.gossip.config import Config
from lepton.gossip.gate import Gate
from lepton.gossip.groups import groups
from lepton.gossip.mixing import clip_weights
from lepton.simulations.fleet.exchange import Remembering
from lepton.simulations.fleet.exchanges import traffic
from lepton.simulations.fleet.exchanges.gates import Gates, clipped
from lepton.simulations.fleet.exchanges.grouped import Grouped
from lepton.simulations.fleet.exchanges.layout import Layout
from lepton.simulations.fleet.exchanges.plainly import shares_of
from lepton.simulations.fleet.exchanges.ranks import Ranks, names_of
from lepton.simulations.fleet.exchanges.rounding import rounding

from ...bench.virtual import VirtualMesh
from .walking import DIMENSION, Walker, moment, played, random_models, walkers


class Standing(Walker):
    """Does not walk."""

    def run_steps(self, steps: int) -> None:
        pass


def machines(count: int, rounds: int, codec: str, **changes: Any) -> tuple[np.ndarray, VirtualMesh]:
    mesh = VirtualMesh(walkers(count, **changes), rounds=rounds, local_steps=1, codec=codec)  # type: ignore[arg-type]
    mesh.run()
    return np.stack([node.trainer.vector() for node in mesh.nodes.values()]), mesh


def grouped(nodes: int, codec: str, size: int = 8, **changes: Any) -> Grouped:
    return Grouped(nodes, rounding(codec), size=size, mesh=b"bench", task="bench", **changes)


@pytest.mark.parametrize("count", [2, 7, 8, 9, 17, 100])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_groups_are_those_of_the_machines(count: int, size: int) -> None:
    names = names_of(count)
    ranks = Ranks(b"mesh", "task", names)
    for round_ in (0, 7):
        found = ranks.groups(round_, np.arange(count), size)
        named = {tuple(names[row] for row in group) for sized in found for group in sized}
        assert named == set(groups(b"mesh", "task", round_, names, size))


@pytest.mark.parametrize("count", [8, 20])
def test_rows_come_to_what_machines_come_to(count: int) -> None:
    of_machines, _ = machines(count, 5, "float32")
    of_rows, _ = played(grouped(count, "float32"), walkers(count), 5)
    np.testing.assert_allclose(of_rows, of_machines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", ["float16", "int8", "int4"])
@pytest.mark.parametrize("count", [8, 20])
def test_rounded_rows_err_as_much_as_machines_do(codec: str, count: int) -> None:
    exact, _ = machines(count, 5, "float32")
    of_machines, _ = machines(count, 5, codec)
    of_rows, _ = played(grouped(count, codec), walkers(count), 5)
    error, theirs = (float(np.sqrt(np.mean((each - exact) ** 2))) for each in (of_rows, of_machines))
    assert 0.8 * theirs < error < 1.25 * theirs


@pytest.mark.parametrize(("codec", "loss", "within"), [("float32", 0.0, 0.02), ("int8", 0.0, 0.02), ("int8", 0.1, 0.2)])
def test_bytes_are_those_that_machines_send(codec: str, loss: float, within: float) -> None:
    mesh = VirtualMesh(walkers(8, 4810), rounds=10, local_steps=1, codec=codec, loss=loss)  # type: ignore[arg-type]
    mesh.run()
    sent, _ = traffic.of_groups(Layout(4810, 8, 1), rounding(codec), loss, names=2, instance=1)
    assert sent.sum() * 10 == pytest.approx(mesh.bytes_sent, rel=within)


def test_a_gate_remembers_what_the_machines_gate_does() -> None:
    config, dice = Config(norm_history=16), np.random.default_rng(0)
    gate, gates = Gate(config), Gates(3, config)
    for _ in range(6):
        ratios = np.exp(dice.normal(0.5, 1, 5)).astype(np.float32)
        assert gates.limits()[1].item() == pytest.approx(gate.norm_ratio_max)
        gate._seen = {str(peer): float(ratio) for peer, ratio in enumerate(ratios)}
        gate.settle()
        gates.settle(np.array([1]), ratios[None].astype(float))
    assert gates.limits()[0].item() == 4.0


def test_weights_are_clipped_as_the_machines_clip_them() -> None:
    weights = np.array([1.0, 2.0, 900.0, 30.0, 5.0, 1.0])
    admitted = np.array([True, True, True, False, True, True])
    named = clip_weights({str(i): weight for i, weight in enumerate(weights) if admitted[i]}, 10.0)
    expected = np.array([named.get(str(i), 0.0) for i in range(6)]) / sum(named.values())
    found = clipped(torch.from_numpy(weights), torch.from_numpy(admitted), 10.0)
    np.testing.assert_allclose(found.numpy(), expected)


def test_where_nobody_is_refused_the_short_way_to_shares_is_the_long_one() -> None:
    weights = np.exp(np.random.default_rng(0).normal(0, 3, (20, 7)))
    found = clipped(torch.from_numpy(weights), torch.ones(20, 7, dtype=torch.bool), 10.0)
    np.testing.assert_allclose(shares_of(weights), found.numpy())


@pytest.mark.parametrize(("factor", "part"), [(1.0, 1.0), (50.0, 1.0), (1.0, 50.0)])
def test_the_short_way_through_a_group_comes_to_what_the_long_one_does(factor: float, part: float) -> None:
    before, after = random_models(40), random_models(40, seed=1)
    after[[3, 17]] *= factor
    after[:, : DIMENSION // 8] *= part  # a mean that those two refuse, of models that all owners let in
    after[[3, 17], : DIMENSION // 8] /= part
    short, long = grouped(40, "float32"), grouped(40, "float32")
    long._mix_plainly = lambda _moment, groups, *_: groups  # type: ignore[method-assign]
    for round_ in range(3):
        one, other = (each.mix(moment(before, after.clone(), round=round_)) for each in (short, long))
        np.testing.assert_allclose(one.models, other.models, rtol=0, atol=1e-6)
        assert one.averaged.tolist() == other.averaged.tolist()
        assert (one.averaged == 8).any()
        np.testing.assert_allclose(short.memory["norms"], long.memory["norms"], rtol=1e-5)


@pytest.mark.parametrize("factor", [50.0, 5.0])
def test_machines_refuse_what_rows_refuse(factor: float) -> None:
    """A model too large is in no mean but that of the part that its node averages, which others refuse if they can."""
    after = random_models(8) * 0.1
    after[2] *= factor
    mesh = VirtualMesh([Standing(0, row.numpy()) for row in after], rounds=1, local_steps=1, codec="float32")  # type: ignore[misc]
    mesh.run()
    mixed = grouped(8, "float32").mix(moment(after[:1].repeat(8, 1), after))
    np.testing.assert_allclose(mixed.models, [node.shared for node in mesh.nodes.values()], rtol=0, atol=1e-6)
    assert mixed.averaged.tolist() == [7] * 8


def test_where_members_began_apart_a_refused_part_stays_everybodys_own() -> None:
    after = random_models(8)
    after[2] *= 50
    own, part = after.clone(), Layout(DIMENSION, 8, 1).places[2]
    models = grouped(8, "float32").mix(moment(random_models(8, seed=1), after)).models
    assert torch.equal(models[:, part], own[:, part])
    assert torch.equal(models[0, : part.start], models[7, : part.start])


def test_away_nodes_keep_what_they_had_and_send_nothing() -> None:
    before, after = random_models(20), random_models(20, seed=1)
    here = np.arange(20) % 3 > 0
    mixed = grouped(20, "int8").mix(moment(before, after, here=here))
    assert torch.equal(mixed.models[~torch.from_numpy(here)], before[~torch.from_numpy(here)])
    assert not mixed.bytes_sent[~here].any()
    assert mixed.bytes_sent[here].all()
    assert mixed.averaged[here].min() >= 6


def test_a_gate_goes_on_from_a_memory() -> None:
    one, other = grouped(16, "float32"), grouped(16, "float32")
    for round_ in range(3):
        one.mix(moment(random_models(16, seed=round_), random_models(16, seed=round_) * (1 + round_), round=round_))
    other.recall({name: held.copy() for name, held in one.memory.items()})
    assert torch.equal(one.gates.limits(), other.gates.limits())
    assert isinstance(one, Remembering)
