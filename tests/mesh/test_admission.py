"""Admission: only what a chain proves for exactly that peer."""

import pytest
from lepton.mesh import limits
from lepton.mesh.admission import Admission
from lepton.mesh.errors import Refused
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.revocations import Revocation, revoke

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


def test_members_are_bounded_and_expired_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMBERS_MAX", 16)
    members = admission()
    for n in range(limits.MEMBERS_MAX - 1):
        someone = identity(f"member {n}")
        members.admit(someone.peer_id, credentials(someone, expires=NOW + 10 if n == 0 else FOREVER).chain, NOW)
    with pytest.raises(Refused, match="has 16 members already"):
        members.admit(BOB.peer_id, credentials(BOB).chain, NOW)
    members.admit(identity("member 5").peer_id, credentials(identity("member 5")).chain, NOW)  # known already
    members.admit(BOB.peer_id, credentials(BOB).chain, NOW + 10)
    assert not members.knows(identity("member 0").peer_id)
    assert members.knows(ME.peer_id)


# -- revocations -------------------------------------------------------------------------------------------------------


def throw_out(members: Admission, items: list[Revocation]) -> dict[PeerId, str]:
    members.revocations.merge(items)
    return members.falls()


def revoked(*subjects: Identity) -> list[Revocation]:
    return [revoke(ROOT, who.peer_id, root=ROOT.peer_id, reason="lost", now=NOW) for who in subjects]


def test_who_is_revoked_is_known_no_more_and_not_let_in_again() -> None:
    members = admission()
    chain = credentials(ALICE).chain
    members.admit(ALICE.peer_id, chain, NOW)
    out = throw_out(members, revoked(ALICE))
    assert out == {ALICE.peer_id: f"{ALICE.peer_id[-8:]} was revoked by the root key: lost."}
    assert not members.knows(ALICE.peer_id)
    assert not members.authority(ALICE.peer_id).allows("mesh")
    with pytest.raises(Refused, match="was revoked by the root key: lost"):
        members.admit(ALICE.peer_id, chain, NOW)
    with pytest.raises(Refused, match="was revoked by the root key: lost"):
        members.standing(ALICE.peer_id, NOW)
    members.learn({ALICE.peer_id: chain}, NOW)
    assert not members.knows(ALICE.peer_id)
    assert throw_out(members, revoked(ALICE)) == {}
    assert members.proof(ALICE.peer_id, chain, NOW) == tuple(revoked(ALICE))
    assert members.proof(BOB.peer_id, chain, NOW) == ()  # of somebody else
    assert members.proof(BOB.peer_id, credentials(BOB).chain, NOW) == ()


def test_whoever_came_in_through_the_revoked_is_out_too_unless_it_has_another_grant() -> None:
    members = admission()
    through = (grant(ROOT, ALICE, role="admin"), grant(ALICE, BOB))
    members.admit(BOB.peer_id, through, NOW)
    out = throw_out(members, revoked(ALICE))
    assert list(out) == [BOB.peer_id]
    with pytest.raises(Refused, match="came in through"):
        members.admit(BOB.peer_id, through, NOW)
    assert members.admit(BOB.peer_id, credentials(BOB).chain, NOW).allows("mesh")
    assert members.standing(BOB.peer_id, NOW).allows("mesh")


def test_a_node_that_is_revoked_itself_serves_nobody_and_does_not_start_again() -> None:
    members = admission()
    members.admit(ALICE.peer_id, credentials(ALICE).chain, NOW)
    out = throw_out(members, revoked(ME))
    assert members.ended == out[ME.peer_id]
    with pytest.raises(Refused, match="was revoked by the root key"):
        members.standing(ALICE.peer_id, NOW)
    assert not members.authority(ME.peer_id).allows("mesh")
    with pytest.raises(Refused, match=r"belongs to 'home' no more: .* lost. If it should be a member again"):
        Admission(credentials(ME), ME.peer_id, NOW, revoked(ME))


def test_who_was_thrown_out_by_one_that_the_root_disowns_comes_in_again() -> None:
    members = admission()
    chain = (grant(ROOT, BOB, role="admin"),)
    throw_out(
        members, [revoke(BOB, who.peer_id, root=ROOT.peer_id, reason="", now=NOW, chain=chain) for who in (ALICE, ME)]
    )
    assert members.ended
    throw_out(members, [revoke(ROOT, BOB.peer_id, root=ROOT.peer_id, reason="stolen", now=NOW, disowns=True)])
    assert not members.ended
    assert members.admit(ALICE.peer_id, credentials(ALICE).chain, NOW).allows("mesh")


def test_standing_asks_for_a_grant_that_lasts() -> None:
    members = admission()
    with pytest.raises(Refused, match="has shown no grant"):
        members.standing(ALICE.peer_id, NOW)
    members.admit(ALICE.peer_id, credentials(ALICE, expires=NOW + 10).chain, NOW)
    assert members.standing(ALICE.peer_id, NOW + 9).allows("mesh")
    with pytest.raises(Refused, match="has expired"):
        members.standing(ALICE.peer_id, NOW + 10)


def test_a_newer_grant_of_ones_own_must_give_the_same_for_longer() -> None:
    members = Admission(credentials(ME, expires=NOW + 100), ME.peer_id, NOW)
    for chain in (
        credentials(ME, expires=NOW + 100).chain,
        credentials(ME, role="admin", expires=NOW + 200).chain,
        credentials(ME, role="client", expires=NOW + 200).chain,
    ):
        with pytest.raises(Refused, match="gives something else than the one before, or does not last longer"):
            members.renew(chain, NOW)
    longer = credentials(ME, expires=NOW + 200).chain
    members.renew(longer, NOW)
    assert members.me.expires == members.authority(ME.peer_id).expires == NOW + 200
    assert members.chains([ME.peer_id]) == {ME.peer_id: longer}


# -- clocks ------------------------------------------------------------------------------------------------------------


HOUR_S = 3600


def test_a_clock_that_is_hours_wrong_moves_an_end_by_hours_and_nothing_else() -> None:
    members = admission()
    chain = credentials(ALICE, expires=NOW + 10 * HOUR_S).chain
    for wrong_by in (-6 * HOUR_S, 6 * HOUR_S):  # of whoever looks; whoever signed is not asked
        assert members.admit(ALICE.peer_id, chain, NOW + wrong_by).allows("mesh")
    with pytest.raises(Refused, match="or set the clock if it is wrong"):
        members.admit(ALICE.peer_id, chain, NOW + 4 * HOUR_S + 6 * HOUR_S)
    throw_out(members, revoked(ALICE))
    for clock in (0.0, NOW):  # even a board that believes it is 1970
        with pytest.raises(Refused, match="was revoked"):
            members.admit(ALICE.peer_id, chain, clock)


def test_a_revocation_dated_in_the_future_or_the_past_counts_at_once() -> None:
    for signed_at in (0.0, FOREVER):
        members = admission()
        item = revoke(ROOT, ALICE.peer_id, root=ROOT.peer_id, reason="", now=signed_at)
        throw_out(members, [item])
        with pytest.raises(Refused, match="was revoked"):
            members.admit(ALICE.peer_id, credentials(ALICE).chain, NOW)
