"""The robust mixer: the nearest few, clipped to their own median."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.robust import MODELS_MIN, distance, nearest_clipped
from lepton.simulations.attacks import ATTACKS, flip_labels


def models(n: int, *, seed: int = 0, spread: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=50)
    return {f"p{index}": (centre + spread * rng.normal(size=50)).astype(np.float32) for index in range(n)}


def test_among_equals_it_is_a_mean_of_the_nearer_ones() -> None:
    others = models(9)
    own = others.pop("p0")
    mixed = nearest_clipped(own, others)
    assert sorted(mixed.counted.values())[:2] == [0.0, 0.0]
    step = mixed.vector - own
    towards = np.mean([others[peer] - own for peer in others], axis=0)
    assert np.dot(step, towards) / np.linalg.norm(step) / np.linalg.norm(towards) > 0.9


@given(st.integers(0, 1000), st.floats(1.0, 1e6))
def test_no_two_of_eight_can_move_the_result_further_than_the_honest_are_apart(seed: int, size: float) -> None:
    others = models(9, seed=seed)
    own = others.pop("p0")
    honest = max(distance(own, vector) for vector in others.values())
    rng = np.random.default_rng(seed)
    for bad in ("p1", "p2"):
        others[bad] = (own + size * rng.normal(size=50)).astype(np.float32)
    mixed = nearest_clipped(own, others)
    assert distance(own, mixed.vector) <= honest * 1.001


def test_a_third_bad_one_is_clipped_to_the_median_of_the_kept() -> None:
    others = models(9)
    own = others.pop("p0")
    for bad in ("p1", "p2", "p3"):
        others[bad] = own + np.float32(100.0)
    mixed = nearest_clipped(own, others)
    kept = [factor for peer, factor in mixed.counted.items() if peer in {"p1", "p2", "p3"} and factor]
    assert len(kept) == 1
    assert kept[0] < 0.01


@pytest.mark.parametrize("n", range(MODELS_MIN))
def test_of_too_few_nothing_is_mixed(n: int) -> None:
    others = models(n + 1)
    own = others.pop("p0")
    mixed = nearest_clipped(own, others)
    np.testing.assert_array_equal(mixed.vector, own)
    assert mixed.vector is not own
    assert set(mixed.counted.values()) <= {0.0}


def test_equal_models_stay_what_they_are() -> None:
    own = models(1)["p0"]
    mixed = nearest_clipped(own, {f"p{index}": own.copy() for index in range(1, 6)})
    np.testing.assert_array_equal(mixed.vector, own)


def test_it_does_not_depend_on_the_order() -> None:
    others = models(9)
    own = others.pop("p0")
    one, other = nearest_clipped(own, others), nearest_clipped(own, dict(reversed(others.items())))
    assert one.vector.tobytes() == other.vector.tobytes()


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_are_finite_float32_and_not_what_an_honest_member_would_send(name: str) -> None:
    honest = np.stack(list(models(12).values()))
    last = honest.mean(axis=0) - np.float32(0.2)
    sent = ATTACKS[name](honest, honest[0], last, np.random.default_rng(1))
    assert sent.shape == honest[0].shape
    assert sent.dtype == np.float32
    assert np.isfinite(sent).all()
    assert distance(sent, honest[0]) > 0.1


def test_the_insider_stays_within_the_distances_of_the_honest() -> None:
    honest = np.stack(list(models(12).values()))
    mean = honest.mean(axis=0)
    sent = ATTACKS["insider"](honest, honest[0], mean - np.float32(0.2), np.random.default_rng(1))
    assert distance(sent, mean) <= np.median([distance(mean, row) for row in honest])


def test_flipped_labels_are_a_permutation() -> None:
    np.testing.assert_array_equal(flip_labels(np.array([0, 3, 9]), 10), [9, 6, 0])
