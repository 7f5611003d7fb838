"""Two stages that do not hear each other, though both answer their asker: the pair is passed over, and no peer."""

import itertools
import random
from functools import partial

import pytest
from lepton.mesh.identity import PeerId
from lepton.node.generation.apart import LASTS_S, PAIRS_MAX, Apart, Gap, Pair, find_gap
from lepton.node.generation.asker import AskerConfig
from lepton.node.generation.messages import Alive
from lepton.node.generation.route import Load, Route, Run, choose
from lepton.node.generation.sampling import Sampling

from .fakes import World, undisturbed
from .test_disturbed import RUNS, WARM, assert_all_given_back, assert_right, end, prompt

A, B, C = map(PeerId, "abc")


def alive(length: int, *, epoch: int = 3, asked: bool = True, state: str = "idle") -> Alive:
    return Alive(session=bytes(16), epoch=epoch, state=state, length=length, asked=asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "given", "gap"),
    [
        ((alive(9), alive(9, epoch=2), alive(9, epoch=2)), None, Gap(A, B)),  # the opening
        ((alive(9, asked=False), alive(9, asked=False), alive(0, state="unknown")), None, Gap(B, C)),
        ((alive(9, asked=False), alive(9), alive(9)), None, Gap(B, A)),  # what is needed
        ((alive(9, asked=False), alive(9, asked=False), alive(9)), None, Gap(C, B)),
        ((alive(12), alive(11), alive(11)), 10, Gap(A, B)),  # a step
        ((alive(12), alive(12), alive(11)), 10, Gap(B, C)),
        ((alive(11), alive(11), alive(11)), 10, Gap(C, A)),  # the token that was drawn
        ((alive(12), alive(12), alive(12)), 10, None),  # the same, to the asker
        ((alive(9), alive(9), alive(9)), 10, None),  # what the asker gave
        ((alive(9), alive(9), alive(9)), None, None),  # what the asker was asked for
    ],
)
def test_how_far_each_stage_is_shows_between_which_it_stopped(
    answers: tuple[Alive, ...], given: int | None, gap: Gap | None
) -> None:
    found = find_gap((A, B, C), dict(zip((A, B, C), answers, strict=True)), epoch=3, given=given, tokens=12)
    assert found == gap


def test_one_stage_is_not_apart_from_itself() -> None:
    assert find_gap((A,), {A: alive(11)}, epoch=3, given=10, tokens=12) is None


def test_pairs_are_passed_over_for_a_while_and_the_oldest_is_tried_first() -> None:
    apart = Apart()
    apart.note(A, B, 0.0)
    apart.note(C, B, 1.0)
    apart.note(B, A, 2.0)
    assert set(apart.pairs(2.0)) == {frozenset((A, B)), frozenset((B, C))}
    assert not apart.forget_one({A, C})
    assert apart.forget_one({A, B, C})
    assert set(apart.pairs(2.0)) == {frozenset((A, B))}
    assert not apart.pairs(2.0 + LASTS_S)
    for number in range(PAIRS_MAX + 5):
        apart.note(A, PeerId(str(number)), 9.0)
    assert len(apart.pairs(9.0)) == PAIRS_MAX


def every_route(serving: dict[Run, list[PeerId]], layers: int, begin: int = 0) -> list[tuple[tuple[PeerId, Run], ...]]:
    if begin == layers:
        return [()]
    hops = [(peer, run) for run, peers in serving.items() if run[0] == begin for peer in peers]
    return [(hop, *rest) for hop in hops for rest in every_route(serving, layers, hop[1][1])]


def test_the_quickest_route_without_pairs_that_are_apart_is_found() -> None:
    found = 0
    for seed in range(300):
        rng = random.Random(seed)
        runs = [(a, b) for a, b in itertools.combinations(range(4), 2) if rng.random() < 0.7]
        names = iter(range(99))
        serving = {run: [PeerId(f"{next(names)}") for _ in range(rng.choice((1, 2, 3)))] for run in runs}
        peers = [peer for some in serving.values() for peer in some]
        loads = {peer: rng.random() for peer in peers}
        apart: set[Pair] = {frozenset(pair) for pair in itertools.combinations(peers, 2) if rng.random() < 0.4}

        def lasts_s(route: tuple[tuple[PeerId, Run], ...], loads: dict[PeerId, float] = loads) -> float:
            return sum(loads[peer] + 0.051 for peer, _ in route)

        def whole(route: tuple[tuple[PeerId, Run], ...], apart: set[Pair] = apart) -> bool:
            around = [peer for peer, _ in route]
            return not any(frozenset(pair) in apart for pair in zip(around, [*around[1:], around[0]], strict=True))

        def load(peer: PeerId, _run: Run, loads: dict[PeerId, float] = loads) -> Load:
            return Load(loads[peer])

        best = min(filter(whole, every_route(serving, 3)), key=lasts_s, default=None)
        right = Route(tuple(peer for peer, _ in best), tuple(run for _, run in best)) if best else None
        assert choose(serving, 3, rng=rng, apart=apart, load=load) == right, seed
        found += best is not None
    assert 200 < found < 290  # some have a route, and some have none


@pytest.mark.parametrize("ways", [((0, 1),), ((1, 0),), ((0, 1), (1, 0)), ((2, 0),), ((2, 1),)])
def test_a_session_goes_on_where_two_stages_do_not_hear_each_other(ways: tuple[tuple[int, int], ...]) -> None:
    """There is another of one of the two only; which of them, does not matter."""
    for other in ways[0]:
        world = World(other)
        stages = [world.device(name, run) for name, run in zip("abc", RUNS, strict=True)]
        world.device("z", RUNS[other])
        me, given = world.device("me"), prompt(world, 30)
        heard = world.ask(me, given, 40, WARM)
        world.after(0.05, partial(world.cut.update, {(stages[a], stages[b]) for a, b in ways}))
        end(world)
        assert_right(world, heard, given, 40, WARM)
        pauses = world.tally(heard).pauses
        assert len(pauses) <= 1  # after one pause all tokens come: it does not go back
        again = world.ask(me, given, 40, WARM)
        end(world)
        assert_right(world, again, given, 40, WARM)
        assert_all_given_back(world)


def test_the_next_session_does_not_try_what_another_found_out() -> None:
    world = World(3)
    a, b, b2 = (world.device(name, run) for name, run in (("a", (0, 3)), ("b", (3, 6)), ("b2", (3, 6))))
    me, given = world.device("me"), prompt(world, 30)
    world.cut |= {(a, b), (a, b2)}
    first = world.ask(me, given, 5)
    world.run(while_=lambda: not first.pauses)
    world.cut -= {(a, b), (a, b2)} - {(a, PeerId(first.pauses[0].split()[0]))}
    others = [world.ask(me, given, 5) for _ in range(10)]
    end(world)
    assert world.tally(first).attempts == 2
    assert [world.tally(heard).attempts for heard in others] == [1] * 10


def test_where_no_route_is_whole_it_ends_and_says_who_does_not_hear_whom() -> None:
    world = World(4, asker=AskerConfig(trouble_s=20.0))
    runs = ((0, 3), (3, 6))
    a, b, b2 = (world.device(name, run) for name, run in (("a", runs[0]), ("b", runs[1]), ("b2", runs[1])))
    me, given = world.device("me"), prompt(world, 30)
    heard = world.ask(me, given, 200)
    world.after(0.05, partial(world.cut.update, {(a, b), (a, b2)}))
    end(world)
    assert heard.failed is not None
    assert "No next token within 20 s, in " in heard.failed.reason
    assert "does not get what a says" in heard.failed.reason
    assert set(heard.pauses) == {"b does not get what a says", "b2 does not get what a says"}  # each in turn
    assert len(heard.pauses) < 20  # and without haste
    assert heard.tokens == undisturbed(given, 200, Sampling())[: len(heard.tokens)]


def test_who_does_not_answer_stays_avoided_while_a_pair_is_tried_again() -> None:
    world = World(5)
    a, b = world.device("a", (0, 3)), world.device("b", (3, 6))
    world.device("a2", (0, 3))
    me, given = world.device("me"), prompt(world, 30)
    world.apart[me] = Apart()
    world.apart[me].note(PeerId("a2"), b, 0.0)
    heard = world.ask(me, given, 60)
    world.after(0.02, partial(world.cut.update, {(me, a), (a, me), (a, b), (b, a)}))
    end(world)
    assert heard.tokens == undisturbed(given, 60, Sampling())
    assert heard.pauses == ["a did not answer within 0.5 s"]
