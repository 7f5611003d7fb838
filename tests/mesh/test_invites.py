"""Invites: codes that people type, and the book of those that one node has given."""

import base58
import pytest
from lepton.mesh import limits
from lepton.mesh.errors import Refused, UsageError
from lepton.mesh.grants import GRANT_LIFETIME_S, ROLES, Grant, authority_of
from lepton.mesh.identity import Identity
from lepton.mesh.invites import INVITE_LIFETIME_S, Invite, InviteBook, OpenInvite, read_code
from lepton.mesh.messages import pack, unpack

from .fakes import NOW, ROOT, SERIAL, credentials, identity

ADMIN, ALICE, BOB = map(identity, ("admin", "alice", "bob"))
SECRET = bytes(range(16))


def give(book: InviteBook, *, secret: bytes = SECRET, uses: int = 1, role: str = "member", now: float = NOW) -> Invite:
    return book.give("home", ROOT.peer_id, held=ROLES["admin"], role=role, uses=uses, now=now, secret=secret)


def redeem(
    book: InviteBook, invite: Invite, *, secret: bytes | None = None, who: Identity = ALICE, now: float = NOW
) -> Grant:
    shown = invite.secret if secret is None else secret
    return book.redeem(invite.hint, shown, who.peer_id, issuer=ADMIN, now=now, serial=SERIAL)


def test_a_code_says_all_that_a_joiner_needs() -> None:
    invite = give(InviteBook())
    code = invite.code()
    assert len(code) < 120  # it may have to be typed
    assert read_code(f"  {code}\n", NOW) == invite
    assert invite.root == ROOT.peer_id
    assert invite.expires == NOW + INVITE_LIFETIME_S


def test_every_mistyped_character_is_seen() -> None:
    code = give(InviteBook()).code()
    alphabet = base58.BITCOIN_ALPHABET.decode() + "0OIl é-"
    wrong = {code[:at] + letter + code[at + 1 :] for at in range(len(code)) for letter in alphabet} - {code}
    wrong |= {code[:at] + code[at + 1 :] for at in range(len(code))}  # left out
    wrong |= {code[:at] + code[at] + code[at:] for at in range(len(code))}  # twice
    swapped = {code[:at] + code[at + 1] + code[at] + code[at + 2 :] for at in range(len(code) - 1)}
    wrong |= swapped - {code}
    assert len(wrong) > 5000
    for mistyped in wrong:
        with pytest.raises(UsageError, match="a character of it is wrong"):
            read_code(mistyped, NOW)


@pytest.mark.parametrize("code", ["", " ", "hello", "1" * 10_000, base58.b58encode_check(b"\xc0").decode()])
def test_what_is_no_code_is_told_so(code: str) -> None:
    with pytest.raises(UsageError, match="not an invite code"):
        read_code(code, NOW)


def test_an_expired_code_and_one_of_another_release_say_so() -> None:
    invite = give(InviteBook())
    with pytest.raises(UsageError, match="This invite to 'home' has expired; ask for a new one"):
        read_code(invite.code(), NOW + INVITE_LIFETIME_S)
    newer = Invite(version=2, mesh_name="home", root_key=ROOT.public_key, secret=SECRET, expires=invite.expires)
    with pytest.raises(UsageError, match="version 2; this release reads version 1"):
        read_code(newer.code(), NOW)


def test_an_invite_becomes_a_grant_for_the_peer_at_the_other_end() -> None:
    book = InviteBook()
    invite = give(book, role="trainer")
    chain = (*credentials(ADMIN, role="admin").chain, redeem(book, invite))
    authority = authority_of(chain, root=invite.root, subject=ALICE.peer_id, now=NOW)
    assert authority.capabilities == ROLES["trainer"]
    assert authority.expires == NOW + GRANT_LIFETIME_S


def test_each_invite_that_does_not_hold_has_its_own_sentence() -> None:
    book = InviteBook()
    invite = give(book)
    with pytest.raises(Refused, match="not known here: it was mistyped"):
        redeem(book, invite, secret=bytes(16))
    with pytest.raises(Refused, match="not known here"):
        redeem(InviteBook(), invite)
    with pytest.raises(Refused, match="This invite has expired"):
        redeem(book, invite, now=NOW + INVITE_LIFETIME_S)
    redeem(book, invite)
    with pytest.raises(Refused, match="This invite was used already"):
        redeem(book, invite, who=BOB)


def test_an_invite_is_good_as_often_as_it_says() -> None:
    book = InviteBook()
    invite = give(book, uses=3)
    grants = [redeem(book, invite, who=identity(f"joiner {n}")) for n in range(3)]
    assert len({grant.statement for grant in grants}) == 3
    with pytest.raises(Refused, match="used already"):
        redeem(book, invite)


def test_who_shows_wrong_secrets_is_soon_not_heard_any_more() -> None:
    book = InviteBook()
    invite = give(book)
    for _ in range(limits.INVITE_TRIES_MAX):
        with pytest.raises(Refused, match="not known here"):
            redeem(book, invite, secret=bytes(16))
    with pytest.raises(Refused, match="not listened to any more"):
        redeem(book, invite)  # even the right one
    redeem(book, invite, who=BOB)


def test_strangers_with_ever_new_names_cost_bounded_memory() -> None:
    book = InviteBook()
    invite = give(book)
    for n in range(limits.INVITES_MAX + 10):
        with pytest.raises(Refused):
            redeem(book, invite, secret=bytes(16), who=identity(f"stranger {n}"))
    assert len(book._failures) <= limits.INVITES_MAX


def test_a_restart_forgets_no_invite_and_no_use() -> None:
    book = InviteBook()
    once, twice = give(book), give(book, secret=bytes(16), uses=2)
    redeem(book, once)
    redeem(book, twice)
    saved = tuple(unpack(pack(invite), OpenInvite) for invite in book.snapshot())
    again = InviteBook(saved)
    with pytest.raises(Refused, match="used already"):
        redeem(again, once)
    redeem(again, twice)
    with pytest.raises(Refused, match="used already"):
        redeem(again, twice)
    assert SECRET not in b"".join(invite.hashed for invite in saved)  # only hashes are kept


def test_the_hint_shows_whether_it_is_held_and_nothing_of_the_secret() -> None:
    book = InviteBook()
    invite = give(book)
    assert book.holds(invite.hint)
    assert not book.holds(bytes(8))
    assert invite.hint not in invite.secret


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
        InviteBook().give("home", ROOT.peer_id, held=held, role=role, now=NOW, secret=SECRET)


@pytest.mark.parametrize(("uses", "lifetime_s"), [(0, 60.0), (-1, 60.0), (1, 0.0), (1, -5.0)])
def test_an_invite_for_nobody_or_never_is_a_mistake(uses: int, lifetime_s: float) -> None:
    with pytest.raises(UsageError, match=f"got {uses} uses and {lifetime_s:g} s"):
        InviteBook().give(
            "home", ROOT.peer_id, held=ROLES["admin"], uses=uses, lifetime_s=lifetime_s, now=NOW, secret=SECRET
        )


def test_open_invites_are_bounded_and_expired_ones_make_room() -> None:
    book = InviteBook()
    for n in range(limits.INVITES_MAX):
        give(book, secret=n.to_bytes(16))
    with pytest.raises(UsageError, match="are open already"):
        give(book, secret=b"x" * 16)
    give(book, secret=b"x" * 16, now=NOW + INVITE_LIFETIME_S)
    assert len(book.snapshot()) == 1
