"""The two sides of an attempt with an invite, driven without any wire: who gets in, who does not, and how often."""

import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.applicant import Applicant, Joined
from lepton.mesh.codes import Code, code_of
from lepton.mesh.errors import PeerError, Refused, UsageError
from lepton.mesh.grants import GRANT_LIFETIME_S, ROLES, authority_of
from lepton.mesh.identity import Identity
from lepton.mesh.invites import INVITE_LIFETIME_S, Host, InviteBook, OpenInvite
from lepton.mesh.messages import pack, unpack
from lepton.mesh.protocol import JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict, Welcome
from lepton.mesh.revocations import Revocations, revoke

from .fakes import NOW, ROOT, SERIAL, credentials, grant, identity

ADMIN, ALICE, BOB = map(identity, ("admin", "alice", "bob"))
OUT = revoke(ROOT, identity("mallory").peer_id, root=ROOT.peer_id, reason="stolen", now=NOW)
HOST = Host(
    mesh_name="home",
    root=ROOT.peer_id,
    identity=ADMIN,
    chain=credentials(ADMIN, role="admin").chain,
    revocations=Revocations(ROOT.peer_id, [OUT]),
)
ENTROPY = bytes(range(7))
DICE = random.Random(1)


def give(book: InviteBook, *, entropy: bytes = ENTROPY, uses: int = 1, role: str = "member", now: float = NOW) -> Code:
    return book.give(held=ROLES["admin"], role=role, uses=uses, now=now, entropy=entropy)


def wrong(code: Code) -> Code:
    return replace(code, password=("1" if code.password[0] == "0" else "0") + code.password[1:])


def begin(book: InviteBook, code: Code, who: Identity = ALICE) -> tuple[Applicant, JoinHeld, Any]:
    applicant = Applicant(code, me=who.peer_id, issuer=ADMIN.peer_id, entropy=DICE.randbytes)
    ask = unpack(pack(applicant.ask()), JoinAsk)
    held, side = book.receive(ask, joiner=who.peer_id, issuer=ADMIN.peer_id, entropy=DICE.randbytes)
    return applicant, unpack(pack(held), JoinHeld), side


def attempt(
    book: InviteBook, code: Code, *, who: Identity = ALICE, now: float = NOW, host: Host = HOST
) -> Joined | Refused | None:
    """Both sides of one attempt, every message through its bytes."""
    applicant, held, side = begin(book, code, who)
    proof = applicant.prove(held)
    if proof is None:
        return None
    received = unpack(pack(proof), JoinProof)
    answer = book.conclude(side, received, joiner=who.peer_id, host=host, now=now, serial=SERIAL)
    return applicant.conclude(unpack(pack(answer.message), JoinGranted), now)


def joined(found: Joined | Refused | None) -> Joined:
    assert isinstance(found, Joined), found
    return found


def test_a_code_becomes_a_grant_for_the_peer_at_the_other_end() -> None:
    book = InviteBook()
    held = joined(attempt(book, give(book, role="trainer")))
    assert held.credentials.mesh_name == "home"
    assert held.revocations == (OUT,)
    authority = authority_of(held.credentials.chain, root=ROOT.peer_id, subject=ALICE.peer_id, now=NOW)
    assert authority.capabilities == ROLES["trainer"]
    assert authority.expires == NOW + GRANT_LIFETIME_S


def test_an_admin_without_the_root_key_invites_in_its_turn() -> None:
    book = InviteBook()
    first = joined(attempt(book, give(book, role="admin"))).credentials
    second = InviteBook()
    code = give(second)
    host = Host(mesh_name="home", root=first.root, identity=ALICE, chain=first.chain, revocations=HOST.revocations)
    applicant = Applicant(code, me=BOB.peer_id, issuer=ALICE.peer_id, entropy=DICE.randbytes)
    held, side = second.receive(applicant.ask(), joiner=BOB.peer_id, issuer=ALICE.peer_id, entropy=DICE.randbytes)
    proof = applicant.prove(held)
    assert proof is not None
    assert side is not None
    answer = second.conclude(side, proof, joiner=BOB.peer_id, host=host, now=NOW, serial=SERIAL)
    chain = joined(applicant.conclude(answer.message, NOW)).credentials.chain
    assert len(chain) == 3
    assert authority_of(chain, root=ROOT.peer_id, subject=BOB.peer_id, now=NOW).capabilities == ROLES["member"]


def test_each_invite_that_does_not_hold_has_its_own_sentence() -> None:
    book = InviteBook()
    code = give(book)
    assert attempt(InviteBook(), code) is None  # not held here: that is no verdict
    with pytest.raises(Refused, match=r"another: it was mistyped or guessed \(4 more tries\)"):
        attempt(book, wrong(code))
    late = attempt(book, code, now=NOW + INVITE_LIFETIME_S)
    assert isinstance(late, Refused)
    assert "This invite has expired; ask for a new one" in str(late)
    first = joined(attempt(book, code))
    assert joined(attempt(book, code)) == first  # the answer may have been lost: the same peer gets the same grant
    second = attempt(book, code, who=BOB)
    assert isinstance(second, Refused)  # said by the proven giver
    assert "This invite was used already" in str(second)


def test_an_invite_is_good_as_often_as_it_says() -> None:
    book = InviteBook()
    code = give(book, uses=3)
    for n in range(3):
        joined(attempt(book, code, who=identity(f"joiner {n}")))
    assert isinstance(attempt(book, code), Refused)
    joined(attempt(book, code, who=identity("joiner 1")))


def test_after_five_wrong_codes_by_whomever_an_invite_is_closed_even_for_the_right_one() -> None:
    book = InviteBook()
    code, other = give(book), give(book, entropy=b"another")
    for n in range(limits.INVITE_TRIES_MAX - 1):
        with pytest.raises(Refused, match=rf"\({limits.INVITE_TRIES_MAX - 1 - n} more tries\)"):
            attempt(book, wrong(code), who=identity(f"stranger {n}"))
    with pytest.raises(Refused, match="This invite is closed: 5 wrong codes were tried with it"):
        attempt(book, wrong(code), who=identity("stranger 5"))
    with pytest.raises(Refused, match="This invite is closed"):
        attempt(book, code)
    joined(attempt(book, other))
    assert code.password not in repr(book.snapshot())


def test_attempts_side_by_side_are_no_way_round_the_count() -> None:
    """Ten are begun before the first is answered: five get an answer that says whether they were right."""
    book = InviteBook()
    code = give(book)
    begun = [begin(book, wrong(code), identity(f"stranger {n}")) for n in range(10)]
    right = begin(book, code)
    said = []
    for n, (applicant, held, side) in enumerate([*begun, right]):
        proof = applicant.prove(held)
        assert proof is not None
        who = ALICE if n == 10 else identity(f"stranger {n}")
        said.append(book.conclude(side, proof, joiner=who.peer_id, host=HOST, now=NOW, serial=SERIAL))
    assert [answer.message.sealed for answer in said] == [b""] * 11
    assert sum("another" in answer.refused for answer in said) == limits.INVITE_TRIES_MAX
    assert sum(answer.refused.startswith("This invite is closed") for answer in said) == 6


def test_attempts_that_are_broken_off_are_bounded_and_cost_others_nothing() -> None:
    book = InviteBook()
    code, other = give(book, uses=2), give(book, entropy=b"another")
    for n in range(limits.INVITE_BROKEN_OFF_MAX - 1):
        assert begin(book, code, identity(f"stranger {n}"))[1].share
    joined(attempt(book, code))  # one that is brought to its end does not count
    assert begin(book, code)[1].share
    with pytest.raises(Refused, match="Too many attempts with this invite were broken off"):
        attempt(book, code)
    joined(attempt(book, other))


def test_a_restart_forgets_no_invite_no_use_and_no_try() -> None:
    book = InviteBook()
    once, twice = give(book), give(book, entropy=bytes(7), uses=2)
    joined(attempt(book, once))
    joined(attempt(book, twice))
    for _ in range(3):
        with pytest.raises(Refused):
            attempt(book, wrong(twice))
    saved = msgspec.json.decode(msgspec.json.encode(book.snapshot()), type=tuple[OpenInvite, ...])
    again = InviteBook(saved)
    assert isinstance(attempt(again, once, who=BOB), Refused)
    joined(attempt(again, once))
    with pytest.raises(Refused, match="1 more tries"):
        attempt(again, wrong(twice))
    joined(attempt(again, twice, who=BOB))
    assert isinstance(attempt(again, twice, who=ADMIN), Refused)
    with pytest.raises(Refused, match="closed"):
        attempt(again, wrong(twice))


def test_two_invites_never_have_one_nameplate() -> None:
    book = InviteBook()
    codes = [give(book) for _ in range(5)]  # the same dice each time
    assert len({code.nameplate for code in codes}) == 5
    last = InviteBook()
    ends = [give(last, entropy=b"\xff" * 7) for _ in range(2)]
    assert [code.nameplate for code in ends] == ["ZZZ", "000"]


def test_a_code_whose_nameplate_was_given_anew_meanwhile_opens_nothing() -> None:
    book = InviteBook()
    old = give(book, role="client")
    applicant, held, side = begin(book, old)
    give(book, entropy=ENTROPY[:2] + b"other", role="admin", now=NOW + INVITE_LIFETIME_S)
    proof = applicant.prove(held)
    assert proof is not None
    answer = book.conclude(side, proof, joiner=ALICE.peer_id, host=HOST, now=NOW + INVITE_LIFETIME_S, serial=SERIAL)
    assert "closed" in answer.refused
    assert answer.message.sealed == b""


# -- what a joiner believes --------------------------------------------------------------------------------------------


def answered(verdict: Verdict, *, who: Identity = ADMIN, knows: bool = True) -> Joined | Refused:
    """Let somebody who knows the code (or does not) answer with any verdict."""
    code, book = code_of(1, 2), InviteBook()
    book._open[code.nameplate] = OpenInvite(
        nameplate=code.nameplate, password=code.password if knows else "ZZZZZZZZ", capabilities=(), uses=1, expires=0
    )
    applicant = Applicant(code, me=ALICE.peer_id, issuer=who.peer_id, entropy=DICE.randbytes)
    held, side = book.receive(applicant.ask(), joiner=ALICE.peer_id, issuer=who.peer_id, entropy=DICE.randbytes)
    proof = applicant.prove(held)
    assert proof is not None
    assert side is not None
    side.receive(proof.share)
    granted = JoinGranted(confirmation=side.confirmation, sealed=side.seal(pack(verdict)))
    return applicant.conclude(granted, NOW)


GOOD = Welcome(mesh_name="home", root=ROOT.peer_id, chain=(*HOST.chain, grant(ADMIN, ALICE)))


def test_what_a_giver_who_knows_the_code_says_is_believed() -> None:
    assert joined(answered(Verdict(welcome=GOOD))).credentials.root == ROOT.peer_id
    refused = answered(Verdict(refused="no"))
    assert isinstance(refused, Refused)
    assert str(refused) == "no"


@pytest.mark.parametrize("verdict", [Verdict(welcome=GOOD), Verdict(refused="no")])
def test_what_somebody_says_who_does_not_know_the_code_is_worth_nothing(verdict: Verdict) -> None:
    with pytest.raises(PeerError, match="claims to hold the invite and does not know its code"):
        answered(verdict, knows=False)


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ((), "showed no grant"),
        ((grant(ROOT, ALICE),), "showed no grant"),  # the issuer's own is missing
        ((*credentials(ADMIN).chain, grant(ADMIN, ALICE)), "lacks the capability 'invite'"),
        ((*credentials(BOB, role="admin").chain, grant(BOB, ALICE)), "belongs to"),  # another issuer than the peer
        ((*HOST.chain, grant(ADMIN, BOB)), "belongs to"),
        ((*HOST.chain, grant(BOB, ALICE)), "of another mesh or forged"),
        ((*HOST.chain, grant(ADMIN, ALICE, expires=NOW)), "has expired"),
    ],
)
def test_an_issuer_that_may_not_invite_gives_nothing(chain: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        answered(Verdict(welcome=msgspec.structs.replace(GOOD, chain=chain)))


def test_an_answer_that_was_changed_on_the_way_is_refused() -> None:
    book = InviteBook()
    applicant, held, side = begin(book, give(book))
    proof = applicant.prove(held)
    assert proof is not None
    answer = book.conclude(side, proof, joiner=ALICE.peer_id, host=HOST, now=NOW, serial=SERIAL)
    sealed = bytearray(answer.message.sealed)
    sealed[20] ^= 1
    with pytest.raises(PeerError, match="changed on the way"):
        applicant.conclude(msgspec.structs.replace(answer.message, sealed=bytes(sealed)), NOW)


def test_revocations_that_do_not_verify_are_not_kept() -> None:
    forged = msgspec.structs.replace(OUT, signature=bytes(64))
    with pytest.raises(PeerError):
        answered(Verdict(welcome=msgspec.structs.replace(GOOD, revocations=(forged,))))


def test_as_many_revocations_as_fit_beside_the_longest_chain_go_along() -> None:
    book = InviteBook()
    chain = (grant(ROOT, BOB, role="admin"), grant(BOB, ADMIN, role="admin"))
    many = [
        revoke(ROOT, identity(f"lost {n}").peer_id, root=ROOT.peer_id, reason="x" * 200, now=NOW)
        for n in range(limits.REVOCATIONS_PER_BRANCH_MAX)
    ]
    host = replace(HOST, chain=chain, revocations=Revocations(ROOT.peer_id, many))
    held = joined(attempt(book, give(book), host=host))
    assert 30 < len(held.revocations) < len(many)


def test_who_was_thrown_out_gets_no_grant_that_would_be_worth_nothing() -> None:
    book = InviteBook()
    found = attempt(book, give(book), who=identity("mallory"))
    assert isinstance(found, Refused)
    assert "a revoked key stays revoked" in str(found)
    out = revoke(ROOT, ADMIN.peer_id, root=ROOT.peer_id, reason="stolen", now=NOW)
    found = attempt(book, give(book), host=replace(HOST, revocations=Revocations(ROOT.peer_id, [out])))
    assert isinstance(found, Refused)
    assert "The node that gave this invite is a member no more" in str(found)


# -- giving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "role", "words"),
    [
        (ROLES["member"], "member", "may not invite a member: it lacks the capability invite"),
        (("mesh", "invite"), "client", r"it lacks infer:\*, service:\*"),
        (("mesh", "invite", "infer:digits", "service:*"), "client", r"it lacks infer:\*"),
    ],
)
def test_nobody_invites_to_more_than_he_may(held: tuple[str, ...], role: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        InviteBook().give(held=held, role=role, now=NOW, entropy=ENTROPY)


@pytest.mark.parametrize(
    ("uses", "lifetime_s"), [(0, 60.0), (-1, 60.0), (limits.MEMBERS_MAX + 1, 60.0), (1, 0.0), (1, -5.0)]
)
def test_an_invite_for_nobody_or_never_is_a_mistake(uses: int, lifetime_s: float) -> None:
    with pytest.raises(UsageError, match=f"got {uses} uses and {lifetime_s:g} s"):
        InviteBook().give(held=ROLES["admin"], uses=uses, lifetime_s=lifetime_s, now=NOW, entropy=ENTROPY)


def test_open_invites_are_bounded_and_expired_ones_make_room() -> None:
    book = InviteBook()
    for _ in range(limits.INVITES_MAX):
        give(book)
    with pytest.raises(UsageError, match="are open already"):
        give(book)
    give(book, now=NOW + INVITE_LIFETIME_S)
    assert len(book.snapshot()) == 1


@settings(max_examples=25)  # each attempt is 14 ms of curve arithmetic
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_however_attempts_come_an_invite_gives_no_more_than_it_says(attempts: list[tuple[int, bool]]) -> None:
    book = InviteBook()
    codes = [give(book, uses=uses, entropy=bytes([uses] * 7)) for uses in (1, 2, 3)]
    grants, errors = [0, 0, 0], [0, 0, 0]
    for n, (which, right) in enumerate(attempts):
        try:
            found = attempt(book, codes[which] if right else wrong(codes[which]), who=identity(f"joiner {n}"))
        except Refused as refused:
            errors[which] += "another" in str(refused)
        else:
            grants[which] += isinstance(found, Joined)
    for uses, granted, wrongly in zip((1, 2, 3), grants, errors, strict=True):
        assert granted <= uses
        assert wrongly <= limits.INVITE_TRIES_MAX
