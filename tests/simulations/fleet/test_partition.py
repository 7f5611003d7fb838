"""A split is a partition: nothing is lost, nothing is held twice, nobody is left without a sample."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.simulations.fleet.partition import Indices, Labels, partition
from lepton.simulations.fleet.scenario import Data, Split

SPLITS: tuple[Split, ...] = ("even", "dirichlet", "shards", "quantity")


def split(data: Data, labels: Labels, nodes: int, seed: int = 0, silos: Indices | None = None) -> list[Indices]:
    order, starts = partition(data, labels, nodes, np.random.default_rng(seed), silos=silos)
    assert starts[0] == 0
    assert starts[-1] == len(order)
    return [order[start:end] for start, end in pairwise(starts)]


@given(
    how=st.sampled_from(SPLITS),
    samples=st.integers(1, 200),
    nodes=st.integers(1, 60),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    shards=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_sample_is_held_equally_often_and_nobody_has_none(
    how: Split, samples: int, nodes: int, alpha: float, shards: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, samples)
    parts = split(Data(split=how, alpha=alpha, shards=shards), labels, nodes, seed)
    held = np.bincount(np.concatenate(parts), minlength=samples)
    needed = 1 if nodes == 1 else nodes * (shards if how == "shards" else 1)
    assert set(held) == {-(-needed // samples)}  # once each, where there are enough
    assert len(parts) == nodes
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize("how", SPLITS)
def test_a_seed_is_a_split(how: Split) -> None:
    labels = np.arange(500) % 10
    one, same, other = (split(Data(split=how), labels, 20, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, one, same))
    assert not all(map(np.array_equal, one, other))


def test_an_even_split_is_even() -> None:
    assert {len(part) for part in split(Data(split="even"), np.zeros(103, np.int64), 10)} == {10, 11}


def test_a_node_has_few_labels_with_a_small_alpha_and_all_with_a_large_one() -> None:
    labels = np.arange(10_000) % 10
    counts = {
        alpha: np.mean([len(np.unique(labels[part])) for part in split(Data(alpha=alpha), labels, 50)])
        for alpha in (0.01, 100.0)
    }
    assert counts[0.01] < 2.5
    assert counts[100.0] == 10


def test_two_shards_are_two_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(6_000) % 10)
    parts = split(Data(split="shards", shards=2), labels, 10)
    assert {len(part) for part in parts} == {600}
    assert max(len(np.unique(labels[part])) for part in parts) == 2


def test_sizes_are_skewed_and_labels_are_not() -> None:
    labels = np.arange(20_000) % 10
    parts = split(Data(split="quantity", alpha=0.5), labels, 20)
    sizes = sorted(map(len, parts))
    assert sizes[-1] > 20 * max(sizes[0], 1)
    assert len(np.unique(labels[max(parts, key=len)])) == 10


def test_silos_stay_whole_and_those_that_are_no_node_are_left_out() -> None:
    silos = np.array([2, 0, 1, 0, 2, 2])
    parts = split(Data(split="silo"), np.zeros(6, np.int64), 2, silos=silos)
    assert [part.tolist() for part in parts] == [[1, 3], [2]]


def test_values_are_split_where_that_makes_sense() -> None:
    values = np.random.default_rng(0).normal(size=(90, 1)).astype(np.float32)
    means = [values[part].mean() for part in split(Data(split="shards", shards=1), values, 3)]
    assert max(means) - min(means) > 1.5  # sorted by value
    with pytest.raises(UsageError, match="'dirichlet' goes by classes"):
        split(Data(split="dirichlet"), values, 3)
    with pytest.raises(UsageError, match="2 values each"):
        split(Data(split="shards"), np.zeros((9, 2), np.float32), 3)


@pytest.mark.parametrize(("silos", "said"), [(None, "no silos"), (np.zeros(5, np.int64), "at most 1 nodes")])
def test_silos_have_to_be_there(silos: Indices | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split(Data(split="silo"), np.zeros(5, np.int64), 2, silos=silos)
