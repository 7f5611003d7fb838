"""What a node says of itself on the local network: names drawn anew each time, and one value for members alone.

The value is the peer id and the port, sealed (XSalsa20-Poly1305) under a key made of the mesh's root public key, which
members have and outsiders do not, with a nonce of its own. Two announcements of one node, or of two nodes of one mesh,
have nothing in common but what the network shows anyway: the service type, addresses and port. A value that is copied
to another address leads nowhere, for a dial is good only if that very peer answers it.

Pure: bytes in, bytes out.
"""

from hashlib import blake2b
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from .identity import PUBLIC_KEY_BYTES, PeerId, peer_id_of, public_key_of

NONCE_BYTES: Final = SecretBox.NONCE_SIZE
_PORT_BYTES: Final = 2
SEALED_BYTES: Final = NONCE_BYTES + PUBLIC_KEY_BYTES + _PORT_BYTES + SecretBox.MACBYTES  # 74; a TXT string holds 255


class Seal:
    """Seals and opens the announcements of one mesh."""

    def __init__(self, mesh: PeerId) -> None:
        key = blake2b(key=public_key_of(mesh), person=b"lepton-mdns", digest_size=SecretBox.KEY_SIZE).digest()
        self._box = SecretBox(key)

    def close(self, peer: PeerId, port: int, nonce: bytes) -> bytes:
        """Seal who listens where. ``nonce`` is ``NONCE_BYTES`` random bytes, never used before."""
        plain = public_key_of(peer) + port.to_bytes(_PORT_BYTES)
        return bytes(self._box.encrypt(plain, nonce))

    def open(self, sealed: bytes, port: int) -> PeerId | None:
        """Return who of this mesh announced itself at this port; None for another mesh's and any other bytes."""
        if len(sealed) != SEALED_BYTES:
            return None
        try:
            plain = self._box.decrypt(sealed)
        except CryptoError:
            return None
        key, said = plain[:PUBLIC_KEY_BYTES], plain[PUBLIC_KEY_BYTES:]
        return peer_id_of(key) if int.from_bytes(said) == port else None
