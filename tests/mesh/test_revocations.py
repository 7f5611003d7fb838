"""Revocations: who may sign them, what they end, what the set becomes in whatever order it grows, how large it gets."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError, Refused, UsageError
from lepton.mesh.grants import Grant, issue
from lepton.mesh.identity import Identity
from lepton.mesh.messages import pack, unpack
from lepton.mesh.revocations import (
    Asker,
    Revocation,
    Revocations,
    Said,
    Sentence,
    answer_to,
    grant_id,
    open_revocation,
    pages_of,
    revoke,
)

from .fakes import FOREVER, NOW, ROOT, SERIAL, grant, identity

ANNA, BEN, CARL, DORA, EVE = map(identity, ("anna", "ben", "carl", "dora", "eve"))  # Anna and Ben are admins
OTHER_ROOT = identity("other root")

Chain = tuple[Grant, ...]


def admin_of(who: Identity, *, expires: float = FOREVER) -> Chain:
    return (grant(ROOT, who, role="admin", expires=expires),)


def by_root(subject: Identity, reason: str = "lost", *, disowns: bool = False, now: float = NOW) -> Revocation:
    return revoke(ROOT, subject.peer_id, root=ROOT.peer_id, reason=reason, now=now, disowns=disowns)


def by_admin(
    signer: Identity,
    subject: Identity,
    *,
    chain: Chain | None = None,
    keeps: tuple[bytes, ...] = (),
    reason: str = "lost",
    now: float = NOW,
) -> Revocation:
    held = admin_of(signer) if chain is None else chain
    return revoke(signer, subject.peer_id, root=ROOT.peer_id, reason=reason, now=now, chain=held, keeps=keeps)


def signed(signer: Identity, **said: object) -> Revocation:
    """Whatever somebody would like to sign."""
    fields = {"mesh": ROOT.peer_id, "issuer": signer.peer_id, "subject": CARL.peer_id, "issued": int(NOW)} | said
    payload = pack(Sentence(**fields))  # type: ignore[arg-type]
    return Revocation(sentence=payload, signature=signer.sign("revocation", payload))


def known(*items: Revocation) -> Revocations:
    return Revocations(ROOT.peer_id, items)


# -- who may -----------------------------------------------------------------------------------------------------------


def test_the_root_and_an_admin_may_revoke_and_their_words_say_why() -> None:
    assert known(by_root(CARL)).why(CARL.peer_id) == f"{CARL.peer_id[-8:]} was revoked by the root key: lost."
    assert f"was revoked by {ANNA.peer_id[-8:]}: lost." in known(by_admin(ANNA, CARL)).why(CARL.peer_id)
    assert known(by_root(CARL, "")).why(CARL.peer_id).endswith("the root key.")
    assert known(by_root(CARL)).why(DORA.peer_id) == ""


def test_an_admin_of_an_admin_may_too_and_may_revoke_itself() -> None:
    chain = (*admin_of(ANNA), grant(ANNA, BEN, role="admin"))
    assert known(by_admin(BEN, ANNA, chain=chain), by_admin(BEN, BEN, chain=chain)).counting.keys() == {
        ANNA.peer_id,
        BEN.peer_id,
    }


@pytest.mark.parametrize("role", ["member", "client", "trainer"])
def test_who_is_no_admin_may_not_not_even_itself(role: str) -> None:
    chain = (grant(ROOT, DORA, role=role),)
    for subject in (CARL, DORA):
        with pytest.raises(Refused, match="lacks the capability 'admin'"):
            by_admin(DORA, subject, chain=chain)
        with pytest.raises(PeerError, match="lacks the capability 'admin'"):
            known(signed(DORA, chain=chain, subject=subject.peer_id))


def test_nobody_can_revoke_the_root() -> None:
    with pytest.raises(Refused, match="cannot be revoked"):
        by_admin(ANNA, ROOT)
    with pytest.raises(PeerError, match="cannot be revoked"):
        known(signed(ANNA, chain=admin_of(ANNA), subject=ROOT.peer_id))
    with pytest.raises(PeerError, match="cannot be revoked"):
        known(signed(ROOT, subject=ROOT.peer_id))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (signed(EVE), "showed no grant"),
        (signed(EVE, chain=admin_of(ANNA)), "belongs to"),
        (signed(EVE, issuer=ANNA.peer_id, chain=admin_of(ANNA)), "is not that of"),
        (signed(EVE, issuer=ROOT.peer_id), "is not that of"),
        (signed(EVE, chain=(issue(EVE, EVE.peer_id, ("admin",), expires=FOREVER, serial=SERIAL),)), "forged"),
        (signed(OTHER_ROOT, mesh=OTHER_ROOT.peer_id), "another mesh"),
        (signed(OTHER_ROOT), "showed no grant"),
        (signed(ANNA, chain=admin_of(ANNA), mesh=OTHER_ROOT.peer_id), "another mesh"),
        (signed(ROOT, version=2), "version"),
        (signed(ROOT, chain=admin_of(ANNA)), "needs no grant"),
        (signed(ANNA, chain=admin_of(ANNA), disowns=True), "Only the root key can disown"),
        (signed(ROOT, subject="12D3nobody"), "not the peer id"),
        (Revocation(sentence=b"\xc1", signature=bytes(64)), "not a valid Sentence"),
    ],
)
def test_what_was_forged_or_is_of_another_mesh_is_its_senders_fault(item: Revocation, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        known(item)


def test_a_changed_word_breaks_the_signature() -> None:
    item = by_root(CARL)
    changed = item.sentence.replace(CARL.peer_id.encode(), DORA.peer_id.encode())
    with pytest.raises(PeerError, match="is not that of"):
        known(Revocation(sentence=changed, signature=item.signature))


def test_what_an_owner_says_is_bounded() -> None:
    with pytest.raises(UsageError, match="200 characters at most"):
        by_root(CARL, "x" * 201)
    with pytest.raises(UsageError, match="keeps 128 grants at most"):
        by_admin(ANNA, CARL, keeps=(bytes(32),) * 129)
    largest = by_admin(ANNA, CARL, keeps=(bytes(32),) * 128, reason="ü" * 200)
    assert unpack(pack(Said(revocations=(largest,))), Said).revocations == (largest,)


# -- what it ends ------------------------------------------------------------------------------------------------------

THROUGH_ANNA = (*admin_of(ANNA), grant(ANNA, CARL))


def test_a_chain_holds_until_anybody_in_it_is_revoked() -> None:
    assert known().why_not(THROUGH_ANNA) == ""
    assert known(by_root(DORA)).why_not(THROUGH_ANNA) == ""
    assert "was revoked by the root key" in known(by_root(CARL)).why_not(THROUGH_ANNA)
    assert f"came in through {ANNA.peer_id[-8:]}" in known(by_root(ANNA)).why_not(THROUGH_ANNA)


def test_a_grant_that_is_kept_stays_good_and_no_other_of_the_revoked_does() -> None:
    """The thief of an admin's device makes itself another identity, or gives its accomplice more."""
    keeps = (grant_id(THROUGH_ANNA[1]),)
    revocations = known(by_admin(BEN, ANNA, keeps=keeps))
    assert revocations.why_not(THROUGH_ANNA) == ""
    assert revocations.why_not((*admin_of(ANNA), grant(ANNA, EVE))) != ""
    assert revocations.why_not((*admin_of(ANNA), grant(ANNA, CARL, role="admin"))) != ""
    assert revocations.why_not(admin_of(ANNA)) != ""
    both = known(by_admin(BEN, ANNA, keeps=keeps), by_root(ANNA))
    assert both.why_not(THROUGH_ANNA) != ""  # it must be kept by all who revoked her


def test_two_admins_who_revoke_each_other_are_both_out() -> None:
    """In either order: what is known of both is the same everywhere."""
    for items in ([by_admin(ANNA, BEN), by_admin(BEN, ANNA)], [by_admin(BEN, ANNA), by_admin(ANNA, BEN)]):
        revocations = known(*items)
        assert revocations.why_not(admin_of(ANNA))
        assert revocations.why_not(admin_of(BEN))


def test_a_revocation_stands_when_its_signer_is_revoked_or_its_grant_has_expired() -> None:
    revocations = known(by_admin(ANNA, CARL, chain=admin_of(ANNA, expires=NOW + 1)), by_root(ANNA))
    assert revocations.why(CARL.peer_id)


def test_a_grant_that_had_expired_by_its_signers_own_word_revokes_nobody() -> None:
    old = admin_of(ANNA, expires=NOW)
    with pytest.raises(Refused, match="has expired"):
        by_admin(ANNA, CARL, chain=old)
    with pytest.raises(PeerError, match="has expired"):
        known(signed(ANNA, chain=old))


def test_a_thief_that_signs_with_an_earlier_time_throws_out_until_the_root_disowns_it() -> None:
    """It cannot be told from the admin before; what it signs can throw out and never let in."""
    old = admin_of(ANNA, expires=NOW)
    backdated = by_admin(ANNA, CARL, chain=old, now=NOW - 100)
    through = (*old, grant(ANNA, EVE, role="admin", expires=NOW))
    of_its_own_making = by_admin(EVE, DORA, chain=through, now=NOW - 100)
    revocations = known(by_root(ANNA), backdated, of_its_own_making)
    assert revocations.counting.keys() == {ANNA.peer_id, CARL.peer_id, DORA.peer_id}
    revocations.merge([by_root(ANNA, "stolen", disowns=True)])
    assert revocations.counting.keys() == {ANNA.peer_id}
    revocations.merge([by_admin(ANNA, BEN, chain=old, now=NOW - 50)])  # and nothing that it signs from now on
    assert revocations.counting.keys() == {ANNA.peer_id}
    revocations.merge([by_root(CARL)])  # who was rightly out is put out by the root itself
    assert CARL.peer_id in revocations.counting


# -- the set -----------------------------------------------------------------------------------------------------------

_PEOPLE = [ANNA, BEN, CARL, DORA, EVE]
_ALL = [
    *(by_root(who) for who in _PEOPLE),
    *(by_admin(ANNA, who) for who in _PEOPLE),
    *(by_admin(BEN, who, keeps=(grant_id(THROUGH_ANNA[1]),)) for who in _PEOPLE),
    by_root(ANNA, disowns=True),
]
_some = st.lists(st.sampled_from(_ALL), max_size=len(_ALL))


def outcome(revocations: Revocations) -> object:
    chains = [THROUGH_ANNA, *(admin_of(who) for who in _PEOPLE)]
    return revocations.digest, revocations.all, [revocations.why_not(chain) for chain in chains]


@given(_some, _some, st.randoms(use_true_random=False))
def test_merging_is_commutative_and_idempotent(
    one: list[Revocation], other: list[Revocation], rng: random.Random
) -> None:
    both = [*one, *other, *one]
    together = known(*both)
    rng.shuffle(both)
    assert outcome(known(*both)) == outcome(together)
    assert together.merge(both) == []
    parts = known(*one)
    parts.merge(other)
    assert outcome(parts) == outcome(together)


@given(_some, _some)
def test_a_larger_set_never_lets_anybody_in_unless_the_root_disowned(
    one: list[Revocation], other: list[Revocation]
) -> None:
    before, after = known(*one), known(*one, *other)
    if not any(opened.sentence.disowns for opened in (open_revocation(item, ROOT.peer_id) for item in after.all)):
        assert before.counting.keys() <= after.counting.keys()


def test_who_stole_an_admin_fills_its_own_branch_and_the_root_still_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVOCATIONS_PER_BRANCH_MAX", 6)
    monkeypatch.setattr(limits, "REVOCATION_BRANCHES_MAX", 3)
    revocations = known(by_admin(ANNA, CARL))
    helper = (*admin_of(ANNA), grant(ANNA, EVE, role="admin"))
    flood = [by_admin(ANNA, identity(f"victim {n}")) for n in range(5)]
    flood += [by_admin(EVE, identity(f"victim {n}"), chain=helper) for n in range(5)]
    assert len(revocations.merge(flood)) == 5
    assert CARL.peer_id in revocations.counting  # what was known is not pushed out
    assert len(revocations.merge([by_admin(BEN, EVE)])) == 1
    assert revocations.merge([by_admin(DORA, EVE)]) == []  # a third branch beside the root's
    assert len(revocations.merge([by_root(who) for who in _PEOPLE])) == 5


def test_the_set_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    item = by_root(CARL)
    monkeypatch.setattr(limits, "REVOCATIONS_BYTES_PER_BRANCH_MAX", len(item.sentence))
    revocations = known(item)
    assert revocations.merge([by_root(DORA)]) == []
    assert len(revocations) == 1


def test_the_most_that_can_be_known_can_be_said() -> None:
    assert limits.REVOCATIONS_MAX <= limits.ARRAY_ITEMS_MAX
    ids = tuple(bytes([n % 256, n // 256]) * 8 for n in range(limits.REVOCATIONS_MAX))
    largest = Revocation(sentence=bytes(limits.REVOCATION_BYTES_MAX), signature=bytes(64))
    smallest = Revocation(sentence=bytes(200), signature=bytes(64))
    for item in (largest, smallest):
        pages = pages_of([item] * 300)
        assert sum(map(len, pages)) == 300
        for page in pages:
            said = Said(known=ids, revocations=page, done=True)
            assert unpack(pack(said), Said) == said


# -- two sets become one -----------------------------------------------------------------------------------------------


def talk(one: Revocations, other: Revocations, *, turns_max: int = 50) -> int:
    """Let one ask the other as the shells do; return how many messages it took."""
    asker = Asker(one)
    said = asker.first()
    for turn in range(turns_max):
        other.merge(said.revocations)
        if said.done:
            return 2 * turn + 1
        answer = answer_to(said, other)
        said = asker.heard(answer, len(one.merge(answer.revocations)))
    raise AssertionError("it never ends")


@given(_some, _some)
def test_two_nodes_that_talk_know_the_same(one: list[Revocation], other: list[Revocation]) -> None:
    left, right = known(*one), known(*other)
    talk(left, right)
    assert left.digest == right.digest == known(*one, *other).digest


@pytest.mark.parametrize("mine", [0, 1, 100])
@pytest.mark.parametrize("theirs", [0, 1, 100])
def test_many_are_said_in_pages(mine: int, theirs: int) -> None:
    left = known(*(by_root(identity(f"left {n}"), "x" * 200) for n in range(mine // 2)))
    left.merge(by_admin(ANNA, identity(f"left {n}"), reason="x" * 200) for n in range(mine // 2, mine))
    right = known(*(by_admin(BEN, identity(f"right {n}"), reason="x" * 200) for n in range(theirs)))
    talk(left, right)
    assert left.digest == right.digest
    assert len(left) == mine + theirs


def test_talk_with_one_that_has_no_room_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    left = known(*(by_admin(ANNA, identity(f"left {n}")) for n in range(100)))
    right = known(*(by_admin(ANNA, identity(f"right {n}")) for n in range(100)))
    assert talk(left, right) < 20
    assert len(left) == len(right) == limits.REVOCATIONS_PER_BRANCH_MAX
