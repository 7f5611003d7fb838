"""Whatever is shuffled how: a pass takes every sample once, and step t takes the same ones whenever it is asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.node.learning.trainer import _Order
from lepton.simulations.fleet.batches import Batches, Deployed, Hashed, Passes, Plan

Counts = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def batches(counts: list[int], passes: Passes, size: int = 8, *, epochs: bool = False) -> Batches:
    starts = np.cumsum([0, *counts])
    return Batches(passes=passes, order=np.arange(starts[-1]) + 1000, starts=starts, batch_size=size, epochs=epochs)


def taken(plan: Plan, row: int, step: int) -> list[int]:
    return [int(place) for place in plan.places[step, row, : plan.sizes[step, row]]]


@given(counts=Counts, first=st.integers(0, 30), steps=st.integers(1, 9))
def test_deployed_batches_are_those_of_a_trainer(counts: list[int], first: int, steps: int) -> None:
    found = batches(counts, Deployed(7))
    nodes = np.arange(len(counts))
    plan = found.of_round(nodes, np.full(len(counts), first), np.full(len(counts), steps))
    for row, count in enumerate(counts):
        order = _Order(count, 7)
        for step in range(steps):
            wanted = order.batch(first + step, 8) + found.starts[row] + 1000
            assert taken(plan, row, step) == wanted.tolist()


@given(counts=Counts, passed=st.integers(0, 3))
def test_an_epoch_takes_every_sample_of_each_node_once(counts: list[int], passed: int) -> None:
    found = batches(counts, Hashed(3), epochs=True)
    nodes, steps = np.arange(len(counts)), found.steps_of_epochs(1)
    plan = found.of_round(nodes, passed * steps, steps)
    for row, count in enumerate(counts):
        seen = [place for step in range(int(steps[row])) for place in taken(plan, row, step)]
        assert sorted(seen) == (np.arange(count) + found.starts[row] + 1000).tolist()


@pytest.mark.parametrize("epochs", [True, False])
def test_a_step_takes_the_same_samples_in_whatever_round_and_company(*, epochs: bool) -> None:
    counts = [5, 23, 1, 9, 40]
    found = batches(counts, Hashed(3), epochs=epochs)
    together = found.of_round(np.arange(5), np.full(5, 2), np.full(5, 12))
    for node in range(5):
        alone = found.of_round(np.array([node]), np.array([7]), np.array([3]))
        assert [taken(alone, 0, step) for step in range(3)] == [taken(together, node, step) for step in (5, 6, 7)]


def test_nodes_passes_and_seeds_have_orders_of_their_own() -> None:
    nodes, counts = np.array([0, 1, 0]), np.full(3, 30)
    one = Hashed(1).shuffled(nodes, np.array([0, 0, 1]), counts).reshape(3, 30)
    other = Hashed(2).shuffled(nodes, np.array([0, 0, 1]), counts).reshape(3, 30)
    orders = {tuple(order) for order in (*one, *other)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(30)) for order in orders)


def test_who_takes_fewer_steps_leaves_the_rest_of_the_round_empty() -> None:
    plan = batches([20, 20], Hashed(1)).of_round(np.arange(2), np.zeros(2, dtype=np.int64), np.array([3, 1]))
    assert [len(taken(plan, row, step)) for row in range(2) for step in range(3)] == [8, 8, 8, 8, 0, 0]
