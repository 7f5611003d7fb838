"""Whom a member is connected to: the rings are symmetric, bounded and in one piece, and the choice of scale is calm."""

import random
from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.identity import PeerId
from lepton.mesh.neighbours import Neighbours, Rings, places
from lepton.mesh.pace import Config

ME = PeerId("me")
CONFIG = Config()


def peers(count: int) -> list[PeerId]:
    return [PeerId(f"peer {n}") for n in range(count)]


def crowd(count: int, me: PeerId = ME) -> Neighbours:
    neighbours = Neighbours(me, random.Random(1))
    for peer in peers(count):
        if peer != me:
            neighbours.came(peer)
    return neighbours


def reached(start: PeerId, beside: Mapping[PeerId, Iterable[PeerId]]) -> set[PeerId]:
    """Everybody to whom word gets over these neighbours."""
    found, fresh = {start}, [start]
    while fresh:
        fresh = [other for peer in fresh for other in beside[peer] if other in beside and other not in found]
        found.update(fresh)
    return found


def overlay(members: list[PeerId], rings: int) -> dict[PeerId, frozenset[PeerId]]:
    return {me: Rings(me, rings, set(members) - {me}).beside() for me in members}


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=60), st.integers(1, 6))
def test_neighbours_are_mutual_few_and_in_one_piece(numbers: set[int], rings: int) -> None:
    members = [PeerId(f"peer {n}") for n in sorted(numbers)]
    beside = overlay(members, rings)
    for me, others in beside.items():
        assert me not in others
        assert 1 <= len(others) <= 2 * rings
        assert all(me in beside[other] for other in others)
    assert reached(members[0], beside) == set(members)


def test_a_thousand_stay_in_one_piece_when_three_in_ten_crash_at_once() -> None:
    """Before anybody has noticed: the survivors' old neighbours alone keep them together. Many such crashes are tried,
    for each cuts the rings elsewhere.
    """
    members = peers(1000)
    beside = overlay(members, CONFIG.rings)
    cut_off = 0
    for seed in range(20):
        alive = set(random.Random(seed).sample(members, 700))
        left = {me: others & alive for me, others in beside.items() if me in alive}
        cut_off += len(alive) - len(reached(min(alive), left))
    assert cut_off <= 20  # of 14,000: one whose ten neighbours are all among the dead, now and then


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=80))
def test_the_rings_do_not_depend_on_who_came_when(story: list[tuple[int, bool]]) -> None:
    rings, here = Rings(ME, 3), set[PeerId]()
    for number, comes in story:
        peer = PeerId(f"peer {number}")
        if comes:
            rings.add(peer)
            here.add(peer)
        else:
            rings.remove(peer)
            here.discard(peer)
        assert rings.beside() == Rings(ME, 3, here).beside()


def test_everybody_stands_elsewhere_on_every_ring() -> None:
    assert len({place for peer in peers(100) for place in places(peer, 5)}) == 500


def test_up_to_fifty_everybody_is_a_neighbour_and_beyond_few_are() -> None:
    assert all(crowd(49).wants(peer) for peer in peers(49))
    large = crowd(50)  # and this one makes 51
    assert not large.whole
    assert 1 <= sum(large.wants(peer) for peer in peers(50)) <= 2 * CONFIG.rings


def test_around_fifty_the_mesh_does_not_flap() -> None:
    neighbours = crowd(50)
    for _ in range(5):
        for peer in peers(50)[45:]:
            neighbours.went(peer)
        assert not neighbours.whole
        for peer in peers(50)[45:]:
            neighbours.came(peer)
    for peer in peers(50)[39:]:
        neighbours.went(peer)
    assert neighbours.whole  # forty are left
    for peer in peers(49):
        neighbours.came(peer)
    assert neighbours.whole


def spare_peers(neighbours: Neighbours, count: int) -> list[PeerId]:
    return [peer for peer in peers(100) if not neighbours.wants(peer)][:count]


def releases(neighbours: Neighbours, until_s: float) -> list[tuple[float, PeerId, str]]:
    return [(now, *each) for now in range(int(until_s)) for each in neighbours.release(now)]


def test_who_dialled_gives_up_what_is_not_wanted_after_a_while() -> None:
    neighbours = crowd(100)
    spare, wanted = spare_peers(neighbours, 1)[0], min(neighbours.wanted)
    neighbours.connected(spare, dialled=True)
    neighbours.connected(wanted, dialled=True)
    given_up = releases(neighbours, 3 * CONFIG.linger_s)
    assert {peer for _, peer, _ in given_up} == {spare}
    assert given_up[0][0] >= CONFIG.linger_s
    assert given_up[1][0] >= given_up[0][0] + CONFIG.linger_s  # it was in use, perhaps: asked for again


def test_who_was_dialled_keeps_it_until_there_are_too_many_and_then_says_so() -> None:
    neighbours = crowd(100)
    spare = spare_peers(neighbours, CONFIG.degree_most + 3)
    for peer in spare[: CONFIG.degree_most]:
        neighbours.connected(peer, dialled=False)
    assert releases(neighbours, 3 * CONFIG.linger_s) == []
    for peer in spare[CONFIG.degree_most :]:
        neighbours.connected(peer, dialled=False)
    given_up = neighbours.release(4 * CONFIG.linger_s)
    assert len(given_up) == 3
    assert all("23 nodes" in why or "22 nodes" in why or "21 nodes" in why for _, why in given_up)


def test_a_connection_that_is_wanted_again_is_kept() -> None:
    neighbours = crowd(100)
    spare = spare_peers(neighbours, 1)[0]
    neighbours.connected(spare, dialled=True)
    neighbours.release(0.0)
    for peer in peers(100):
        if peer != spare:
            neighbours.went(peer)
    assert releases(neighbours, 3 * CONFIG.linger_s) == []
