"""The host machine where records lie, devices are full, and there is much to say."""

import itertools
import random
from typing import Any

import pytest
from lepton.mesh import limits
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import encoded
from lepton.node.services.deciding.host import TRY_AGAIN_S, Host
from lepton.node.services.deciding.outlook import Picture
from lepton.node.services.deciding.steps import (
    Effect,
    Fetch,
    Fetched,
    Instances,
    Ran,
    Say,
    Seen,
    Start,
    Stop,
    Unfetched,
    Unsay,
)
from lepton.node.services.deciding.view import Deployed
from lepton.node.services.records import INSTANCES_MAX, HostedRecord, InstanceSaid, Offering, ServiceRecord

from .crowd import MIB, ROOMY, digest, release, update, wanted

ME = PeerId("me")


def seen(
    record: ServiceRecord | None, *, offering: Offering = ROOMY, refusals: Any = None, **hosted: HostedRecord
) -> Seen:
    services = {} if record is None else {"eyes": Deployed(record, PeerId("op"))}
    said = {PeerId(peer): its for peer, its in hosted.items()}
    offerings = {ME: offering, **dict.fromkeys(said, ROOMY)}
    return Seen(picture=Picture(services=services, hosted={"eyes": said}, offerings=offerings), refusals=refusals or {})


def host(offering: Offering = ROOMY) -> Host:
    return Host(ME, offering, random.Random(1))


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def started(machine: Host, event: Seen, now: float = 0.0) -> list[Start]:
    effects = machine.handle(event, now)
    for fetch in of(Fetch, effects):
        effects = machine.handle(Fetched(fetch.release.bundle.digest), now)
    return of(Start, effects)


def test_what_is_not_admitted_is_not_even_fetched_and_ends_at_once() -> None:
    record, no = wanted(1, release(1), replicas=1), {("eyes", digest(1)): "It is not admitted."}
    (said,) = machine_says(host().handle(seen(record, refusals=no), 0.0))
    assert said.refused == {digest(1): "It is not admitted."}
    machine = host()
    (start,) = started(machine, seen(record))
    machine.handle(Instances((Ran(id=start.id, state="ready"),)), 1.0)
    effects = machine.handle(seen(record, refusals=no), 2.0)
    assert [stop.id for stop in of(Stop, effects)] == [start.id]
    assert not of(Fetch, machine.handle(Instances(()), 3.0))


def machine_says(effects: list[Effect]) -> list[HostedRecord]:
    assert not of(Fetch, effects)
    return [say.record for say in of(Say, effects)]


def test_what_does_not_run_here_is_tried_again_later_and_later() -> None:
    machine, record, now = host(), wanted(1, release(1), replicas=1), 0.0
    begun = []
    (start,) = started(machine, seen(record))
    for _ in range(4):
        begun.append(now)
        machine.handle(Instances((Ran(id=start.id, state="failed", reason="no module"),)), now)
        machine.handle(Instances(()), now)
        while True:
            now = machine.deadline
            if again := of(Start, machine.handle(Instances(()), now)):
                (start,) = again
                break
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert pauses == [TRY_AGAIN_S, 2 * TRY_AGAIN_S, 4 * TRY_AGAIN_S]


def test_a_new_revision_tries_what_failed_anew() -> None:
    machine = host()
    machine.handle(seen(wanted(1, release(1), replicas=1)), 0.0)
    effects = machine.handle(Unfetched(digest(1), "it is another's bundle", final=True), 1.0)
    assert of(Say, effects)[0].record.refused == {digest(1): "it is another's bundle"}
    assert of(Fetch, machine.handle(seen(wanted(2, release(1), replicas=1)), 10.0))


def test_a_bundle_that_comes_slowly_is_asked_for_once_at_a_time() -> None:
    machine = host()
    assert len(of(Fetch, machine.handle(seen(wanted(1, release(1), replicas=3)), 0.0))) == 1
    assert not of(Fetch, machine.handle(Instances(()), 10.0))
    assert not of(Fetch, machine.handle(Unfetched(digest(1), "nobody has it"), 11.0))
    assert of(Fetch, machine.handle(Instances(()), 16.0))


def test_no_more_starts_than_memory_is_given_whatever_ends_beside_it() -> None:
    small = Offering(memory_bytes=250 * MIB, cores=16.0)
    machine = host(small)
    begun = started(machine, seen(wanted(1, release(1), replicas=5), offering=small))
    assert len(begun) == 2
    machine.handle(Instances(tuple(Ran(id=its.id, state="ready") for its in begun)), 1.0)
    effects = machine.handle(seen(update(2, 1, 2, replicas=2), offering=small), 2.0)
    assert not of(Stop, effects)
    assert not of(Start, machine.handle(Fetched(digest(2)), 3.0))


def test_the_longest_that_a_host_can_say_fits_a_record() -> None:
    roomy = Offering(memory_bytes=2**50, cores=2.0**20)
    machine, record = host(roomy), wanted(2, release(1), release(2), replicas=64, replaces=1, replicas_max=64)
    begun = [*started(machine, seen(record, offering=roomy))]
    assert len(begun) <= INSTANCES_MAX
    why = "ü" * 5000
    event = Instances(tuple(Ran(id=its.id, state="starting", reason=why, restarts=2) for its in begun))
    machine.handle(event, 1.0)
    machine.handle(Unfetched(digest(2), why, final=True), 2.0)
    (word,) = machine._words().values()
    full = HostedRecord(
        revision=2**52,
        by=PeerId("x" * 52),
        instances=tuple(
            InstanceSaid(
                id="0" * 12, bundle=digest(1), version="1" * 32, state="starting", running=2**40, queue_ms=9e9,
                restarts=2**40, quiet=True, reason=word.instances[0].reason,
            )
            for _ in range(INSTANCES_MAX)
        ),
        failed=dict.fromkeys(map(digest, range(3)), "x" * 300),
        refused=dict.fromkeys(map(digest, range(3)), "x" * 300),
        wanted=64,
    )  # fmt: skip
    assert len(word.instances[0].reason.encode()) <= 100
    assert len(encoded(full)) <= limits.RECORD_BYTES_MAX


@pytest.mark.parametrize("seed", range(150))
def test_whatever_others_say_of_themselves_the_machine_goes_on(seed: int) -> None:
    rng = random.Random(seed)
    machine = host()

    def number() -> Any:
        return rng.choice([0, 1, 7, 2**31, 2**53 - 1])

    def lie() -> HostedRecord:
        return HostedRecord(
            revision=number(),
            by=rng.choice([None, PeerId("op"), PeerId("eve")]),
            instances=tuple(
                InstanceSaid(
                    id=f"i{rng.randrange(3)}",
                    bundle=digest(rng.randrange(4)),
                    version="1.0",
                    state=rng.choice(["starting", "ready", "draining", "failed"]),
                    running=number(),
                    queue_ms=rng.choice([0.0, 1e308, float("inf"), float("nan")]),
                    quiet=rng.random() < 0.5,
                )
                for _ in range(rng.randrange(5))
            ),
            failed={digest(rng.randrange(4)): "no"} if rng.random() < 0.3 else {},
            refused={digest(rng.randrange(4)): "no"} if rng.random() < 0.3 else {},
            wanted=rng.choice([None, 0, 64]),
        )

    for step in range(30):
        record = update(rng.randrange(1, 4), 1, 2, replicas=rng.randrange(4), replicas_max=rng.choice([None, 8]))
        liars = {name: lie() for name in ("a", "b", "me") if rng.random() < 0.8}
        offering = Offering(memory_bytes=number(), cores=rng.choice([0.0, 1.5, float("inf"), 1e300]))
        effects = machine.handle(seen(record if rng.random() < 0.9 else None, offering=offering, **liars), float(step))
        for fetch in of(Fetch, effects):
            effects += machine.handle(Fetched(fetch.release.bundle.digest), step + 0.5)
        for effect in effects:
            if isinstance(effect, Say):
                assert len(encoded(effect.record)) <= limits.RECORD_BYTES_MAX
    effects = machine.handle(Seen(picture=Picture()), 100.0)
    effects += machine.handle(Instances(()), 101.0)
    assert {stop.service for stop in of(Unsay, effects)} <= {"eyes"}
    assert not machine._mine, "nothing goes on that nobody deploys"


def test_a_host_rests_once_a_service_is_removed_whose_bundle_never_came() -> None:
    machine = host()
    machine.handle(seen(wanted(1, release(1), replicas=1)), 0.0)
    machine.handle(Unfetched(digest(1), "nobody has it"), 1.0)
    assert machine.deadline < float("inf")
    machine.handle(seen(None), 2.0)
    assert machine.deadline == float("inf")
    assert of(Fetch, machine.handle(seen(wanted(2, release(1), replicas=1)), 3.0))
