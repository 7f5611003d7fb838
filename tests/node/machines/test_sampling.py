"""Draws: as transformers shapes them, the same wherever they are made, and as often as their chances say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.generation.sampling import Sampling, probabilities, sample

LOGITS = np.random.default_rng(0).normal(size=64).astype(np.float32) * 3


@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 64, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1, 0.001]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_chances_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=64) * 3).astype(np.float32)
    context = rng.integers(0, 64, 20)
    wanted = torch.from_numpy(logits.copy())[None].double()
    steps: list[Any] = [warpers.RepetitionPenaltyLogitsProcessor(penalty)]
    steps.append(warpers.TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(warpers.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(warpers.TopPLogitsWarper(top_p))
    for step in steps:
        wanted = step(torch.from_numpy(context)[None], wanted)
    seen = np.unique(context)
    scores = logits.astype(np.float64)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    chances = probabilities(scores, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    np.testing.assert_allclose(chances, torch.softmax(wanted[0], -1).numpy(), rtol=1e-6, atol=1e-12)
    drawn = sample(
        logits,
        context.tolist(),
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty, seed=seed),
        5,
    )
    assert chances[drawn] > 0


def test_a_draw_follows_from_seed_and_position_alone() -> None:
    settings = Sampling(temperature=1.0, seed=11)
    draws = [sample(LOGITS, [], settings, position) for position in range(30)]
    assert [sample(LOGITS, [], settings, position) for position in reversed(range(30))] == draws[::-1]
    # As drawn when this was written: another order of the bits would break sessions between versions.
    assert draws[:8] == [24, 47, 49, 42, 49, 47, 47, 62]
    assert [sample(LOGITS, [], Sampling(temperature=1.0, seed=12), position) for position in range(30)] != draws


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    settings = Sampling(temperature=1.0, top_k=6, seed=2**63 - 1)
    chances = probabilities(LOGITS.astype(np.float64), settings)
    draws = np.bincount([sample(LOGITS, [], settings, position) for position in range(4000)], minlength=64)
    assert np.abs(draws / 4000 - chances).max() < 4 * np.sqrt(0.25 / 4000)


def test_greedy_takes_the_lowest_of_equal_ids_and_the_penalty_moves_it() -> None:
    logits = np.array([1, 3, 3, -1], np.float32)
    assert sample(logits, [], Sampling(), 0) == 1
    assert sample(logits, [1], Sampling(repetition_penalty=1.5), 0) == 2
    assert sample(-logits, [3], Sampling(repetition_penalty=1.5), 0) == 3  # 0.67 is still above -1
    assert sample(logits, [], Sampling(temperature=1e-300), 0) in {1, 2}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_not_drawn_from(value: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[7] = value
    with pytest.raises(UsageError, match="1 of 64 logits at position 9"):
        sample(logits, [], Sampling(temperature=temperature), 9)
