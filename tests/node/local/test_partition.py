"""Every sample goes to exactly one node, unevenly as asked, and nobody goes without."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.learning.partition import partition_dirichlet


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.01, 0.3, 5.0]), st.integers(0, 10))
def test_each_sample_has_one_owner_and_each_node_its_least(seed: int, nodes: int, alpha: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 7, 600)
    parts = partition_dirichlet(y, nodes, alpha, rng, least=least)
    assert len(parts) == nodes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(600))
    assert min(len(part) for part in parts) >= least


def test_a_seed_gives_one_division() -> None:
    y = np.arange(1000) % 10
    first, second = (partition_dirichlet(y, 4, 0.3, np.random.default_rng(5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_alpha_says_how_uneven() -> None:
    y = np.arange(10_000) % 10

    def largest_share(alpha: float) -> float:
        parts = partition_dirichlet(y, 10, alpha, np.random.default_rng(1), least=0)
        return float(np.mean([np.bincount(y[part], minlength=10).max() / max(1, len(part)) for part in parts]))

    assert largest_share(100) < 0.15
    assert largest_share(0.1) > 0.35


@pytest.mark.parametrize(
    ("nodes", "alpha", "message"),
    [(0, 1, "nodes=0"), (2, 0, "alpha=0"), (2, float("nan"), "alpha=nan"), (11, 1, "cannot give 11 nodes 10 each")],
)
def test_a_division_that_cannot_be_is_refused(nodes: int, alpha: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partition_dirichlet(np.zeros(100, np.int64), nodes, alpha, np.random.default_rng(0))
