"""A task ends for all at once: budgets are kept, rules are followed, and nobody leaves the others in a round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.node.learning.ending import LEAD_ROUNDS_MIN, LEAD_S, Ending
from lepton.node.learning.settings import Budget, Stop


def run(ending: Ending, *, round_s: float = 1.0, round_bytes: int = 10, accuracy: float | None = None) -> int:
    """Go on round by round until it is over; returns after how many."""
    rounds = 0
    ending.decide(rounds, seconds=0.0, bytes_sent=0, scores=[])
    while rounds < ending.rounds:
        rounds += 1
        ending.evaluated([accuracy])
        ending.decide(rounds, seconds=rounds * round_s, bytes_sent=rounds * round_bytes, scores=[accuracy])
    return rounds


def test_without_rules_it_ends_with_its_rounds() -> None:
    assert run(Ending(Budget(rounds=30), Stop())) == 30


@pytest.mark.parametrize("round_s", [0.001, 0.1, 1.0, 60.0])
def test_budgets_are_kept_to_the_round(round_s: float) -> None:
    assert run(Ending(Budget(seconds=40.5 * round_s), Stop()), round_s=round_s) == 40
    assert run(Ending(Budget(bytes=405), Stop()), round_s=round_s) == 40


def test_a_slow_start_does_not_end_it() -> None:
    ending = Ending(Budget(rounds=1000, seconds=60.0), Stop())
    ending.decide(0, seconds=0.0, bytes_sent=0, scores=[])
    for rounds in range(1, 20):
        assert not ending.decide(rounds, seconds=25.0 + 0.1 * rounds, bytes_sent=0, scores=[])


def test_a_budget_that_is_gone_at_once_still_ends_it() -> None:
    assert run(Ending(Budget(seconds=0.1), Stop()), round_s=50.0) == 2


@pytest.mark.parametrize("round_s", [0.1, 1.0, 60.0])
def test_the_end_is_named_so_far_ahead_that_all_can_hear_of_it(round_s: float) -> None:
    ending = Ending(Budget(rounds=10_000), Stop(accuracy=0.9))
    assert not ending.decide(5, seconds=5 * round_s, bytes_sent=0, scores=[0.95, 0.89])
    assert not ending.decide(6, seconds=6 * round_s, bytes_sent=0, scores=[0.95, None])
    assert ending.decide(7, seconds=7 * round_s, bytes_sent=0, scores=[0.95, 0.9])
    assert ending.named is not None
    assert (ending.named - 7) * round_s >= LEAD_S - 1e-9
    assert ending.named - 7 >= LEAD_ROUNDS_MIN
    assert not ending.decide(8, seconds=8 * round_s, bytes_sent=0, scores=[0.99])  # it names one only once


def test_what_does_not_get_better_ends() -> None:
    assert run(Ending(Budget(rounds=1000), Stop(no_better=5)), accuracy=0.5) == 6 + 2
    better = Ending(Budget(rounds=1000), Stop(no_better=2))
    for step in range(10):
        better.evaluated([step / 10, None])
        assert not better.decide(step + 1, seconds=step, bytes_sent=0, scores=[])


def test_nobody_can_end_a_task_that_has_no_such_rule() -> None:
    ending = Ending(Budget(rounds=30), Stop())
    ending.follow([0, 3, None], 2)
    assert ending.rounds == 30


@given(st.lists(st.floats(0.2, 5.0), min_size=2, max_size=6), st.integers(0, 1), st.integers(0, 49))
def test_nodes_that_hear_of_each_other_in_time_end_in_the_same_round(
    speeds: list[float], delay: int, seconds: int
) -> None:
    """They run in step, as exchanges make them; each counts its own seconds, and hears the others' ends late."""
    nodes = [Ending(Budget(rounds=500, seconds=100.0 + seconds), Stop()) for _ in speeds]
    for node in nodes:
        node.decide(0, seconds=0.0, bytes_sent=0, scores=[])
    heard: list[list[int | None]] = []
    ends: dict[int, int] = {}
    for rounds in range(1, 501):
        heard.append([node.named for node in nodes])
        for index, (node, round_s) in enumerate(zip(nodes, speeds, strict=True)):
            if index in ends:
                continue
            node.decide(rounds, seconds=rounds * round_s, bytes_sent=0, scores=[])
            late = heard[max(0, len(heard) - 1 - delay)]
            node.follow(late, rounds)
            if rounds >= node.rounds:
                ends[index] = rounds
    assert len(set(ends.values())) == 1
