"""Routes follow the smallest expected step, keep caches when mended, and beat round robin and chance under load."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.node.routing import Replica, choose_route, lacking

RNG = random.Random(0)


def test_the_smallest_expected_step_counts_speed_and_load() -> None:
    idle = Replica(peer="slow", step_s=0.03, sessions=0, heard_at=9.0)
    busy = Replica(peer="fast", step_s=0.01, more_s=0.001, sessions=5, heard_at=9.0)
    assert choose_route({(0, 4): [idle, busy]}, 4, 10.0, RNG) == (("fast", (0, 4)),)
    assert choose_route({(0, 4): [idle, replace(busy, sessions=40)]}, 4, 10.0, RNG) == (("slow", (0, 4)),)


def test_old_reports_are_believed_only_between_two() -> None:
    replicas = [Replica(peer=name, step_s=0.01, sessions=load, heard_at=0.0) for load, name in enumerate("abcd")]

    def chosen(now: float) -> set[str]:
        rng = random.Random(1)
        return {choose_route({(0, 1): replicas}, 1, now, rng)[0][0] for _ in range(200)}

    assert chosen(3.0) == {"a"}
    assert chosen(3.1) == {"a", "b", "c"}  # the worst of all loses against whoever is drawn with it


def test_a_mended_route_stays_where_its_caches_are() -> None:
    def replica(peer: str, step_s: float) -> Replica:
        return Replica(peer=peer, step_s=step_s, heard_at=0.0)

    stages = {
        (0, 4): [replica("a", 0.05), replica("b", 0.01)],
        (4, 8): [replica("c", 0.01), replica("d", 0.02)],
        (0, 8): [replica("e", 0.001)],
    }
    old = (("a", (0, 4)), ("gone", (4, 8)))
    assert choose_route(stages, 8, 0.0, RNG) == (("e", (0, 8)),)
    assert choose_route(stages, 8, 0.0, RNG, keep=old) == (("a", (0, 4)), ("c", (4, 8)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=8), st.integers(1, 6))
def test_there_is_a_route_exactly_when_no_layer_is_lacking(runs: list[tuple[int, int]], layers: int) -> None:
    stages = {(a, b): [Replica(peer=f"{a}-{b}")] for a, b in runs if a < b <= layers}
    route = choose_route(stages, layers, 0.0, random.Random(0))
    assert (route == ()) == (lacking(stages, layers) is not None)
    if route:
        assert [layer for _, (a, b) in route for layer in range(a, b)] == list(range(layers))


# -- under load -------------------------------------------------------------------------------------------------------

TICK_S, REPORT_S, GATEWAYS = 0.05, 1.0, 16
STEPS_S = (0.01, 0.01, 0.02, 0.04, 0.08)  # a mixed house: with one session in the step
MORE = 0.25  # of a step, for each further session
Choose = Callable[[Sequence[Replica], float, random.Random], int]


@dataclass(slots=True)
class Talk:
    where: int
    began: float
    left: float  # tokens


def run(choose: Choose, seed: int) -> float:
    """Return the mean seconds for a token over all sessions, when they come by chance and choose by old reports."""
    rng = random.Random(seed)
    talks: list[Talk] = []
    took: list[float] = []
    reports = [[Replica(peer=str(i)) for i in range(len(STEPS_S))] for _ in range(GATEWAYS)]
    heard = [rng.random() * REPORT_S for _ in range(GATEWAYS)]
    for tick in range(int(120 / TICK_S)):
        now = tick * TICK_S
        loads = [sum(talk.where == i for talk in talks) for i in range(len(STEPS_S))]
        for gateway in range(GATEWAYS):
            if now >= heard[gateway]:
                heard[gateway] += REPORT_S
                reports[gateway] = [
                    Replica(peer=str(i), step_s=step, more_s=step * MORE, sessions=loads[i], heard_at=now)
                    for i, step in enumerate(STEPS_S)
                ]
        if rng.random() < 4 * TICK_S:  # four sessions a second
            talks.append(Talk(choose(reports[rng.randrange(GATEWAYS)], now, rng), now, 100.0))
        for talk in talks:
            step = STEPS_S[talk.where] * (1 + MORE * (loads[talk.where] - 1))
            talk.left -= TICK_S / max(step, STEPS_S[talk.where])
        took += [(now - talk.began) / 100 for talk in talks if talk.left <= 0]
        talks = [talk for talk in talks if talk.left > 0]
    took += [(120 - talk.began) / 100 for talk in talks]  # those that never ended count as if they had
    return sum(took) / len(took)


def by_expected_step(replicas: Sequence[Replica], now: float, rng: random.Random) -> int:
    return int(choose_route({(0, 1): replicas}, 1, now, rng)[0][0])


def by_chance(replicas: Sequence[Replica], _now: float, rng: random.Random) -> int:
    return rng.randrange(len(replicas))


@pytest.mark.parametrize("seed", range(2))
def test_a_token_takes_half_of_what_it_takes_by_round_robin_or_by_chance(seed: int) -> None:
    turn = itertools.count()
    ours = run(by_expected_step, seed)
    assert run(lambda replicas, _now, _rng: next(turn) % len(replicas), seed) > 2 * ours
    assert run(by_chance, seed) > 2 * ours
