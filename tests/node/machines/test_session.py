"""One request: it ends exactly once and in time, asks nobody who is known to be gone, and never spins."""

import itertools
import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.node.inference.session import (
    Absent,
    Arrived,
    Ask,
    Broke,
    Config,
    Done,
    Effect,
    Event,
    Expired,
    Failed,
    Picture,
    Run,
    Session,
)

CONFIG = Config(attempt_timeout_s=2.0, retry_pause_s=0.2, deadline_s=30.0)
TWICE: Mapping[Run, tuple[str, ...]] = {(0, 1): ("a", "b"), (1, 2): ("c", "d")}


def session(seed: int = 0, layers: int = 2) -> Session:
    return Session(layers, random.Random(seed), 0.0, CONFIG)


def ask(effects: list[Effect]) -> Ask:
    (effect,) = effects
    assert isinstance(effect, Ask)
    return effect


# -- stories -----------------------------------------------------------------------------------------------------------


def story(events: list[tuple[float, Event]], seed: int = 0, layers: int = 2) -> list[str]:
    """What a session did, a line for each effect, with one expiry wherever the deadline came first."""
    machine, lines = session(seed, layers), list[str]()
    machine.deadline = math.inf  # before its first event nothing is due
    for at, event in events:
        while not machine.over and machine.deadline <= at:
            due = machine.deadline
            lines += [tell(due, effect) for effect in machine.handle(Expired(), due)]
        lines += [tell(at, effect) for effect in machine.handle(event, at)]
    return lines


def tell(now: float, effect: Effect) -> str:
    match effect:
        case Ask(route, stages, attempt):
            return f"{now:4.1f} attempt {attempt} by {' > '.join(route)} for {stages}"
        case Done():
            return f"{now:4.1f} done"
        case Failed(reason):
            return f"{now:4.1f} failed: {reason}"


def test_a_stage_dies_and_its_copy_takes_over() -> None:
    serving = {(0, 1): ["a"], (1, 2): ["c"]}
    assert story(
        [
            (0.0, Picture(serving)),
            (0.3, Absent("c")),
            (0.4, Picture({(0, 1): ["a"], (1, 2): ["d"]})),
            (0.5, Arrived()),
            (0.6, Arrived()),
            (0.7, Absent("d")),
        ]
    ) == [
        " 0.0 attempt 1 by a > c for ((0, 1), (1, 2))",
        " 0.4 attempt 2 by a > d for ((0, 1), (1, 2))",
        " 0.5 done",
    ]


def test_who_accepts_and_never_answers_is_left_after_a_while() -> None:
    lines = story([(0.0, Picture(TWICE)), (2.5, Arrived())])
    assert [line[:14] for line in lines] == [" 0.0 attempt 1", " 2.0 attempt 2", " 2.5 done"]
    first, second = (line.split(" by ")[1].split(" for ")[0] for line in lines[:2])
    assert not set(first.split(" > ")) & set(second.split(" > "))


def test_a_result_of_an_attempt_that_was_given_up_is_as_good() -> None:
    machine = session()
    machine.handle(Picture(TWICE), 0.0)
    machine.handle(Expired(), 2.0)
    assert machine.handle(Arrived(), 2.1) == [Done()]  # of the first: it was only slow


def test_nobody_serves_and_the_reason_is_said() -> None:
    lines = story([(0.0, Picture({(0, 1): ["a"]})), (60.0, Expired())])
    assert lines == ["30.0 failed: No answer within 30 s: nobody who is here serves layer 1 of 2."]


def test_everybody_refuses_and_the_reason_is_said() -> None:
    machine = session(layers=1)
    now = 0.0
    effects = machine.handle(Picture({(0, 1): ["a"]}), now)
    while not machine.over:
        if effects and isinstance(effects[0], Ask):
            effects = machine.handle(Broke("a", machine.attempt, "is busy"), now)
        else:
            now = machine.deadline
            effects = machine.handle(Expired(), now)
    (failed,) = effects
    assert failed == Failed(f"No answer within 30 s: {machine.attempt} attempts, the last failed: a is busy.")
    assert 149 <= machine.attempt <= 151  # one for each pause: a peer that is busy is asked again, but not at once


def test_news_of_an_older_attempt_change_nothing() -> None:
    machine = session()
    first = ask(machine.handle(Picture(TWICE), 0.0))
    second = ask(machine.handle(Broke(first.route[0], 1, "refused"), 0.1))
    assert first.route[0] not in second.route
    assert machine.handle(Broke(second.route[0], 1, "refused"), 0.2) == []
    assert machine.handle(Expired(), 0.3) == []  # too early
    assert machine.handle(Absent(first.route[0]), 0.4) == []


def test_a_peer_that_left_is_not_asked_though_the_picture_is_old() -> None:
    for seed in range(20):
        machine = session(seed)
        first = ask(machine.handle(Picture(TWICE), 0.0))
        (spare,) = {"a", "b"} - {first.route[0]}
        assert machine.handle(Absent(spare), 0.1) == []
        assert machine.handle(Absent(first.route[0]), 0.2) == []  # nobody is left: a route would have a ghost on it
        assert machine.deadline == pytest.approx(0.4)
        assert machine.handle(Expired(), machine.deadline) == []
        assert ask(machine.handle(Picture(TWICE), 0.5)).attempt == 2  # the newer picture says they are back


def test_the_fewest_stages_are_taken() -> None:
    serving = {(0, 1): ["a"], (1, 2): ["b"], (2, 4): ["c"], (0, 2): ["d"], (1, 4): ["e"], (3, 1): ["x"], (0, 0): ["y"]}
    assert ask(session(layers=4).handle(Picture(serving), 0.0)).stages in {((0, 1), (1, 4)), ((0, 2), (2, 4))}


# -- any history -------------------------------------------------------------------------------------------------------


class World:
    """Peers that serve, refuse, stay silent, leave and return; a session among them, in virtual time."""

    def __init__(self, seed: int, layers: int) -> None:
        self.rng = random.Random(seed)
        self.machine = Session(layers, random.Random(seed + 1), 0.0, CONFIG)
        cuts = sorted({0, layers, *(self.rng.randint(0, layers) for _ in range(2))})
        runs = list(itertools.pairwise(cuts))
        self.holds = {peer: self.rng.choice(runs) for peer in "abcdefgh"[: self.rng.randint(1, 8)]}
        self.here = set(self.holds)
        self.told_gone: set[str] = set()
        self.asked: list[float] = []
        self.ends: list[Effect] = []
        self.now = 0.0

    def picture(self) -> Picture:
        self.told_gone = set(self.holds) - self.here
        serving: dict[Run, list[str]] = {}
        for peer in sorted(self.here):
            serving.setdefault(self.holds[peer], []).append(peer)
        return Picture(serving)

    def give(self, event: Event) -> None:
        was_over = self.machine.over
        for effect in self.machine.handle(event, self.now):
            assert not was_over, "nothing follows the end"
            if isinstance(effect, Ask):
                self.asked.append(self.now)
                assert not set(effect.route) & self.told_gone, "a peer that is known to be gone is asked"
                assert [run for peer, run in zip(effect.route, effect.stages, strict=True)] == list(effect.stages)
                assert all(self.holds[p] == run for p, run in zip(effect.route, effect.stages, strict=True))
                assert effect.stages[0][0] == 0
                assert effect.stages[-1][1] == self.machine.layers
            else:
                self.ends.append(effect)
        if not self.machine.over:
            assert math.isfinite(self.machine.deadline)
            assert self.now < self.machine.deadline <= CONFIG.deadline_s, "an expiry must be ahead, else it spins"

    def something(self) -> Event:
        peer = self.rng.choice(sorted(self.holds))
        kind = self.rng.random()
        if kind < 0.25:
            self.here.discard(peer)
            self.told_gone.add(peer)
            return Absent(peer)
        if kind < 0.4:
            self.here.add(peer)
            return self.picture()
        if kind < 0.6:
            return self.picture()
        attempt = self.machine.attempt - (self.rng.random() < 0.3)
        return Broke(peer, attempt, "refused") if kind < 0.98 else Arrived()


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([0.05, 0.5, 5.0]))
def test_any_history_ends_once_and_in_time(seed: int, layers: int, pause_s: float) -> None:
    world = World(seed, layers)
    world.give(world.picture())
    steps = 0
    while not world.machine.over:
        steps += 1
        happens_at = world.now + world.rng.expovariate(1 / pause_s)
        if happens_at < world.machine.deadline:
            world.now = happens_at
            world.give(world.something())
        else:
            world.now = world.machine.deadline
            world.give(Expired())
    assert len(world.ends) == 1
    assert world.now <= CONFIG.deadline_s
    # Each attempt is answered by one event at most, and left to itself the machine tries once a pause.
    assert len(world.asked) <= steps + 1
    world.give(Arrived())
    world.give(Expired())
    assert len(world.ends) == 1


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_attempts_are_bounded_when_everyone_refuses(seed: int, peers: int) -> None:
    machine = Session(1, random.Random(seed), 0.0, CONFIG)
    names = "abcdef"[:peers]
    now, asked = 0.0, 0
    effects = machine.handle(Picture({(0, 1): list(names)}), now)
    while not machine.over:
        if effects and isinstance(effects[0], Ask):
            asked += 1
            effects = machine.handle(Broke(effects[0].route[0], machine.attempt, "refused"), now)
        else:
            now = machine.deadline
            effects = machine.handle(Expired(), now)
    assert asked <= peers * (1 + CONFIG.deadline_s / CONFIG.retry_pause_s)
