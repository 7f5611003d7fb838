"""One side of SPAKE2: two people who share a short password make a strong key of it. Bytes in, bytes out.

SPAKE2 (Abdalla and Pointcheval 2005; RFC 9382) as magic-wormhole's ``spake2`` package computes it, over the group of
Ed25519. Each side sends one random-looking share. Who records both, or takes part without the password, gains no means
to test a guess of his own at home: to test one he must run the protocol against somebody who has the password, once a
guess, and whoever counts the runs that failed can stop him. That rests on the computational Diffie-Hellman problem in
that group, in the random oracle model.

Both peer ids go into the key, so a man in the middle, whom each of the two knows by another id than the one that the
other has, makes two different keys even if he passes every byte on. RFC 9382 calls the two identities A and B; here A
is the joiner. Key confirmation is explicit, a MAC each way, as the RFC asks.

Not what RFC 9382 has to the letter: that package predates it and hashes another transcript with SHA-256, and its two
fixed points are its own. Its arithmetic is Python's and takes a time that depends on the numbers: who measures many
runs may learn the weight of a scalar, a few bits, which is why runs that are broken off are counted too
(``invites.py``).
"""

import hmac
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from .codes import Code
from .errors import PeerError
from .identity import PeerId

SHARE_BYTES: Final = 33  # which side it is of, and a point of the curve
CONFIRMATION_BYTES: Final = 32
SEAL_BYTES: Final = SecretBox.MACBYTES  # what sealing adds
_ONLY_ONE: Final = bytes(SecretBox.NONCE_SIZE)  # each key seals one message, ever

Entropy = Callable[[int], bytes]


class Side:
    """The joiner's or the issuer's side of one run. It is good for one run only."""

    def __init__(self, code: Code, *, joiner: PeerId, issuer: PeerId, joins: bool, entropy: Entropy) -> None:
        """``joins`` says which of the two this is; ``entropy`` returns that many random bytes."""
        password = b"lepton/join/2\x00" + code.nameplate.encode() + code.password.encode()
        kind = SPAKE2_A if joins else SPAKE2_B
        self._pake = kind(password, idA=joiner.encode(), idB=issuer.encode(), entropy_f=entropy)
        self.code = code
        self._joins = joins
        self._key = b""
        self.share: bytes = self._pake.start()

    def receive(self, share: bytes) -> None:
        """Take the other side's share, once. Raises PeerError when it is none."""
        try:
            self._key = self._pake.finish(share)
        except (SPAKEError, ValueError, NotOnCurve) as error:
            msg = f"A share of a key exchange is not one: {str(error) or type(error).__name__}."
            raise PeerError(msg) from error

    @property
    def confirmation(self) -> bytes:
        """What proves to the other side that this one has the password."""
        return self._derive(b"joiner" if self._joins else b"issuer")

    def confirmed_by(self, shown: bytes) -> bool:
        """Whether the other side has the password too."""
        return hmac.compare_digest(shown, self._derive(b"issuer" if self._joins else b"joiner"))

    def seal(self, plain: bytes) -> bytes:
        """Encrypt and authenticate the one message that the issuer sends under this key."""
        return bytes(self._box.encrypt(plain, _ONLY_ONE).ciphertext)

    def open(self, sealed: bytes) -> bytes:
        """Raise PeerError when it is not from the side that has the key."""
        try:
            return bytes(self._box.decrypt(sealed, _ONLY_ONE))
        except CryptoError as error:
            msg = "A sealed answer is not from whoever made the key; it was changed on the way."
            raise PeerError(msg) from error

    @property
    def _box(self) -> SecretBox:
        return SecretBox(self._derive(b"seal"))

    def _derive(self, purpose: bytes) -> bytes:
        assert self._key, "the other side's share comes first"
        return blake2b(key=self._key, person=purpose, digest_size=32).digest()
