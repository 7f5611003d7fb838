"""Admission: only what a chain proves for exactly that peer."""

import pytest
from lepton.mesh import limits
from lepton.mesh.admission import Admission
from lepton.mesh.errors import Refused

from .fakes import FOREVER, NOW, ROOT, credentials, grant, identity

ME, ALICE, BOB = map(identity, ("me", "alice", "bob"))


def admission() -> Admission:
    return Admission(credentials(ME), ME.peer_id, NOW)


def test_a_node_must_itself_be_a_member() -> None:
    with pytest.raises(Refused, match="belongs to"):
        Admission(credentials(ALICE), ME.peer_id, NOW)
    with pytest.raises(Refused, match="has expired"):
        Admission(credentials(ME, expires=NOW), ME.peer_id, NOW)


def test_who_shows_a_good_chain_is_known_with_it() -> None:
    members = admission()
    chain = credentials(ALICE).chain
    assert not members.knows(ALICE.peer_id)
    assert members.admit(ALICE.peer_id, chain, NOW) == members.authority(ALICE.peer_id)
    assert members.knows(ALICE.peer_id)
    assert members.chains([ALICE.peer_id, BOB.peer_id]) == {ALICE.peer_id: chain}


def test_a_chain_of_somebody_else_or_without_membership_proves_nothing() -> None:
    members = admission()
    with pytest.raises(Refused, match="belongs to"):
        members.admit(BOB.peer_id, credentials(ALICE).chain, NOW)
    with pytest.raises(Refused, match="lacks the capability 'mesh'"):
        members.admit(BOB.peer_id, (grant(ROOT, BOB, "infer:*"),), NOW)
    assert not members.knows(BOB.peer_id)
    with pytest.raises(KeyError):
        members.authority(BOB.peer_id)


def test_a_better_grant_stays_and_a_newer_one_comes_in() -> None:
    members = admission()
    old, new = credentials(ALICE, expires=NOW + 10).chain, credentials(ALICE, role="admin", expires=NOW + 20).chain
    members.admit(ALICE.peer_id, new, NOW)
    assert members.admit(ALICE.peer_id, old, NOW).expires == NOW + 20
    assert members.chains([ALICE.peer_id])[ALICE.peer_id] == new
    later = credentials(ALICE, expires=NOW + 30).chain
    assert members.admit(ALICE.peer_id, later, NOW).expires == NOW + 30


def test_chains_of_third_parties_are_taken_if_they_hold() -> None:
    members = admission()
    members.learn({ALICE.peer_id: credentials(ALICE).chain, BOB.peer_id: credentials(ALICE).chain}, NOW)
    assert members.knows(ALICE.peer_id)
    assert not members.knows(BOB.peer_id)


def test_members_are_bounded_and_expired_ones_make_room() -> None:
    members = admission()
    for n in range(limits.MEMBERS_MAX - 1):
        someone = identity(f"member {n}")
        members.admit(someone.peer_id, credentials(someone, expires=NOW + 10 if n == 0 else FOREVER).chain, NOW)
    with pytest.raises(Refused, match="has 256 members already"):
        members.admit(BOB.peer_id, credentials(BOB).chain, NOW)
    members.admit(identity("member 5").peer_id, credentials(identity("member 5")).chain, NOW)  # known already
    members.admit(BOB.peer_id, credentials(BOB).chain, NOW + 10)
    assert not members.knows(identity("member 0").peer_id)
    assert members.knows(ME.peer_id)
