"""Groups of a fleet: the same groups, means, gates and bytes as those of the machines."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lepton.gossip.config import Config
from lepton.gossip.gate import Gate
from lepton.gossip.groups import groups
from lepton.gossip.mixing import clip_weights
from lepton.simulations.fleet.exchange import Moment
from lepton.simulations.fleet.exchanges import traffic
from lepton.simulations.fleet.exchanges.gates import Gates, clipped
from lepton.simulations.fleet.exchanges.grouped import Grouped
from lepton.simulations.fleet.exchanges.layout import Layout
from lepton.simulations.fleet.exchanges.ranks import Ranks, names_of
from lepton.simulations.fleet.exchanges.rounding import rounding

from ..bench.virtual import VirtualMesh

DIMENSION = 1003


class Walker:
    """Stands where a trainer does: steps that depend on where it is, so that errors would not stay small."""

    def __init__(self, number: int, dimension: int, start: np.ndarray) -> None:
        self.samples = 10 + 7 * number
        self._dice = np.random.default_rng(number)
        self._x = start.copy()

    def vector(self) -> np.ndarray:
        return self._x.copy()

    def run_steps(self, steps: int) -> None:
        self._x = (self._x * 0.9 + 0.02 * self._dice.standard_normal(self._x.size)).astype(np.float32)

    def adopt(self, vector: np.ndarray, *, averaged: bool = False) -> None:
        self._x = vector.copy()

    def evaluate(self) -> Any:
        return SimpleNamespace(accuracy=0.0)


def walkers(count: int, dimension: int = DIMENSION) -> list[Walker]:
    start = np.random.default_rng(99).standard_normal(dimension).astype(np.float32) * np.float32(0.1)
    return [Walker(number, dimension, start) for number in range(count)]


def stacked(walking: Sequence[Walker]) -> torch.Tensor:
    return torch.from_numpy(np.stack([walker.vector() for walker in walking]))


def played(exchange: Any, walking: Sequence[Walker], rounds: int, **changes: Any) -> tuple[np.ndarray, list[Any]]:
    """Let rows walk and exchange; return the models and what each round came to."""
    mixed = []
    for round_ in range(rounds):
        before = stacked(walking)
        for walker in walking:
            walker.run_steps(1)
        weights = np.array([float(walker.samples) for walker in walking])
        dice = np.random.default_rng(round_)
        mixed.append(
            exchange.mix(moment(before, stacked(walking), round=round_, dice=dice, weights=weights, **changes))
        )
        for walker, model in zip(walking, mixed[-1].models.numpy(), strict=True):
            walker.adopt(model)
    return stacked(walking).numpy(), mixed


def moment(before: torch.Tensor, after: torch.Tensor, **changes: Any) -> Moment:
    nodes = len(before)
    settings: dict[str, Any] = {
        "round": 0, "here": np.ones(nodes, dtype=bool), "weights": np.ones(nodes), "loss": 0.0,
        "dice": np.random.default_rng(5),
    }  # fmt: skip
    return Moment(before=before, after=after, **(settings | changes))


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


def test_a_model_that_is_far_too_large_is_left_out_of_all_means() -> None:
    after = torch.from_numpy(np.random.default_rng(3).standard_normal((8, DIMENSION)).astype(np.float32))
    honest = after.clone()
    after[2] *= 50
    result = grouped(8, "float32").mix(moment(torch.zeros_like(after), after))
    others = [row for row in range(8) if row != 2]
    mean = honest[others].mean(0)
    part = slice(252, 378)  # the part that the large one averages: it takes its own in, and nobody takes its mean
    assert (result.averaged == 7).sum() + (result.averaged == 1).sum() == 8
    outside = np.delete(np.arange(DIMENSION), np.arange(part.start, part.stop))
    adopted = result.models[others][:, outside]
    assert torch.allclose(adopted, mean[outside].expand_as(adopted), atol=1e-6) or (result.averaged == 1).all()
