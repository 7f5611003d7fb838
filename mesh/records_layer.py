"""Record layers as machines: plaintext pieces in, one block of ciphertext out, and back. They come after a handshake.

Both work on whole batches: every record of a batch leaves as one block for one ``send``, and every record of a wake-up
is decrypted together. Sources: Noise specification rev 34 section 5 and libp2p ``noise/README.md`` (a 2-byte length,
then at most 65,535 bytes); libp2p ``tls/tls.md`` over Python's ``ssl.MemoryBIO``.
"""

import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .errors import PeerError

Buffer = bytes | bytearray | memoryview

TAG_BYTES: Final = 16
MESSAGE_BYTES_MAX: Final = 65535  # of Noise: what a 2-byte length can say
PLAINTEXT_BYTES_MAX: Final = MESSAGE_BYTES_MAX - TAG_BYTES
_LENGTH: Final = struct.Struct("!H")
# Noise section 12.3: the nonce of ChaChaPoly is 32 zero bits and a little-endian count.
_NONCE: Final = struct.Struct("<4xQ")
_TLS_RECORD_BYTES: Final = 16384


class Records(Protocol):
    """One side's sealed connection."""

    name: str
    ended: bool

    def seal(self, pieces: Sequence[Buffer]) -> Buffer:
        """Encrypt the pieces as one run of bytes."""
        ...

    def open(self, block: memoryview) -> list[bytes]:
        """Decrypt every record that this completes. ``block`` may be reused afterwards. Raises PeerError."""
        ...

    def farewell(self) -> Buffer:
        """What the record layer itself has to say before the connection closes."""
        ...


class NoiseRecords:
    """``/noise`` after its handshake."""

    name = "/noise"

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        """Keys are 32 bytes each, as Noise's Split() made them."""
        self._encrypt = ChaCha20Poly1305(send_key).encrypt
        self._decrypt = ChaCha20Poly1305(receive_key).decrypt
        self._sent = 0
        self._received = 0
        self._partial = bytearray()
        self.ended = False

    def seal(self, pieces: Sequence[Buffer]) -> bytes:
        """One message for each run of pieces that fits; a piece that is too long is cut."""
        if pieces and sum(map(len, pieces)) <= PLAINTEXT_BYTES_MAX:  # a small call, which this makes cheaper
            plaintext = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            sealed = self._encrypt(_NONCE.pack(self._sent), plaintext, None)
            self._sent += 1
            return _LENGTH.pack(len(sealed)) + sealed
        out: list[Buffer] = []
        run: list[Buffer] = []
        size = 0
        for piece in pieces:
            left = memoryview(piece)
            if run and size + len(left) > PLAINTEXT_BYTES_MAX and len(left) <= PLAINTEXT_BYTES_MAX:
                self._seal_one(run, out)
                run, size = [], 0
            while size + len(left) > PLAINTEXT_BYTES_MAX:
                cut = PLAINTEXT_BYTES_MAX - size
                run.append(left[:cut])
                left = left[cut:]
                self._seal_one(run, out)
                run, size = [], 0
            run.append(left)
            size += len(left)
        if run:
            self._seal_one(run, out)
        return b"".join(out)

    def _seal_one(self, run: list[Buffer], out: list[Buffer]) -> None:
        plaintext = run[0] if len(run) == 1 else b"".join(run)
        out.append(_LENGTH.pack(len(plaintext) + TAG_BYTES))
        out.append(self._encrypt(_NONCE.pack(self._sent), plaintext, None))
        self._sent += 1

    def open(self, block: memoryview) -> list[bytes]:
        out: list[bytes] = []
        at = self._complete(block, out) if self._partial else 0
        if self._partial:
            return out
        end = len(block)
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(block, at)
            start = at + _LENGTH.size
            if end - start < length:
                break
            at = start + length
            self._open_one(block[start:at], out)
        self._partial += block[at:]
        return out

    def _complete(self, block: memoryview, out: list[bytes]) -> int:
        """Finish the message that the last block began. Returns how much of this block that took."""
        at = 0
        if len(self._partial) < _LENGTH.size:
            at = min(_LENGTH.size - len(self._partial), len(block))
            self._partial += block[:at]
            if len(self._partial) < _LENGTH.size:
                return at
        length = int.from_bytes(self._partial[: _LENGTH.size], "big")
        more = min(_LENGTH.size + length - len(self._partial), len(block) - at)
        self._partial += block[at : at + more]
        if len(self._partial) == _LENGTH.size + length:
            message, self._partial = self._partial, bytearray()
            self._open_one(memoryview(message)[_LENGTH.size :], out)
        return at + more

    def _open_one(self, message: memoryview, out: list[bytes]) -> None:
        try:
            plaintext = self._decrypt(_NONCE.pack(self._received), message, None)
        except (InvalidTag, ValueError) as error:
            msg = f"Message {self._received} of the peer was damaged or forged on the way; the connection is closed."
            raise PeerError(msg) from error
        self._received += 1
        out.append(plaintext)

    def farewell(self) -> bytes:
        return b""


class TlsRecords:
    """``/tls/1.0.0`` after its handshake: the handshake's own TLS object and its two memory buffers."""

    name = "/tls/1.0.0"

    def __init__(self, session: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._session = session
        self._incoming = incoming
        self._outgoing = outgoing
        self.ended = False

    def seal(self, pieces: Sequence[Buffer]) -> bytes:
        left = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        while left:
            left = left[self._session.write(left) :]
        return self._outgoing.read()

    def open(self, block: memoryview) -> list[bytes]:
        self._incoming.write(block)
        out: list[bytes] = []
        read = self._session.read
        try:
            while piece := read(_TLS_RECORD_BYTES):
                out.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            msg = f"The peer's TLS is broken: {error.reason or error}; the connection is closed."
            raise PeerError(msg) from error
        return out

    def farewell(self) -> bytes:
        """TLS says goodbye with an alert of its own, so that its end is not mistaken for a cut."""
        with suppress(ssl.SSLError):
            self._session.unwrap()
        return self._outgoing.read()
