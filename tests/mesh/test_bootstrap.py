"""Addresses that the user gave: tried until somebody is met, left alone while it is here, and never forgotten."""

import random

from lepton.mesh.bootstrap import Bootstrap
from lepton.mesh.identity import PeerId
from lepton.mesh.pace import Config

CONFIG = Config()
HERE, THERE = "/dns/kitchen.local/tcp/4001", "/ip4/10.8.0.5/tcp/4001"
A = PeerId("a")


def looking(*addresses: str) -> Bootstrap:
    bootstrap = Bootstrap(random.Random(1))
    bootstrap.add(addresses)
    return bootstrap


def dials(bootstrap: Bootstrap, present: set[PeerId], start_s: float, end_s: float) -> list[float]:
    """When it dials; every dial fails."""
    found, now = [], start_s
    while now < end_s:
        for address in bootstrap.due(present, now):
            found.append(now)
            bootstrap.failed(address, "nobody answered", now)
        assert bootstrap.deadline <= now + CONFIG.look_interval_s
        now = max(bootstrap.deadline, now + 1e-3)
    return found


def test_an_address_is_tried_at_once_and_one_dial_at_a_time() -> None:
    bootstrap = looking(HERE, THERE, HERE)
    assert bootstrap.due((), 0.0) == [HERE, THERE]
    assert bootstrap.due((), 5.0) == []
    bootstrap.failed(HERE, "the name kitchen.local has no address", 5.0)
    assert bootstrap.due((), 10.0) == [HERE]
    assert [place.trouble for place in bootstrap.places.values()] == ["the name kitchen.local has no address", ""]


def test_pauses_grow_and_it_is_never_given_up() -> None:
    tried = dials(looking(HERE), set(), 0.0, 86_400.0)
    assert tried[-1] > 86_400.0 - 2 * CONFIG.redial_lost_s
    assert tried[5] < 20.0
    assert len(tried) < 86_400 / (0.5 * CONFIG.redial_lost_s)


def test_who_was_met_is_left_alone_while_it_is_here_and_looked_for_soon_when_it_is_not() -> None:
    bootstrap = looking(HERE)
    dials(bootstrap, set(), 0.0, 600.0)
    bootstrap.due((), 700.0)
    bootstrap.met(HERE, A)
    assert dials(bootstrap, {A}, 700.0, 800.0) == []
    assert dials(bootstrap, set(), 800.0, 900.0)[0] <= 800.0 + CONFIG.look_interval_s
    assert bootstrap.places[HERE].trouble == "nobody answered"


def test_on_another_network_the_old_pauses_do_not_count() -> None:
    bootstrap = looking(HERE)
    dials(bootstrap, set(), 0.0, 600.0)
    bootstrap.afresh(600.0)
    assert bootstrap.due((), 600.0) == [HERE]


def test_with_nothing_to_look_for_there_is_nothing_to_do() -> None:
    assert looking().due((), 1.0) == []
