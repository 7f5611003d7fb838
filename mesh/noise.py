"""The Noise XX handshake of libp2p as a machine: bytes in, bytes out, and at the end who the peer is and two keys.

Sources: libp2p ``noise/README.md``; Noise specification rev 34, ``Noise_XX_25519_ChaChaPoly_SHA256``. The peers sign
their static keys with their identities. The muxer is agreed on in the same messages when both sides offer it
(``stream_muxers``), which saves a negotiation; a peer that does not is asked by multistream-select as ever.
"""

from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from .errors import PeerError
from .records_layer import NoiseRecords
from .stock import (
    ID,
    Ed25519PrivateKey,
    NoiseExtensions,
    NoiseHandshakePayload,
    X25519PublicKey,
    make_handshake_payload_sig,
    verify_handshake_payload_sig,
)

PROTOCOL: Final = "/noise"
_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
_MESSAGES: Final = 3  # of the XX pattern; the initiator sends the first and the last


class KeyHolder(Protocol):
    """What of an identity the handshakes need."""

    @property
    def seed(self) -> bytes:
        """The 32-byte Ed25519 seed."""
        ...

    @property
    def peer_id(self) -> str: ...


class NoiseKeys:
    """What all handshakes of one node share: a static key, and the identity's signature under it."""

    def __init__(self, identity: KeyHolder, muxers: list[str]) -> None:
        self.muxers = muxers
        static = X25519PrivateKey.generate()
        self.static = static.private_bytes_raw()
        key = Ed25519PrivateKey.from_bytes(identity.seed)
        signature = make_handshake_payload_sig(key, X25519PublicKey(static.public_key()))
        extensions = NoiseExtensions(stream_muxers=muxers)
        self.payload = NoiseHandshakePayload(key.get_public_key(), signature, extensions).serialize()


class NoiseHandshake:
    """One handshake. Feed it until ``records`` is set; then ``peer_id``, ``muxer`` and ``rest`` are, too."""

    def __init__(self, keys: NoiseKeys, *, initiator: bool) -> None:
        self._keys = keys
        self._initiator = initiator
        self._noise = NoiseConnection.from_name(_NAME)
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, keys.static)
        (self._noise.set_as_initiator if initiator else self._noise.set_as_responder)()
        self._noise.start_handshake()
        self._state = self._noise.noise_protocol.handshake_state  # the library forgets it after the last message
        self._turn = 0  # messages done
        self.rest = b""  # what came behind the last message
        self.records: NoiseRecords | None = None
        self.peer_id = ""
        self.muxer: str | None = None

    def start(self) -> bytes:
        """What to send first, which is nothing for the responder."""
        return self._write(b"") if self._initiator else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. Raises PeerError when the peer is not who its key says, or talks nonsense."""
        self.rest += data
        answer = b""
        while self.records is None and len(self.rest) >= 2:
            length = int.from_bytes(self.rest[:2], "big")
            if len(self.rest) < 2 + length:
                break
            message, self.rest = self.rest[2 : 2 + length], self.rest[2 + length :]
            answer += self._take(message)
        return answer

    def _take(self, message: bytes) -> bytes:
        try:
            payload = bytes(self._noise.read_message(message))
        except Exception as error:  # the library raises a dozen kinds, from InvalidTag to AssertionError
            msg = f"Noise message {self._turn + 1} of the peer is damaged: {type(error).__name__}."
            raise PeerError(msg) from error
        self._turn += 1
        if self._turn == 1:
            return self._write(self._keys.payload)
        self._identify(payload)
        answer = self._write(self._keys.payload) if self._turn < _MESSAGES else b""
        self._split()
        return answer

    def _write(self, payload: bytes) -> bytes:
        self._turn += 1
        try:
            message = bytes(self._noise.write_message(payload))
        except ValueError as error:  # a point of small order, with which there is no secret; found by fuzzing
            msg = "The peer's Noise key is none: no secret can be agreed on with it."
            raise PeerError(msg) from error
        return len(message).to_bytes(2, "big") + message

    def _identify(self, data: bytes) -> None:
        static = self._state.rs.public
        try:
            payload = NoiseHandshakePayload.deserialize(data)
            genuine = verify_handshake_payload_sig(payload, X25519PublicKey(static))
            peer_id = ID.from_pubkey(payload.id_pubkey).to_base58()
        except Exception as error:  # protobuf, key and multihash errors share no base
            msg = f"The peer's identity cannot be read: {error}."
            raise PeerError(msg) from error
        if not genuine:
            msg = f"The peer poses as {peer_id}, but did not sign its key."
            raise PeerError(msg)
        self.peer_id = peer_id
        theirs = payload.extensions.stream_muxers if payload.extensions else []
        ours = self._keys.muxers
        first, second = (ours, theirs) if self._initiator else (theirs, ours)
        self.muxer = next((muxer for muxer in first if muxer in second), None)

    def _split(self) -> None:
        protocol = self._noise.noise_protocol
        self.records = NoiseRecords(protocol.cipher_state_encrypt.k, protocol.cipher_state_decrypt.k)
