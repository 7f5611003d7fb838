"""Identities: one key, one name, one signature for one purpose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.identity import SEED_BYTES, Identity, PeerId, peer_id_of, public_key_of, short, verify

from .fakes import identity

ALICE, BOB = identity("alice"), identity("bob")


def test_a_peer_id_is_the_one_that_libp2p_gives_the_same_key() -> None:
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.id import ID

    for name in ("alice", "bob", "carol"):
        someone = identity(name)
        assert someone.peer_id == str(ID.from_pubkey(Ed25519PublicKey.from_bytes(someone.public_key)))


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_carries_the_whole_key(key: bytes) -> None:
    assert public_key_of(peer_id_of(key)) == key


def test_a_seed_is_the_whole_identity() -> None:
    again = Identity(ALICE.seed)
    assert again.peer_id == ALICE.peer_id
    assert again.sign("x", b"y") == ALICE.sign("x", b"y")
    assert Identity.generate().peer_id != Identity.generate().peer_id


@pytest.mark.parametrize("size", [0, SEED_BYTES - 1, SEED_BYTES + 1])
def test_a_seed_of_another_length_is_named(size: int) -> None:
    with pytest.raises(UsageError, match=f"this one has {size}"):
        Identity(bytes(size))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "12D3KooW",
        "é" * 52,
        "0" * 52,  # no letter of base58
        "1" * 64,
        "Q" * 1_000_000,
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # the id of an RSA key
        *(pad[0] + ALICE.peer_id + pad[1] for pad in ((" ", ""), ("", " "), ("", "\n"), ("1", ""))),
    ],
)
def test_what_is_no_peer_id_of_an_ed25519_key_is_the_senders_fault(text: str) -> None:
    with pytest.raises(PeerError, match="is not the peer id"):
        public_key_of(text)


@given(st.text(max_size=70))
def test_any_text_gives_a_key_or_a_peer_error(text: str) -> None:
    try:
        key = public_key_of(text)
    except PeerError:
        return
    assert peer_id_of(key) == text


def test_a_signature_is_good_for_its_maker_its_purpose_and_its_words_only() -> None:
    signature = ALICE.sign("grant", b"words")
    verify(ALICE.peer_id, "grant", b"words", signature)
    for signer, purpose, words, made in (
        (BOB.peer_id, "grant", b"words", signature),
        (ALICE.peer_id, "record", b"words", signature),
        (ALICE.peer_id, "grant", b"other", signature),
        (ALICE.peer_id, "grant", b"words", BOB.sign("grant", b"words")),
        (ALICE.peer_id, "grant", b"words", signature[:-1]),
        (ALICE.peer_id, "grant", b"words", b""),
        (PeerId("nobody"), "grant", b"words", signature),
    ):
        with pytest.raises(PeerError):
            verify(signer, purpose, words, made)


def test_people_see_the_end_of_a_peer_id_since_all_begin_alike() -> None:
    assert short(ALICE.peer_id) == ALICE.peer_id[-8:]
    assert repr(ALICE) == f"Identity({ALICE.peer_id})"
    assert ALICE.seed.hex() not in repr(ALICE)
