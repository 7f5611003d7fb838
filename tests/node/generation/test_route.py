"""Routes follow the smallest expected step, keep caches when mended, and beat round robin and chance under load."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.identity import PeerId
from lepton.node.generation.route import FRESH_S, Load, Route, Run, choose, reached

RNG = random.Random(0)


def test_the_quickest_route_is_taken_and_who_holds_the_cache_is_kept() -> None:
    a, b, c, d = map(PeerId, "abcd")
    serving = {(0, 2): [a], (2, 4): [b, c], (0, 4): [d]}
    loads = {a: 0.002, b: 0.004, c: 0.003, d: 0.1}

    def load(peer: PeerId, _run: Run) -> Load:
        return Load(loads[peer])

    everybody = set(serving[0, 2] + serving[2, 4] + serving[0, 4])
    assert choose(serving, 4, keep=everybody, rng=RNG, load=load) == Route((a, c), ((0, 2), (2, 4)))
    assert choose(serving, 4, keep=everybody, avoid={c}, rng=RNG, load=load) == Route((a, b), ((0, 2), (2, 4)))
    assert choose(serving, 4, keep={a, b}, rng=RNG, load=load) == Route((a, b), ((0, 2), (2, 4)))
    assert choose(serving, 4, avoid={a}, rng=RNG, load=load) == Route((d,), ((0, 4),))
    assert choose(serving, 5, rng=RNG) is None
    assert reached({(0, 2): [a], (2, 4): [], (3, 5): [b]}, 5) == 2
    assert reached({(0, 2): [a], (1, 5): [b]}, 5) == 2  # whose layers would be computed twice


def test_old_reports_are_believed_only_between_two() -> None:
    peers = [PeerId(name) for name in "abcd"]

    def chosen(age_s: float | None, keep: tuple[PeerId, ...] = ()) -> set[PeerId]:
        def load(peer: PeerId, _run: Run) -> Load | None:
            return None if age_s is None else Load(0.01 + 0.001 * peers.index(peer), age_s)

        rng = random.Random(1)
        routes = [choose({(0, 1): peers}, 1, rng=rng, load=load, keep=keep) for _ in range(200)]
        return {route.peers[0] for route in routes if route is not None}

    assert chosen(FRESH_S) == {"a"}
    assert chosen(FRESH_S + 0.1) == {"a", "b", "c"}  # the worst of all loses against whoever is drawn with it
    assert chosen(None) == {"a", "b", "c", "d"}
    assert chosen(FRESH_S + 0.1, (PeerId("d"),)) == {"d"}  # to rebuild a cache costs more


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=8), st.integers(1, 6))
def test_there_is_a_route_exactly_when_no_layer_is_lacking(runs: list[tuple[int, int]], layers: int) -> None:
    serving = {(a, b): [PeerId(f"{a}-{b}")] for a, b in runs if a < b <= layers}
    route = choose(serving, layers, rng=random.Random(0))
    assert (route is None) == (reached(serving, layers) < layers)
    if route is not None:
        assert [layer for a, b in route.runs for layer in range(a, b)] == list(range(layers))


# -- under load -------------------------------------------------------------------------------------------------------

TICK_S, REPORT_S, GATEWAYS = 0.05, 1.0, 16
STEPS_S = (0.01, 0.01, 0.02, 0.04, 0.08)  # a mixed house: with one session in the step
MORE = 0.25  # of a step, for each further session
Reports = tuple[float, list[int]]  # when they came, and the sessions on each peer
Choose = Callable[[Reports, float, random.Random], int]


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
    reports: list[Reports] = [(-1e9, [0] * len(STEPS_S)) for _ in range(GATEWAYS)]
    heard = [rng.random() * REPORT_S for _ in range(GATEWAYS)]
    for tick in range(int(120 / TICK_S)):
        now = tick * TICK_S
        loads = [sum(talk.where == i for talk in talks) for i in range(len(STEPS_S))]
        for gateway in range(GATEWAYS):
            if now >= heard[gateway]:
                heard[gateway] += REPORT_S
                reports[gateway] = (now, loads)
        if rng.random() < 4 * TICK_S:  # four sessions a second
            talks.append(Talk(choose(reports[rng.randrange(GATEWAYS)], now, rng), now, 100.0))
        for talk in talks:
            step = STEPS_S[talk.where] * (1 + MORE * (loads[talk.where] - 1))
            talk.left -= TICK_S / max(step, STEPS_S[talk.where])
        took += [(now - talk.began) / 100 for talk in talks if talk.left <= 0]
        talks = [talk for talk in talks if talk.left > 0]
    took += [(120 - talk.began) / 100 for talk in talks]  # those that never ended count as if they had
    return sum(took) / len(took)


def by_expected_step(reports: Reports, now: float, rng: random.Random) -> int:
    heard, loads = reports

    def load(peer: PeerId, _run: Run) -> Load:
        at = int(peer)
        return Load(STEPS_S[at] * (1 + MORE * loads[at]), now - heard)

    route = choose({(0, 1): [PeerId(str(at)) for at in range(len(loads))]}, 1, rng=rng, load=load)
    assert route is not None
    return int(route.peers[0])


def by_chance(_reports: Reports, _now: float, rng: random.Random) -> int:
    return rng.randrange(len(STEPS_S))


@pytest.mark.parametrize("seed", range(2))
def test_a_token_takes_half_of_what_it_takes_by_round_robin_or_by_chance(seed: int) -> None:
    turn = itertools.count()
    ours = run(by_expected_step, seed)
    assert run(lambda *_: next(turn) % len(STEPS_S), seed) > 2 * ours
    assert run(by_chance, seed) > 2 * ours
