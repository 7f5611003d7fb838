"""The key exchange behind a code: what two who know it get, and what one gets who does not.

What an attacker could do at home is played with the package's own arithmetic: he knows every byte that was sent and
tries passwords on it.
"""

import random
from collections.abc import Callable
from hashlib import blake2b

import pytest
from lepton.mesh.codes import Code, code_of
from lepton.mesh.errors import PeerError
from lepton.mesh.identity import Identity
from lepton.mesh.pake import CONFIRMATION_BYTES, SEAL_BYTES, SHARE_BYTES, Side
from spake2 import SPAKE2_A
from spake2.ed25519_basic import Base, bytes_to_element

from .fakes import identity

JOINER, ISSUER, EVE = map(identity, ("joiner", "issuer", "eve"))
CODE, WRONG = code_of(7, 12345), code_of(7, 12346)


def entropy(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def side(code: Code = CODE, *, joins: bool, seed: int, joiner: Identity = JOINER, issuer: Identity = ISSUER) -> Side:
    return Side(code, joiner=joiner.peer_id, issuer=issuer.peer_id, joins=joins, entropy=entropy(seed))


def meet(joiner: Side, issuer: Side) -> None:
    joiner.receive(issuer.share)
    issuer.receive(joiner.share)


def test_two_who_know_the_code_make_one_key() -> None:
    joiner, issuer = side(joins=True, seed=1), side(joins=False, seed=2)
    meet(joiner, issuer)
    assert len(joiner.share) == SHARE_BYTES
    assert len(joiner.confirmation) == CONFIRMATION_BYTES
    assert issuer.confirmed_by(joiner.confirmation)
    assert joiner.confirmed_by(issuer.confirmation)
    sealed = issuer.seal(b"welcome")
    assert len(sealed) == len(b"welcome") + SEAL_BYTES
    assert joiner.open(sealed) == b"welcome"


def test_a_confirmation_said_back_confirms_nothing() -> None:
    joiner, issuer = side(joins=True, seed=1), side(joins=False, seed=2)
    meet(joiner, issuer)
    assert not joiner.confirmed_by(joiner.confirmation)
    assert not issuer.confirmed_by(issuer.confirmation)


@pytest.mark.parametrize("other", [WRONG, Code("008", CODE.password)], ids=["password", "nameplate"])
def test_another_code_makes_another_key(other: Code) -> None:
    joiner, issuer = side(other, joins=True, seed=1), side(joins=False, seed=2)
    meet(joiner, issuer)
    assert not issuer.confirmed_by(joiner.confirmation)
    assert not joiner.confirmed_by(issuer.confirmation)
    with pytest.raises(PeerError, match="sealed answer is not from"):
        joiner.open(issuer.seal(b"welcome"))


def test_a_man_in_the_middle_who_passes_everything_on_makes_two_keys() -> None:
    """Each of the two has a sealed connection with him, and so names him and not the other."""
    joiner = side(joins=True, seed=1, issuer=EVE)
    issuer = side(joins=False, seed=2, joiner=EVE)
    meet(joiner, issuer)
    assert not issuer.confirmed_by(joiner.confirmation)
    assert not joiner.confirmed_by(issuer.confirmation)


def confirmation_of(key: bytes, person: bytes) -> bytes:
    return blake2b(key=key, person=person, digest_size=32).digest()


def test_who_records_everything_can_try_nothing_at_home() -> None:
    """The transcript of a true run: two shares, two confirmations, a sealed message. He even guesses the right code.

    What he lacks is either side's secret number. With the code he can take the blinding off both shares, and is left
    with a Diffie-Hellman problem; every combination of what he has is tried here as the shared point, and none gives
    the key, for the right password no more than for a wrong one: the transcript tells guesses apart in no way.
    """
    joiner, issuer = side(joins=True, seed=1), side(joins=False, seed=2)
    meet(joiner, issuer)
    recorded = joiner.confirmation
    for guess in (CODE, WRONG):
        password = b"lepton/join/2\x00" + guess.nameplate.encode() + guess.password.encode()
        for seed in range(3):  # in the place of the joiner's secret number, some of his own
            pake = SPAKE2_A(
                password, idA=JOINER.peer_id.encode(), idB=ISSUER.peer_id.encode(), entropy_f=entropy(100 + seed)
            )
            pake.start()
            pake.outbound_message = joiner.share[1:]  # the transcript's, so that only the shared point is wrong
            assert confirmation_of(pake.finish(issuer.share), b"joiner") != recorded
        pake = SPAKE2_A(password, idA=JOINER.peer_id.encode(), idB=ISSUER.peer_id.encode())
        blinds = pake.params.M.scalarmult(-pake.pw_scalar), pake.params.N.scalarmult(-pake.pw_scalar)
        X, Y = (bytes_to_element(s.share[1:]).add(b) for s, b in zip((joiner, issuer), blinds, strict=True))
        pake.outbound_message, pake.inbound_message = joiner.share[1:], issuer.share[1:]
        for point in (X, Y, X.add(Y), X.subtract(Y), Base):
            assert confirmation_of(pake._finalize(point.to_bytes()), b"joiner") != recorded


def test_the_right_secret_number_is_what_he_lacks() -> None:
    """That the test above could succeed at all: with the joiner's own randomness the same steps give the key."""
    joiner, issuer = side(joins=True, seed=1), side(joins=False, seed=2)
    meet(joiner, issuer)
    password = b"lepton/join/2\x00" + CODE.nameplate.encode() + CODE.password.encode()
    pake = SPAKE2_A(password, idA=JOINER.peer_id.encode(), idB=ISSUER.peer_id.encode(), entropy_f=entropy(1))
    pake.start()
    assert confirmation_of(pake.finish(issuer.share), b"joiner") == joiner.confirmation


def test_shares_say_nothing_about_the_code() -> None:
    """For any share and any code there is one secret number that makes the one of the other: no code is likelier.

    Shown by making the same share from two codes: a number x for one code, x + (w - w') m for the other, where M = m·B
    is chosen by the test. (With the true M nobody knows m, but it exists.)
    """
    order = 2**252 + 27742317777372353535851937790883648493
    m, w, other, x = 3, 1111, 2222, 987654321
    share = Base.scalarmult(x).add(Base.scalarmult(m).scalarmult(w))
    same = Base.scalarmult((x + (w - other) * m) % order).add(Base.scalarmult(m).scalarmult(other))
    assert share.to_bytes() == same.to_bytes()


ZERO = (1).to_bytes(32, "little")
SMALL_ORDER = (2**255 - 20).to_bytes(32, "little")  # y = -1


@pytest.mark.parametrize(
    "share",
    [
        b"",
        b"B",
        b"B" + bytes(31),
        b"C" + bytes(32),
        b"B" + ZERO,
        b"B" + SMALL_ORDER,
        b"B" + bytes(32),
        b"B\x02" + bytes(31),
    ],
)
def test_what_is_no_share_is_refused(share: bytes) -> None:
    joiner = side(joins=True, seed=1)
    with pytest.raises(PeerError, match="A share of a key exchange is not one"):
        joiner.receive(share)


def test_one_side_twice_and_a_share_said_back_are_refused() -> None:
    joiner = side(joins=True, seed=1)
    with pytest.raises(PeerError, match="is not one"):
        joiner.receive(joiner.share)
    with pytest.raises(PeerError, match="is not one"):
        side(joins=False, seed=1).receive(b"A" + side(joins=False, seed=1).share[1:])
