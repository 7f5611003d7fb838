"""The balancer chooses what is ready, shares as it is told to, and keeps the time of calls short, with any history."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.identity import PeerId
from lepton.node.services.calling.balancer import RAMP, Attempt, Balancer, Outcome, Replica
from lepton.node.services.calling.breaker import FAILURES, OPEN_S, OPEN_S_MAX
from lepton.node.services.calling.hedging import EXTRA_MAX, EXTRA_SHARE, KNOWN_MIN
from lepton.node.services.messages import Load
from lepton.node.services.spec import MethodBrief

from .queues import Balanced, Server, World, compared, quantile

WORK = MethodBrief(name="work", idempotent=True)
OUTCOMES: tuple[Outcome, ...] = ("answered", "outrun", "turned_away", "busy", "failed", "given_up")


def replica(peer: str, version: str = "1", instances: int = 1) -> Replica:
    return Replica(PeerId(peer), version, tuple(f"{peer}-{version}-{number}" for number in range(instances)))


def balancer(*replicas: Replica, shares: dict[str, float] | None = None, seed: int = 0) -> Balancer:
    made = Balancer(random.Random(seed))
    made.see(replicas, shares or {"1": 100})
    return made


def one(choice: Replica | None) -> Replica:
    assert choice is not None
    return choice


def answer(machine: Balancer, chosen: Replica, now: float, took_s: float = 0.01, **load: Any) -> None:
    attempt = machine.begin(chosen, WORK, now)
    said = Load(instance=chosen.instances[0], **{"service_ms": 10.0, **load})
    machine.end(attempt, "answered", now + took_s, load=said)


# -- any history -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_only_what_is_ready_and_allowed_is_chosen_and_accounts_add_up(data: st.DataObject) -> None:
    machine, now = Balancer(random.Random(data.draw(st.integers(0, 9)))), 0.0
    under_way: list[Attempt] = []
    present: list[Replica] = []
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 1.5))
        match data.draw(st.sampled_from(["see", "choose", "choose", "end"])):
            case "see":
                keys = data.draw(st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("12"))))
                present = [replica(*key, instances=data.draw(st.integers(1, 3))) for key in sorted(keys)]
                machine.see(present, {"1": data.draw(st.integers(0, 100)), "2": data.draw(st.integers(0, 100))})
            case "choose":
                avoid = data.draw(st.lists(st.sampled_from(present), max_size=3)) if present else []
                version, session = data.draw(st.sampled_from(["", "1", "2"])), data.draw(st.sampled_from(["", "s"]))
                found = machine.choose(WORK, now, version=version, session=session, avoid=avoid)
                if found is not None:
                    assert found in present
                    assert found not in avoid
                    assert version in {"", found.version}
                    assert machine._may(found.key, now)
                    under_way.append(machine.begin(found, WORK, now, extra=bool(avoid)))
                else:
                    able = [r for r in present if r not in avoid and version in {"", r.version}]
                    assert session or not any(machine._may(r.key, now) for r in able)
            case _ if under_way:
                attempt = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
                said = Load(
                    instance=data.draw(st.sampled_from([attempt.replica.instances[0], "strange"])),
                    running=data.draw(st.integers(0, 2**50)),
                    service_ms=data.draw(st.floats()),
                )
                machine.end(attempt, data.draw(st.sampled_from(OUTCOMES)), now, load=said)
        for known in machine._known.values():
            assert known.estimate.own >= 0
        assert sum(known.estimate.own for known in machine._known.values()) == len(under_way)
    for attempt in under_way:
        machine.end(attempt, "given_up", now)
    machine.see([], {})
    assert not machine._known  # nothing is kept of who is gone


@given(st.lists(st.integers(0, 100), min_size=1, max_size=3), st.integers(1, 300))
def test_each_release_has_its_share_at_any_moment(shares: list[int], calls: int) -> None:
    of_version: dict[str, float] = {str(number): share for number, share in enumerate(shares)}
    machine = balancer(*(replica("a", version) for version in of_version), shares=of_version)
    if not any(shares):
        of_version = dict.fromkeys(of_version, 1.0)
    total, count = sum(of_version.values()), Counter[str]()
    for number in range(1, calls + 1):
        chosen = one(machine.choose(WORK, number))
        count[chosen.version] += 1
        answer(machine, chosen, number)
        for version, share in of_version.items():
            assert abs(count[version] - number * share / total) < 2
            assert share or not count[version]


def test_a_release_that_is_not_ready_leaves_its_calls_to_the_other() -> None:
    machine = balancer(replica("a", "1"), replica("a", "2"), shares={"1": 50, "2": 50})
    first = one(machine.choose(WORK, 0.0))
    machine.end(machine.begin(first, WORK, 0.0), "turned_away", 0.0)
    assert {one(machine.choose(WORK, 0.1)).version for _ in range(9)} == {"1", "2"} - {first.version}
    machine.see([replica("a", "1")], {"1": 0, "2": 100})
    assert one(machine.choose(WORK, 9.0)).version == "1"  # without a share, and all that there is


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_stays_and_only_those_of_a_lost_replica_move() -> None:
    everybody = [replica(peer, instances=2) for peer in "abcd"]
    sessions = [f"session {number}" for number in range(400)]
    machine, another = balancer(*everybody), balancer(*everybody, seed=5)
    home = {session: one(machine.choose(WORK, 0.0, session=session)) for session in sessions}
    assert all(another.choose(WORK, 0.0, session=session) == home[session] for session in sessions)
    assert all(70 <= count <= 130 for count in Counter(home.values()).values())
    machine.see(everybody[1:], {"1": 100})
    for session in sessions:
        now = one(machine.choose(WORK, 0.0, session=session))
        assert now == home[session] or home[session] == everybody[0]


def test_a_session_waits_for_a_busy_replica_and_moves_from_one_that_is_gone() -> None:
    machine = balancer(replica("a"), replica("b"))
    home = one(machine.choose(WORK, 0.0, session="s"))
    machine.end(machine.begin(home, WORK, 0.0), "busy", 0.0, rest_s=1.0)
    assert machine.choose(WORK, 0.5, session="s") is None
    assert machine.at(0.5) == 1.0
    assert machine.choose(WORK, 0.5) not in {None, home}  # who has no session need not wait
    assert machine.choose(WORK, 1.0, session="s") == home
    machine.end(machine.begin(home, WORK, 1.0), "turned_away", 1.0, rest_s=1.0)
    assert machine.choose(WORK, 1.5, session="s") not in {None, home}


def test_sessions_are_shared_between_releases_and_few_move_with_the_shares() -> None:
    sessions = [f"session {number}" for number in range(1000)]

    def homes(shares: dict[str, float]) -> list[str]:
        machine = balancer(replica("a", "1"), replica("b", "2"), shares=shares)
        return [one(machine.choose(WORK, 0.0, session=session)).version for session in sessions]

    before, after = homes({"1": 90, "2": 10}), homes({"1": 70, "2": 30})
    assert 60 <= before.count("2") <= 140
    assert 250 <= after.count("2") <= 350
    assert all(new == "2" for old, new in zip(before, after, strict=True) if old == "2")


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_breaker_opens_tries_with_one_call_and_closes() -> None:
    machine = balancer(replica("a"))
    for _ in range(FAILURES):
        machine.end(machine.begin(one(machine.choose(WORK, 0.0)), WORK, 0.0), "failed", 0.0)
    assert machine.choose(WORK, OPEN_S / 2) is None
    assert machine.at(OPEN_S / 2) == OPEN_S
    probe = machine.begin(one(machine.choose(WORK, OPEN_S)), WORK, OPEN_S)
    assert machine.choose(WORK, OPEN_S) is None  # one is enough to find out
    machine.end(probe, "failed", OPEN_S)
    assert machine.choose(WORK, 2 * OPEN_S) is None  # twice as long
    answer(machine, one(machine.choose(WORK, 3 * OPEN_S)), 3 * OPEN_S)
    assert machine.choose(WORK, 3 * OPEN_S) is not None
    assert machine.choose(WORK, 3 * OPEN_S) is not None


def test_a_breaker_opens_never_for_longer_than_its_bound() -> None:
    machine, now = balancer(replica("a")), 0.0
    for _ in range(50):
        now = max(now, machine.at(now)) if machine.choose(WORK, now) is None else now
        machine.end(machine.begin(one(machine.choose(WORK, now)), WORK, now), "failed", now)
        assert machine.at(now) == float("inf") or machine.at(now) <= now + OPEN_S_MAX


def test_a_single_failure_between_answers_opens_nothing() -> None:
    machine = balancer(replica("a"))
    for now in range(50):
        machine.end(machine.begin(one(machine.choose(WORK, now)), WORK, now), "failed", now)
        answer(machine, one(machine.choose(WORK, now)), now)


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_one_with_the_shorter_queue_is_taken_and_a_batch_is_no_queue() -> None:
    a, b = replica("a"), replica("b")
    for method, expected in ((WORK, b), (MethodBrief(name="work", batch_size_max=8), a)):
        machine = balancer(a, b)
        for number in range(RAMP):
            answer(machine, a, number, 0.010)
            answer(machine, b, number, 0.014)  # a link that is 4 ms longer
        for _ in range(3):
            machine.begin(a, method, 100.0)
        assert machine.choose(method, 100.0) == expected


def test_a_host_that_says_it_is_idle_and_is_slow_is_found_out() -> None:
    honest, liar = replica("a"), replica("b")
    machine = balancer(honest, liar)
    for number in range(2 * RAMP):
        answer(machine, honest, number, 0.02, service_ms=20.0)
        answer(machine, liar, number, 0.2, service_ms=0.0)
    assert {machine.choose(WORK, 99.0) for _ in range(20)} == {honest}


def test_a_new_replica_is_tried_with_one_call_and_then_with_more() -> None:
    old, new = replica("a"), replica("b")
    machine = balancer(old, new)
    for number in range(RAMP):
        answer(machine, old, number, 0.05, running=5, service_ms=50.0)
    taken: list[Attempt] = []
    for answers in range(4):
        while (chosen := one(machine.choose(WORK, 50.0))) == new:
            taken.append(machine.begin(chosen, WORK, 50.0))
        assert len(taken) == answers + 1
        machine.end(taken.pop(), "answered", 50.0, load=Load(instance="b-1-0", service_ms=50.0))
        for _ in range(30):  # the old one has a queue, so that the new one is wanted
            machine.begin(old, WORK, 50.0)


@pytest.mark.parametrize("callers", [1, 8])
def test_of_equal_replicas_the_balancer_beats_random_and_is_no_worse_than_in_turn(callers: int) -> None:
    took = compared(lambda: [Server(0.01) for _ in range(4)], callers=callers, load=0.8, calls=10_000)
    p99 = {name: quantile(times, 0.99) for name, times in took.items()}
    assert p99["balanced"] < 0.75 * p99["random"]
    assert p99["balanced"] < 0.95 * p99["in turn"]


@pytest.mark.parametrize("callers", [1, 8])
def test_of_uneven_replicas_the_balancer_keeps_up_where_others_drown(callers: int) -> None:
    took = compared(lambda: [Server(w) for w in (0.01, 0.01, 0.02, 0.04)], callers=callers, load=0.7, calls=10_000)
    p99 = {name: quantile(times, 0.99) for name, times in took.items()}
    assert p99["balanced"] < 0.3  # 7 works of the slowest
    assert p99["random"] > 10 * p99["balanced"]
    assert p99["in turn"] > 10 * p99["balanced"]


def test_a_liar_among_replicas_gets_fewer_calls_than_it_would_by_chance() -> None:
    servers = [Server(0.01), Server(0.01), Server(0.03, lies=True)]
    rng = random.Random(1)
    world = World(servers, [Balanced(random.Random(seed)) for seed in range(4)], rng)
    took = world.play(calls=10_000, per_s=0.7 * 233)
    assert world.taken[2] < 10_000 / 5
    assert quantile(took, 0.99) < 0.4


def test_nobody_runs_to_a_replica_that_has_just_come() -> None:
    servers = [Server(0.01) for _ in range(3)]
    rng = random.Random(2)
    world = World(servers, [Balanced(random.Random(seed)) for seed in range(8)], rng)
    world.play(calls=8000, per_s=0.85 * 300, joins=lambda number: Server(0.01) if number == 4000 else None)
    assert len(servers) == 4
    assert world.taken[3] > 700  # it takes its part
    assert servers[3].longest <= max(server.longest for server in servers[:3])


# -- second questions --------------------------------------------------------------------------------------------------


def test_a_second_question_waits_for_what_nearly_all_answers_take_and_is_seldom() -> None:
    machine = balancer(replica("a"), replica("b"))
    assert machine.hedge_after_s(WORK) is None
    for number in range(4 * KNOWN_MIN):
        answer(machine, replica("a"), number, 0.01 if number % 10 else 0.5)
    delay_s = machine.hedge_after_s(WORK)
    assert delay_s is not None
    assert delay_s == pytest.approx(0.5)
    assert machine.hedge_after_s(MethodBrief(name="work")) is None  # not without the author's word
    assert machine.hedge_after_s(MethodBrief(name="work", idempotent=True, kind="server_stream")) is None
    while machine.may_hedge(WORK):
        pass
    calls, hedged = 2000, 0
    for number in range(calls):
        machine.end(machine.begin(replica("a"), WORK, number), "answered", number)
        hedged += machine.may_hedge(WORK)
    assert EXTRA_SHARE * calls - 1 <= hedged <= EXTRA_SHARE * calls + EXTRA_MAX
    machine.see([replica("a")], {"1": 100})
    assert machine.hedge_after_s(WORK) is None  # there is nobody else
