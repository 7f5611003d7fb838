"""Updates without a coordinator, over many histories: never too few, always to an end, and back when it fails."""

import random

import pytest
from lepton.mesh.identity import PeerId
from lepton.node.services.deciding.host import PATIENCE_S
from lepton.node.services.deciding.rollout import goal, shares
from lepton.node.services.records import HostedRecord, InstanceSaid, Offering, State

from .crowd import MIB, ROOMY, Crowd, digest, release, update, wanted

SEEDS = range(12)
LONG_S = 120.0


def settled(seed: int, count: int = 4, replicas: int = 3, offering: Offering = ROOMY) -> Crowd:
    """Return a crowd in which version 1 runs as it ought to."""
    crowd = Crowd(seed, [f"d{number}" for number in range(count)], offering)
    crowd.deploy(wanted(1, release(1), replicas=replicas))
    crowd.run(60.0)
    assert crowd.ready(version=1) == replicas
    assert crowd.ready() == replicas
    return crowd


@pytest.mark.parametrize("seed", SEEDS)
def test_an_update_reaches_everybody_and_never_fewer_are_ready_than_wanted(seed: int) -> None:
    replicas = 1 + seed % 6
    crowd = settled(seed, count=1 + seed % 5, replicas=replicas)
    crowd.least["eyes"] = replicas
    crowd.deploy(update(2, 1, 2, replicas=replicas))
    crowd.run(LONG_S)
    assert crowd.ready(version=2) == crowd.ready() == replicas


@pytest.mark.parametrize("seed", SEEDS)
def test_one_at_a_time_comes_of_a_new_version(seed: int) -> None:
    crowd = settled(seed, count=1 + seed % 4)
    crowd.deploy(update(2, 1, 2))
    for _ in range(int(LONG_S * 5)):
        crowd.run(0.2)
        starting = [
            instance
            for device in crowd.devices.values()
            for instance, ran in device.runs.items()
            if ran.state == "starting" and device.of[instance] == digest(2)
        ]
        assert len(starting) <= 1
    assert crowd.ready(version=2) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_version_that_does_not_start_somewhere_brings_everybody_back(seed: int) -> None:
    crowd = settled(seed)
    holders = [name for name in crowd.devices if crowd.on(name)]
    for name in crowd.rng.sample(sorted(crowd.devices), 1 + seed % 4):
        crowd.devices[name].broken.add(digest(2))
    hit = any(digest(2) in crowd.devices[name].broken for name in holders)
    crowd.least["eyes"] = 3
    crowd.deploy(update(2, 1, 2))
    crowd.run(LONG_S)
    assert crowd.ready() == 3
    said = [crowd.word(name) for name in crowd.devices]
    if any(word is not None and word.failed for word in said):
        assert crowd.ready(version=1) == 3
        words = {word.failed[digest(2)] for word in said if word is not None and word.instances}
        assert {text.partition(": ")[2] for text in words} == {"no module"}
        assert {text.partition(": ")[0] for text in words} <= set(crowd.devices), "who said it stands beside it"
    else:
        assert crowd.ready(version=2) == 3
        assert not hit or seed % 4 < 3


def test_a_failure_is_not_forgotten_when_the_first_to_say_it_leaves() -> None:
    crowd = settled(1)
    for device in crowd.devices.values():
        device.broken.add(digest(2))
    crowd.deploy(update(2, 1, 2))
    crowd.run(LONG_S)
    first = next(name for name, device in crowd.devices.items() if digest(2) in device.of.values())
    starts = {name: len(device.of) for name, device in crowd.devices.items() if name != first}
    crowd.leave(first)
    crowd.join("new").broken.add(digest(2))
    crowd.run(LONG_S)
    assert crowd.ready(version=1) == 3
    again = {name: len(crowd.devices[name].of) for name in starts}
    assert sum(again.values()) - sum(starts.values()) <= 1, "what it held, and no further try"


# In the last two histories too few are ready if any ends before all say that they follow the same deployment.
@pytest.mark.parametrize("seed", [*SEEDS, 50, 232])
def test_of_two_who_update_at_once_one_prevails_and_nothing_is_lost(seed: int) -> None:
    crowd = settled(seed, count=3 + seed % 3, replicas=2 + seed % 4)
    crowd.least["eyes"] = 2 + seed % 4
    crowd.deploy(update(2, 1, 2, replicas=2 + seed % 4), by="ann")
    crowd.run(crowd.rng.uniform(0.0, 5.0))
    crowd.deploy(update(2, 1, 3, replicas=2 + seed % 4), by="bob")
    crowd.run(LONG_S)
    assert crowd.ready(version=3) == crowd.ready() == 2 + seed % 4


@pytest.mark.parametrize("seed", SEEDS)
def test_devices_that_come_leave_and_crash_during_updates_change_nothing_in_the_end(seed: int) -> None:
    crowd = settled(seed, count=6)
    rng = random.Random(seed)
    newest = 1
    for step in range(12):
        match rng.choice(["update", "join", "leave", "crash"]):
            case "update":
                newest += 1
                crowd.deploy(update(newest, newest - 1, newest))
            case "join":
                crowd.join(f"late{step}")
            case "leave" if len(crowd.devices) > 3:
                crowd.leave(rng.choice(sorted(crowd.devices)))
            case _:
                name = rng.choice(sorted(crowd.devices))
                for instance in crowd.on(name)[:1]:
                    crowd.crash(name, instance)
        crowd.run(rng.uniform(0.0, 8.0))
    crowd.run(LONG_S)
    assert crowd.ready(version=newest) == crowd.ready() == 3
    assert max(len(crowd.on(name)) for name in crowd.devices) == 1


@pytest.mark.parametrize("seed", range(20))
def test_what_was_removed_ends_everywhere(seed: int) -> None:
    crowd = settled(seed)
    crowd.deploy(wanted(2, release(1), removed=True), by="another")
    crowd.run(LONG_S)
    assert crowd.ready() == 0
    assert all(not device.runs for device in crowd.devices.values())
    assert all(crowd.word(name) is None for name in crowd.devices)


@pytest.mark.parametrize("seed", range(20))
def test_a_device_that_lies_there_no_more_is_replaced_and_one_that_comes_takes_over_what_is_uneven(seed: int) -> None:
    crowd = settled(seed, count=2, replicas=4)
    crowd.least["eyes"] = 4
    crowd.join("third")
    crowd.run(LONG_S)
    assert sorted(len(crowd.on(name)) for name in crowd.devices) == [1, 1, 2]
    del crowd.least["eyes"]
    crowd.leave("d0")
    crowd.run(LONG_S)
    assert sorted(len(crowd.on(name)) for name in crowd.devices) == [2, 2]


def test_where_there_is_no_room_beside_the_old_nothing_ends() -> None:
    full = Offering(memory_bytes=200 * MIB, cores=16.0)
    crowd = settled(3, count=1, replicas=2, offering=full)
    crowd.least["eyes"] = 2
    crowd.deploy(update(2, 1, 2, replicas=2))
    crowd.run(LONG_S)
    assert crowd.ready(version=1) == 2
    outlook = crowd.devices["d0"].machine.outlook
    assert outlook is not None
    assert outlook.missing("eyes") == 2
    crowd.join("second", full)
    crowd.run(LONG_S)
    assert crowd.ready(version=2) == crowd.ready() == 2


def test_versions_side_by_side_have_shares_of_the_replicas_and_of_the_calls() -> None:
    crowd = settled(5, count=4, replicas=4)
    record = wanted(2, release(1, 75), release(2, 25), replicas=4, replaces=1)
    crowd.deploy(record)
    crowd.run(LONG_S)
    assert (crowd.ready(version=1), crowd.ready(version=2)) == (3, 1)
    hosted = {device.name: word for device in crowd.devices.values() if (word := crowd.word(device.name))}
    assert shares(record, hosted) == {"1.0": 75.0, "2.0": 25.0}
    assert goal(record, hosted, 1).counts == {digest(1): 1, digest(2): 1}, "each has one"
    assert goal(record, hosted, 0).counts == {}


def test_while_an_update_goes_on_calls_go_where_instances_are() -> None:
    crowd = settled(5)
    record = update(2, 1, 2)
    crowd.deploy(record)
    seen = set()
    for _ in range(400):
        crowd.run(0.1)
        hosted = {device.name: word for device in crowd.devices.values() if (word := crowd.word(device.name))}
        seen.add(tuple(sorted(shares(record, hosted).items())))
    assert {(("1.0", 3.0),), (("1.0", 2.0), ("2.0", 1.0)), (("2.0", 3.0),)} <= seen


def test_a_bundle_that_nobody_gives_is_run_by_another_device() -> None:
    crowd = Crowd(2, ["d0", "d1", "d2"])
    crowd.devices["d0"].away.add(digest(1))
    crowd.deploy(wanted(1, release(1), replicas=3))
    crowd.run(400.0)
    assert crowd.ready() == 3
    word = crowd.word("d0")
    assert word is not None
    assert word.refused == {digest(1): "nobody has it"}


def test_a_new_version_that_crashes_again_and_again_is_taken_back() -> None:
    crowd = settled(4)
    crowd.deploy(update(2, 1, 2))
    for _ in range(200):
        crowd.run(0.3)
        for name in list(crowd.devices):
            for instance in crowd.on(name, version=2):
                crowd.crash(name, instance)
    crowd.run(LONG_S)
    assert crowd.ready(version=1) == crowd.ready() == 3


def lies(version: int, state: State, revision: int) -> HostedRecord:
    said = InstanceSaid(id="lie", bundle=digest(version), version=f"{version}.0", state=state)
    return HostedRecord(revision=revision, by=PeerId("op"), instances=(said,))


LIES = {
    "it starts for ever": lies(2, "starting", 2),
    "it does not follow": lies(1, "ready", 1),
    "it was given a part and says nothing": None,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("seed", range(4))
def test_a_word_that_never_changes_holds_an_update_up_for_no_longer_than_patience(seed: int, lie: str) -> None:
    crowd = settled(seed, count=3)
    liar = "a-liar" if seed % 2 else "z-liar"  # the first, or the last, in the order of all
    crowd.claim(liar, LIES[lie])
    crowd.deploy(update(2, 1, 2))
    crowd.run(PATIENCE_S - 60.0)
    waited = crowd.ready(version=2)
    crowd.run(2 * PATIENCE_S + LONG_S)  # it may first be waited for to start, then to follow
    assert crowd.ready(version=2) == 3, f"{waited} came before that"
    assert crowd.ready(version=1) == 0
    crowd.deploy(update(3, 2, 3))  # and then it is heard again: it may have been slow
    crowd.run(60.0)
    assert all(not device.machine._ignored() for device in crowd.devices.values())


def test_who_changes_its_word_again_and_again_gains_no_time() -> None:
    crowd = settled(0, count=3)
    crowd.deploy(update(2, 1, 2))
    for _ in range(int(3 * PATIENCE_S / 60)):
        for lie in LIES.values():
            crowd.claim("a-liar", lie)
            crowd.run(30.0)
    crowd.run(LONG_S)
    assert crowd.ready(version=2) == 3
    assert crowd.ready(version=1) == 0
