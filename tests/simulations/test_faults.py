"""Each fault does what it says, to whom it says, and is over when it says."""

import msgspec
import pytest
from lepton.simulations.faults import Crash, Fault, Freeze, Join, OneWay, Partition, Revoke, Skew, Slow, Weather
from lepton.simulations.process import Process
from lepton.simulations.run import Outcome, simulate
from lepton.simulations.scenario import Link, Model, Requests, Scenario, Statements, Task
from lepton.simulations.world import World

CALM = Scenario(
    about="calm",
    nodes=4,
    duration_s=70,
    settle_s=30,
    model=Model(layers=4, copies=3),
    task=Task(dimension=8, rounds=20, step_s=1.5, error_max=10.0),
    requests=Requests(count=20, failed_max=20),
    statements=Statements(interval_s=5),
)


def play(*faults: Fault, link: Link = Link(), seed: int = 3) -> Outcome:  # noqa: B008 - it is frozen
    return simulate(msgspec.structs.replace(CALM.with_faults(faults), link=link), seed=seed)


def told(outcome: Outcome, who: str) -> list[tuple[float, str]]:
    lines = [line.split(maxsplit=2) for line in outcome.transcript]
    return [(float(at), what) for at, name, what in lines if name == who]


def when(outcome: Outcome, who: str, what: str) -> float:
    return next(at for at, said in told(outcome, who) if what in said)


def test_a_newcomer_joins_over_the_network_with_an_invite_and_takes_part() -> None:
    outcome = play(Join(at_s=20, node="late"))
    assert 20 < when(outcome, "late", "has joined") < 21
    assert when(outcome, "n1", "+late") < 25
    assert any("finished round" in what for _, what in told(outcome, "late"))


@pytest.mark.parametrize("seed", range(4))
def test_a_newcomer_whose_words_are_lost_tries_again_until_it_is_in(seed: int) -> None:
    bad = Weather(at_s=19, end_s=35, node="late", loss=0.6)
    assert when(play(Join(at_s=20, node="late"), bad, seed=seed), "late", "has joined") < 60


def test_a_newcomer_waits_for_the_device_that_gives_invites() -> None:
    outcome = play(Join(at_s=20, node="late"), Crash(at_s=19, node="n0", restart_after_s=8))
    assert 27 < when(outcome, "late", "has joined") < 35


def test_who_is_revoked_is_thrown_out_by_all() -> None:
    outcome = play(Revoke(at_s=20, node="n2"))
    for other in ("n0", "n1", "n3"):
        assert 20 <= when(outcome, other, "throws out n2") < 21


def test_who_is_revoked_while_it_is_away_is_told_when_it_comes_back() -> None:
    outcome = play(Crash(at_s=15, node="n2", restart_after_s=10), Revoke(at_s=20, node="n2"))
    assert any("was revoked by n0" in what for _, what in told(outcome, "n0"))
    assert not any("+n2" in what and at > 20 for at, what in told(outcome, "n0"))


def test_who_lost_its_disk_comes_back_as_a_new_device() -> None:
    outcome = play(Crash(at_s=20, node="n2", restart_after_s=5, loses="everything"))
    assert 25 < when(outcome, "n2", "has joined") < 27
    assert any("-n2.1" in what or "-n2" in what for _, what in told(outcome, "n0"))
    assert any("finished round" in what and at > 30 for at, what in told(outcome, "n2"))


def test_who_lost_its_records_alone_is_the_same_device_and_speaks_on_above_its_forgotten_words() -> None:
    outcome = play(Crash(at_s=20, node="n2", restart_after_s=5, loses="records"))
    assert not any("has joined" in what for _, what in told(outcome, "n2"))
    assert any("finished round" in what and at > 30 for at, what in told(outcome, "n2"))


def test_who_is_not_heard_is_dropped_and_comes_back() -> None:
    """Its probes are not heard, nor are its answers; it hears all, and cannot dial."""
    outcome = play(OneWay(at_s=15, heal_s=35, senders=("n1",), receivers=("n0", "n2", "n3")))
    assert 15 < when(outcome, "n0", "-n1") < 35
    assert any("+n1" in what and at > 35 for at, what in told(outcome, "n0"))


def test_two_cuts_at_once_heal_each_at_its_time() -> None:
    first = Partition(at_s=12, heal_s=20, groups=(("n0", "n1"), ("n2", "n3")))
    second = Partition(at_s=15, heal_s=30, groups=(("n0",), ("n1", "n2", "n3")))
    outcome = play(first, second)
    said = [(at, what.split(":")[0]) for at, what in told(outcome, "network")]
    assert said == [(12.0, "is cut"), (15.0, "is cut"), (20.0, "is healed"), (30.0, "is whole again")]
    assert not any("+n0" in what and 15 < at < 30 for at, what in told(outcome, "n1"))


def test_a_slow_device_is_waited_for_or_left_out_and_catches_up() -> None:
    outcome = play(Slow(at_s=12, end_s=30, node="n1", times=20))
    at = [at for at, what in told(outcome, "n1") if "finished round" in what]
    assert sum(12 < when_s < 30 for when_s in at) < sum(at_s < 12 or at_s > 30 for at_s in at)


def test_wrong_clocks_break_nothing() -> None:
    month_s = 30 * 24 * 3600
    skews = [Skew(at_s=5, node="n0", offset_s=month_s, drift=0.1), Skew(at_s=5, node="n1", offset_s=-month_s)]
    outcome = play(*skews, Revoke(at_s=20, node="n3"), Join(at_s=25, node="late"))
    assert when(outcome, "n1", "throws out n3") < 21
    assert when(outcome, "n1", "+late") < 35


def test_a_clock_that_runs_fast_is_early_and_its_calendar_ahead() -> None:
    world = World(1)
    process = Process(world)
    happened: list[tuple[float, float]] = []
    world.run(10.0)
    process.skew(100.0, 0.25)
    process.after(5.0, lambda: happened.append((world.now, process.now)))
    world.run(20.0)
    assert [round(clock, 6) for clock in happened[0]] == [14.0, 15.0]
    assert process.unix_s == pytest.approx(world.unix_s + 100.0 + 2.5)


def test_what_comes_to_a_slow_process_is_done_in_order_one_after_another() -> None:
    world = World(1)
    process = Process(world)
    done: list[tuple[int, float]] = []
    process.times = 100.0  # a tenth of a second for each
    for number in range(3):
        process.awake(lambda number=number: done.append((number, round(world.now, 3))))  # type: ignore[misc]
    process.times = 1.0
    process.awake(lambda: done.append((3, round(world.now, 3))))
    world.run(1.0)
    assert done == [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.301)]


def test_messages_are_held_back_and_nothing_comes_of_it() -> None:
    outcome = play(link=Link(reordering=0.3, reordering_s=0.5))
    assert outcome.figures.messages_lost == 0
    assert outcome.figures.requests_failed == 0


def test_weather_between_two_concerns_no_others() -> None:
    outcome = play(Weather(at_s=12, end_s=30, node="n1", other="n2", loss=0.95))
    dropped = [(who, what) for who in CALM.names for _, what in told(outcome, who) if what.startswith("drops")]
    assert {(who, what.split()[1][:2]) for who, what in dropped} <= {("n1", "n2"), ("n2", "n1")}


def test_a_fault_whose_victim_is_gone_spares_it() -> None:
    gone = Crash(at_s=12, node="n1")
    outcome = play(gone, Freeze(at_s=15, node="n1", thaw_after_s=2), Slow(at_s=16, end_s=18, node="n1", times=5), gone)
    assert not any("frozen" in what or "slower" in what for _, what in told(outcome, "n1"))
    assert outcome.figures.crashes == 1
