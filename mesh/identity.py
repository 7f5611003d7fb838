"""Who a node is: an Ed25519 key pair, and the libp2p peer id that names it everywhere.

A peer id of an Ed25519 key carries the whole public key (libp2p peer-ids specification: identity multihash of the
protobuf-encoded key), so a signature can be checked by anyone who knows the name of its maker.
"""

from functools import lru_cache
from typing import NewType

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from .errors import PeerError, UsageError

PeerId = NewType("PeerId", str)

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
# identity multihash (0x00), 36 bytes, protobuf: field 1 = Ed25519 (1), field 2 = 32 bytes
_PEER_ID_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_PEER_ID_CHARACTERS_MAX = 64  # base58 of 38 bytes has 52
_NAMES_KEPT = 4096  # as many as a mesh has members; to read one takes as long as to check a signature


class Identity:
    """One node's key pair. ``seed`` is the secret; everything else may be shown to anyone."""

    def __init__(self, seed: bytes) -> None:
        """Take a 32-byte Ed25519 seed (RFC 8032). Raises UsageError when it has another length."""
        if len(seed) != SEED_BYTES:
            msg = f"An identity seed has {SEED_BYTES} bytes; this one has {len(seed)}."
            raise UsageError(msg)
        self.seed = seed
        self._key = SigningKey(seed)
        self.public_key: bytes = bytes(self._key.verify_key)
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def generate(cls) -> "Identity":
        return cls(bytes(SigningKey.generate()))

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """Sign ``payload`` for one purpose, so that a signature made for one thing never passes for another."""
        return bytes(self._key.sign(_with_purpose(purpose, payload)).signature)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def verify(signer: PeerId, purpose: str, payload: bytes, signature: bytes) -> None:
    """Check a signature made by ``Identity.sign``. Raises PeerError when it is not the signer's for this purpose."""
    try:
        VerifyKey(public_key_of(signer)).verify(_with_purpose(purpose, payload), signature)
    except (BadSignatureError, ValueError) as error:
        msg = f"The signature on a {purpose} is not that of {short(signer)}; it was forged or damaged on the way."
        raise PeerError(msg) from error


def peer_id_of(public_key: bytes) -> PeerId:
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


@lru_cache(_NAMES_KEPT)
def public_key_of(peer_id: str) -> bytes:
    """Return the 32-byte Ed25519 key inside a peer id. Raises PeerError when the text is no such id."""
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) <= _PEER_ID_CHARACTERS_MAX else b""
    except ValueError:
        raw = b""
    key = raw[len(_PEER_ID_PREFIX) :]
    # Only the one text that `peer_id_of` writes: base58 passes over spaces at the end, and a peer has one name.
    if len(key) != PUBLIC_KEY_BYTES or peer_id_of(key) != peer_id:
        msg = f"{peer_id[:_PEER_ID_CHARACTERS_MAX]!r} is not the peer id of an Ed25519 key."
        raise PeerError(msg)
    return key


def short(peer_id: str) -> str:
    """Name a peer for people: the last eight characters, since the first eight are the same for everybody."""
    return peer_id[-8:]


def _with_purpose(purpose: str, payload: bytes) -> bytes:
    return b"lepton/" + purpose.encode() + b"\x00" + payload
