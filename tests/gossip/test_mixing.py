"""Means, the gate and patience: the small machines that a round is made of."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.codecs import Floats
from lepton.gossip.config import Config
from lepton.gossip.errors import BadContribution
from lepton.gossip.gate import Gate, check_weight, norm, norm_scale
from lepton.gossip.mixing import clip_weights, weighted_mean
from lepton.gossip.patience import Patience

LAN = Config.lan()


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


@given(st.permutations("abcdefgh"), st.integers(0, 99), st.integers(0, 70000))
def test_a_mean_is_exact_and_the_same_bits_in_every_order(order: list[str], seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    n = n if seed == 0 else n % 50
    vectors = {peer: rng.normal(size=n).astype(np.float32) for peer in "abcdefgh"}
    weights = {peer: float(rng.uniform(0.1, 1000)) for peer in "abcdefgh"}
    mean = weighted_mean(vectors, weights)
    again = weighted_mean({p: vectors[p] for p in order}, {p: weights[p] for p in order})
    assert mean.tobytes() == again.tobytes()
    for i in range(0, n, max(1, n // 5)):
        exact = sum(Fraction(float(vectors[p][i])) * Fraction(weights[p]) for p in order) / sum(
            map(Fraction, weights.values())
        )
        assert math.isclose(float(mean[i]), float(exact), rel_tol=1e-6, abs_tol=1e-7)


@given(st.dictionaries(st.text(max_size=3), st.floats(1e-3, 1e9), min_size=1), st.floats(1, 100))
def test_clipping_changes_only_the_heaviest(weights: dict[str, float], ratio: float) -> None:
    clipped = clip_weights(weights, ratio)
    limit = ratio * sorted(weights.values())[(len(weights) - 1) // 2]
    assert clipped == {peer: min(weight, limit) for peer, weight in weights.items()}


def test_of_two_peers_the_heavier_does_not_raise_its_own_limit() -> None:
    assert clip_weights({"a": 1.0, "b": 1e9}, 10) == {"a": 1.0, "b": 10.0}


@pytest.mark.parametrize(
    ("values", "weight", "words"),
    [
        (floats(1, np.nan, np.inf), 1.0, "eve: 2 of its 3 values are not finite"),
        (floats(1, 2), 1.0, r"eve: its values have shape \(2,\) where \(3,\) is due"),
        (np.ones((3, 1), dtype=np.float32), 1.0, r"eve: its values have shape \(3, 1\)"),
        (np.ones(3), 1.0, "eve: its values are float64 where float32 is due"),
        (floats(1, 1, 1), 0.0, "eve: its weight is 0.0; it must be above 0 and at most 1e"),
        (floats(1, 1, 1), -1.0, "eve: its weight is -1.0"),
        (floats(1, 1, 1), math.nan, "eve: its weight is nan"),
        (floats(1, 1, 1), math.inf, "eve: its weight is inf"),
        (floats(1, 1, 1), 1e12, "eve: its weight is 1000000000000.0"),
        (floats(5, 5, 5), 1.0, "eve: its norm is 5 times ours; at most 4 times is let in"),
        (floats(3e38, 3e38, 3e38), 1.0, "eve: its norm is 3e[+]38 times ours"),
    ],
)
def test_the_gate_names_who_what_and_how_much(values: Floats, weight: float, words: str) -> None:
    gate = Gate(LAN)
    with pytest.raises(BadContribution, match=words) as caught:
        gate.admit("eve", values, 3, weight, scale=math.sqrt(3))
    assert caught.value.peer == "eve"
    gate.admit("bob", floats(3.9, 3.9, 3.9), 3, 1.0, scale=math.sqrt(3))


def test_the_limit_stands_still_in_a_round_and_follows_the_majority_from_the_next() -> None:
    gate = Gate(LAN)
    big = floats(10, 0)
    for peer in "abc":
        with pytest.raises(BadContribution):
            gate.admit(peer, big, 2, 1.0, scale=1.0)
    gate.admit("me", floats(1, 0), 2, 1.0, scale=1.0)
    assert gate.norm_ratio_max == 4
    gate.settle()
    assert gate.norm_ratio_max == 40
    gate.admit("a", big, 2, 1.0, scale=1.0)
    gate.admit_mean("a", big, 2, scale=1.0)
    with pytest.raises(BadContribution, match="41 times ours"):
        gate.admit_mean("a", floats(41, 0), 2, scale=1.0)


def test_half_of_the_senders_do_not_move_the_limit_and_history_is_bounded() -> None:
    gate = Gate(LAN)
    for _ in range(200):
        gate.admit("me", floats(1), 1, 1.0, scale=1.0)
        with pytest.raises(BadContribution):
            gate.admit("eve", floats(1e9), 1, 1.0, scale=1.0)
        gate.settle()
    assert gate.norm_ratio_max == 4
    assert len(gate._history) == LAN.norm_history


def test_norms_are_compared_with_those_of_a_typical_part() -> None:
    assert norm(floats(3e38, 3e38)) == pytest.approx(3e38 * math.sqrt(2))
    assert norm_scale(floats(3, 4), rms=1.0) == 5
    assert norm_scale(floats(0, 0, 0, 0), rms=2.0) == 4  # biases that are still zero
    assert norm_scale(floats(0, 0, 0, 0), rms=0.0) == 2
    assert norm_scale(floats(), rms=3.0) == 3
    check_weight("a", 1e9, 1e9)


def waited(*durations: float) -> float:
    patience = Patience(Config(wait_s_initial=20, wait_s_min=1, wait_s_max=60, wait_history=4))
    for round_, duration in enumerate(durations):
        patience.record(round_, duration)
    return patience.wait_s


def test_patience_is_the_median_and_three_spreads_within_its_limits() -> None:
    assert waited() == waited(1, 1) == 20
    assert waited(0, 0, 0) == 1
    assert waited(10, 10, 10) == 11
    assert waited(10, 12, 14) == 18
    assert waited(2, 10, 20) == 30  # at most three medians
    assert waited(0.5, 0.5, 0.5) == 1.5
    assert waited(100, 100, 100) == 60
    assert waited(50, 50, 50, 10, 10, 10, 10) == 11  # the oldest are forgotten


def test_patience_takes_the_longest_of_one_round() -> None:
    patience = Patience(LAN)
    for round_ in range(3):
        patience.record(round_, 5)
        patience.record(round_, 2)
        patience.record(round_, 8)
    assert patience.wait_s == 9
