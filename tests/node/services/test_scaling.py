"""How many replicas: grown by waiting, given back by idleness, none while nobody calls; one device's number counts."""

from typing import Any

import pytest
from lepton.mesh.identity import PeerId
from lepton.node.services.deciding.scaling import UP_S, Scaling, wanted_of
from lepton.node.services.records import HostedRecord, InstanceSaid, ServiceRecord

from .crowd import Crowd, digest, release, wanted

LONG_S = 60.0


def instance(number: int, **changes: Any) -> InstanceSaid:
    return InstanceSaid(id=f"i{number}", bundle=digest(1), version="1.0", **{"state": "ready", **changes})


def record(replicas: int = 1, most: int = 8, **changes: Any) -> ServiceRecord:
    return wanted(1, release(1), replicas=replicas, replicas_max=most, **{"queue_ms": 50.0, "idle_s": 30.0, **changes})


def ran(
    scaling: Scaling, *, seconds: float, start: float = 0.0, terms: ServiceRecord | None = None, **said: Any
) -> int:
    """Let the same load last, with as many ready as are wanted."""
    now = start
    while now <= start + seconds:
        scaling.look(terms or record(), [instance(n, **said) for n in range(scaling.wanted)], now)
        now += 0.5
    return scaling.wanted


def test_a_burst_is_waited_out_and_lasting_queues_bring_more_up_to_the_bound() -> None:
    scaling = Scaling(1)
    assert ran(scaling, seconds=UP_S - 0.5, queue_ms=200.0) == 1
    assert ran(scaling, seconds=1.0, start=10.0, queue_ms=40.0) == 1
    assert ran(scaling, seconds=60.0, start=20.0, queue_ms=200.0) == 8


def test_while_what_was_wanted_starts_no_more_is_asked_for() -> None:
    scaling = Scaling(2)
    for now in range(100):
        assert scaling.look(record(), [instance(0, queue_ms=900.0), instance(1, state="starting")], float(now)) == 2


def test_between_too_much_and_too_little_nothing_changes() -> None:
    scaling = Scaling(4)
    for queue_ms in (13.0, 30.0, 50.0):
        assert ran(scaling, seconds=300.0, queue_ms=queue_ms) == 4


def test_it_shrinks_one_by_one_while_the_rest_can_do_the_work() -> None:
    scaling = Scaling(4)
    assert ran(scaling, seconds=31.0) == 3
    assert ran(scaling, seconds=300.0, start=100.0, quiet=True) == 1
    busy = Scaling(4)
    assert ran(busy, seconds=300.0, running=1) == 4, "four calls at once, and no wait: each is needed"


def test_the_last_one_ends_when_its_host_says_that_nobody_calls() -> None:
    scaling, terms = Scaling(1), record(replicas=0)
    assert ran(scaling, seconds=300.0, terms=terms) == 1
    assert ran(scaling, seconds=1.0, start=400.0, terms=terms, quiet=True) == 0
    assert ran(scaling, seconds=300.0, start=500.0, terms=terms) == 0
    scaling.wake()
    assert ran(scaling, seconds=300.0, start=900.0, terms=terms) == 1


def test_the_smallest_live_host_counts_and_before_it_speaks_what_runs_stays() -> None:
    a, b, c = map(PeerId, "abc")
    three = HostedRecord(revision=1, instances=tuple(map(instance, range(3))))
    said = {b: HostedRecord(revision=1, wanted=7), c: three}
    assert wanted_of(record(), said, [a, b, c]) == 3
    assert wanted_of(record(), said, [b, c]) == 7
    assert wanted_of(record(most=5), said, [b, c]) == 5
    assert wanted_of(record(replicas=4), {}, [a]) == 4
    assert wanted_of(wanted(1, release(1), replicas=2), said, [b]) == 2, "without a bound it is as stated"


def loaded(crowd: Crowd, **said: Any) -> None:
    for its in crowd.devices.values():
        its.load = lambda _name, now: {"calls": int(now * 10) if said.get("queue_ms") else 0, **said}


@pytest.mark.parametrize("seed", range(10))
def test_a_mesh_agrees_on_the_number_and_another_leads_when_the_first_leaves(seed: int) -> None:
    crowd = Crowd(seed, ["d0", "d1", "d2", "d3"])
    loaded(crowd)
    crowd.deploy(record(replicas=1, most=6, idle_s=5.0))
    crowd.run(LONG_S)
    assert crowd.ready() == 1
    loaded(crowd, queue_ms=300.0)
    crowd.run(LONG_S)
    assert crowd.ready() == 6
    crowd.leave("d0")
    crowd.run(LONG_S)
    assert crowd.ready() == 6
    loaded(crowd)
    crowd.run(2 * LONG_S)
    assert crowd.ready() == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_service_sleeps_and_is_woken_by_whoever_calls(seed: int) -> None:
    crowd = Crowd(seed, ["d0", "d1", "d2"])
    loaded(crowd)
    crowd.deploy(record(replicas=0, most=3, idle_s=5.0))
    crowd.run(LONG_S)
    assert crowd.ready() == 0
    crowd.wake("d0")
    crowd.run(4.0)
    assert crowd.ready() == 1
    crowd.run(LONG_S)
    assert crowd.ready() == 0
