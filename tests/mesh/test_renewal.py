"""Renewal: when a node asks, whom, and what whoever is asked gives: the same for longer, and never more than it has."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import Refused
from lepton.mesh.grants import GRANT_LIFETIME_S, ROLES, Authority, Grant, authority_of
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.renewal import (
    GAIN_S,
    NOT_YET_BEFORE_S,
    RENEW_BEFORE_S,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    Renewal,
    Renewer,
    candidates,
)

from .fakes import FOREVER, NOW, ROOT, SERIAL, grant, identity

ANNA, BEN, CARL, DORA = map(identity, ("anna", "ben", "carl", "dora"))
SOON = NOW + 10 * 24 * 3600

Chain = tuple[Grant, ...]


def held_by(who: Identity, chain: Chain) -> Authority:
    return authority_of(chain, root=ROOT.peer_id, subject=who.peer_id, now=NOW)


def renewer(who: Identity, chain: Chain, *, root: bool = False) -> Renewer:
    return Renewer(identity=who, chain=chain, authority=held_by(who, chain), root=ROOT if root else None)


def admin_chain(who: Identity, *, expires: float = FOREVER) -> Chain:
    return (grant(ROOT, who, role="admin", expires=expires),)


def ask(by: Renewer, who: Identity, chain: Chain, now: float = NOW) -> Authority:
    renewed = by.renew(held_by(who, chain), chain, now=now, serial=SERIAL)
    return authority_of(renewed, root=ROOT.peer_id, subject=who.peer_id, now=now)


GUEST = (*admin_chain(ANNA), grant(ANNA, CARL, expires=SOON))

# -- what may be given -------------------------------------------------------------------------------------------------


def test_the_issuer_gives_the_same_for_longer() -> None:
    renewed = ask(renewer(ANNA, admin_chain(ANNA)), CARL, GUEST)
    assert renewed.capabilities == ROLES["member"]
    assert renewed.expires == int(NOW + GRANT_LIFETIME_S)


def test_another_admin_may_too_and_a_mere_member_may_not() -> None:
    assert ask(renewer(BEN, admin_chain(BEN)), CARL, GUEST).expires == int(NOW + GRANT_LIFETIME_S)
    with pytest.raises(Refused, match="did not give this grant and is no admin"):
        ask(renewer(DORA, (grant(ROOT, DORA),)), CARL, GUEST)
    inviter = (grant(ROOT, DORA, "mesh", "invite", *ROLES["member"]),)
    with pytest.raises(Refused, match="did not give this grant and is no admin"):
        ask(renewer(DORA, inviter), CARL, GUEST)
    of_dora = (*inviter, grant(DORA, CARL, expires=SOON))
    assert ask(renewer(DORA, inviter), CARL, of_dora).allows("train:x")


def test_nobody_renews_what_it_has_not_itself() -> None:
    narrow = (grant(ROOT, DORA, "mesh", "invite", "admin"),)
    with pytest.raises(Refused, match=r"may not renew what it has not: infer:\*, service:\*, train:\*"):
        ask(renewer(DORA, narrow), CARL, GUEST)


def test_nobody_gives_longer_than_it_has_itself() -> None:
    fading = admin_chain(ANNA, expires=SOON + GAIN_S - 1)
    with pytest.raises(Refused, match="does not last longer; it has to be renewed first"):
        ask(renewer(ANNA, fading), CARL, (*fading, grant(ANNA, CARL, expires=SOON)))
    barely = admin_chain(ANNA, expires=SOON + GAIN_S)
    assert ask(renewer(ANNA, barely), CARL, (*barely, grant(ANNA, CARL, expires=SOON))).expires == SOON + GAIN_S


def test_a_chain_of_full_length_is_not_made_longer() -> None:
    three = (*admin_chain(ANNA), grant(ANNA, BEN, role="admin"), grant(BEN, DORA, role="admin"))
    with pytest.raises(Refused, match="a chain of 3 links"):
        ask(renewer(DORA, three), CARL, GUEST)


def test_what_the_root_signed_the_root_signs_again_where_its_key_is() -> None:
    mine = admin_chain(ANNA, expires=SOON)
    alone = renewer(ANNA, mine, root=True)
    renewed = alone.renew(held_by(ANNA, mine), mine, now=NOW, serial=SERIAL)
    assert len(renewed) == 1
    assert held_by(ANNA, renewed).expires == int(NOW + GRANT_LIFETIME_S)
    other = admin_chain(BEN, expires=SOON)
    assert len(alone.renew(held_by(BEN, other), other, now=NOW, serial=SERIAL)) == 1
    kept = renewer(ANNA, admin_chain(ANNA), root=True).renew(held_by(CARL, GUEST), GUEST, now=NOW, serial=SERIAL)
    assert len(kept) == 2  # it stays plain through whom Carl came in


def test_who_asks_too_early_is_sent_away() -> None:
    chain = (*admin_chain(ANNA), grant(ANNA, CARL, expires=NOW + NOT_YET_BEFORE_S + 1))
    with pytest.raises(Refused, match="lasts long enough"):
        ask(renewer(ANNA, admin_chain(ANNA)), CARL, chain)


@given(
    st.sets(st.sampled_from(ROLES["admin"])),
    st.sets(st.sampled_from(ROLES["admin"])),
    st.integers(1, int(GRANT_LIFETIME_S)),
    st.integers(1, int(GRANT_LIFETIME_S)),
)
def test_a_renewal_never_gives_more_than_before_or_than_the_renewer_has(
    had: set[str], has: set[str], left_s: int, renewers_s: int
) -> None:
    chain = (grant(ROOT, CARL, *had, expires=NOW + left_s),) if had else (grant(ROOT, CARL, "mesh", expires=SOON),)
    given_by = (grant(ROOT, BEN, *(has or {"mesh"}), expires=NOW + renewers_s),)
    before = held_by(CARL, chain)
    try:
        after = ask(renewer(BEN, given_by), CARL, chain)
    except Refused:
        return
    assert after.capabilities == before.capabilities
    assert all(capability in has for capability in after.capabilities)
    assert before.expires + GAIN_S <= after.expires <= NOW + renewers_s


# -- whom to ask -------------------------------------------------------------------------------------------------------


def test_the_issuer_is_asked_first_then_who_can_give_longest_and_nobody_who_may_not() -> None:
    people = {who.peer_id: Authority(who.peer_id, ROLES["admin"], 100 + n) for n, who in enumerate((ANNA, BEN, DORA))}
    member = identity("member").peer_id
    people[member] = Authority(member, ROLES["member"], 1000)
    away = identity("away").peer_id
    people[away] = Authority(away, ROLES["admin"], 1000)
    present = people.keys() - {away}
    assert candidates(GUEST, people, present) == [ANNA.peer_id, DORA.peer_id, BEN.peer_id]
    assert candidates(GUEST, people, [member]) == []


def authority(left_s: float) -> Authority:
    return Authority(CARL.peer_id, ROLES["member"], int(NOW + left_s))


ABLE = [PeerId("a"), PeerId("b")]


def test_nobody_is_asked_before_a_third_of_the_life_is_left() -> None:
    assert Renewal().whom(authority(RENEW_BEFORE_S + 1), ABLE, NOW) is None
    assert Renewal().whom(authority(RENEW_BEFORE_S - 1), ABLE, NOW) == "a"


def test_each_is_asked_once_and_then_there_is_a_pause_that_grows() -> None:
    renewal, now, held, pauses = Renewal(), NOW, authority(1000), list[float]()
    for _ in range(12):
        assert [renewal.whom(held, ABLE, now) for _ in range(4)] == ["a", "b", None, None]
        pauses.append(renewal.not_before - now)
        now = renewal.not_before
    assert pauses[0] == RETRY_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_MOST_S
    renewal.renewed()
    assert renewal.whom(held, ABLE, now) == "a"


def test_while_nobody_is_here_who_could_there_is_no_pause() -> None:
    renewal = Renewal()
    assert renewal.whom(authority(1000), [], NOW) is None
    assert renewal.whom(authority(1000), ABLE, NOW) == "a"


def test_a_clock_that_is_set_back_holds_up_no_renewal() -> None:
    renewal = Renewal()
    later = NOW + 365 * 24 * 3600
    assert [renewal.whom(authority(1000), ABLE, later) for _ in range(3)] == ["a", "b", None]
    assert renewal.not_before > later
    assert renewal.whom(authority(1000), ABLE, NOW) == "a"


# -- a whole mesh over years -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_mesh_whose_devices_are_up_now_and_then_lives_on_and_one_without_its_root_ends(seed: int) -> None:
    """Two admins, one with the root key, and guests of both. Everybody is up on three days of five."""
    rng = random.Random(seed)
    for root_is_up in (True, False):
        now = NOW
        chains: dict[PeerId, Chain] = {
            who.peer_id: (grant(ROOT, who, role="admin", expires=now + GRANT_LIFETIME_S),) for who in (ANNA, BEN)
        }
        for guest, host in ((CARL, ANNA), (DORA, BEN)):
            given = grant(host, guest, expires=now + GRANT_LIFETIME_S)
            chains[guest.peer_id] = (*chains[host.peer_id], given)
        for _ in range(2 * 365):
            now += 24 * 3600
            live = {}
            for who in (ANNA, BEN, CARL, DORA):
                if rng.random() < 0.6 and (root_is_up or who is not ANNA):
                    try:
                        live[who.peer_id] = authority_of(
                            chains[who.peer_id], root=ROOT.peer_id, subject=who.peer_id, now=now
                        )
                    except Refused:
                        assert not root_is_up
            for peer, its in live.items():
                renewal = Renewal()
                able = [
                    *([peer] if peer == ANNA.peer_id else []),
                    *candidates(chains[peer], live, live.keys() - {peer}),
                ]
                while (asked := renewal.whom(its, able, now)) is not None:
                    by = {ANNA.peer_id: ANNA, BEN.peer_id: BEN}[asked]
                    root = ROOT if by is ANNA else None
                    with_root = Renewer(identity=by, chain=chains[asked], authority=live[asked], root=root)
                    try:
                        chains[peer] = with_root.renew(its, chains[peer], now=now, serial=SERIAL)
                    except Refused:
                        continue
                    break
        ends = {authority_of(c, root=ROOT.peer_id, subject=p, now=NOW).expires for p, c in chains.items()}
        assert (min(ends) > now) if root_is_up else (max(ends) <= NOW + GRANT_LIFETIME_S)
