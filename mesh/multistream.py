"""multistream-select as a machine: how two ends agree on a protocol, one message at a time.

Specification: libp2p ``connections/README.md``, protocol ``/multistream/1.0.0``. Every message is a varint length, a
text and a newline. The asking side sends the header and its first proposal together, which saves a round trip and which
every implementation accepts.
"""

from collections.abc import Collection, Sequence
from typing import Final

from .errors import PeerError

HEADER: Final = "/multistream/1.0.0"
REFUSED: Final = "na"
MESSAGE_BYTES_MAX: Final = 1024  # go-multistream's limit
PROPOSALS_MAX: Final = 16  # a peer that proposes more has nothing in common with us


def encode(text: str) -> bytes:
    """One message."""
    body = text.encode() + b"\n"
    length = len(body)
    prefix = bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))
    return prefix + body


class _Messages:
    """Bytes in, texts out; what comes behind the last message stays in ``rest``."""

    def __init__(self) -> None:
        self.rest = b""

    def next(self) -> str | None:
        data = self.rest
        if not data or (data[0] & 128 and len(data) < 2):
            return None
        start = 2 if data[0] & 128 else 1
        length = data[0] & 127 | (data[1] << 7 if start == 2 else 0)
        if not 0 < length <= MESSAGE_BYTES_MAX:
            msg = f"The peer negotiates with a message of {length} bytes; {MESSAGE_BYTES_MAX} are allowed."
            raise PeerError(msg)
        if len(data) < start + length:
            return None
        body, self.rest = data[start : start + length], data[start + length :]
        if body[-1:] != b"\n":
            msg = "The peer speaks something other than multistream-select."
            raise PeerError(msg)
        return body[:-1].decode(errors="replace")


class Asking:
    """The side that wants one of ``protocols``, the best first."""

    def __init__(self, protocols: Sequence[str]) -> None:
        self._wanted = list(protocols)
        self._messages = _Messages()
        self._greeted = False
        self.chosen: str | None = None

    def start(self) -> bytes:
        """What to send first."""
        return encode(HEADER) + encode(self._wanted[0])

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. ``chosen`` is set at the end. Raises PeerError when nothing is in common."""
        self._messages.rest += data
        answer = b""
        while self.chosen is None and (text := self._messages.next()) is not None:
            answer += self._take(text)
        return answer

    @property
    def rest(self) -> bytes:
        """What came behind the negotiation."""
        return self._messages.rest

    def _take(self, text: str) -> bytes:
        if not self._greeted and text == HEADER:
            self._greeted = True
        elif self._greeted and text == self._wanted[0]:
            self.chosen = text
        elif self._greeted and text == REFUSED and len(self._wanted) > 1:
            del self._wanted[0]
            return encode(self._wanted[0])
        elif self._greeted and text == REFUSED:
            msg = f"The peer does not speak {self._wanted[0]}."
            raise PeerError(msg)
        else:
            msg = f"The peer answered {text[:64]!r} where {self._wanted[0] if self._greeted else HEADER} was due."
            raise PeerError(msg)
        return b""


class Answering:
    """The side that accepts any of ``protocols``."""

    def __init__(self, protocols: Collection[str]) -> None:
        self._known = protocols
        self._messages = _Messages()
        self._greeted = False
        self._left = PROPOSALS_MAX
        self.chosen: str | None = None

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. ``chosen`` is set at the end. Raises PeerError."""
        self._messages.rest += data
        answer = b""
        while self.chosen is None and (text := self._messages.next()) is not None:
            answer += self._take(text)
        return answer

    @property
    def rest(self) -> bytes:
        """What came behind the negotiation."""
        return self._messages.rest

    def _take(self, text: str) -> bytes:
        if not self._greeted:
            if text != HEADER:
                msg = f"The peer began with {text[:64]!r} and not with {HEADER}."
                raise PeerError(msg)
            self._greeted = True
            return encode(HEADER)
        if text in self._known:
            self.chosen = text
            return encode(text)
        self._left -= 1
        if not self._left:
            msg = f"The peer proposed {PROPOSALS_MAX} protocols, none of which we speak."
            raise PeerError(msg)
        return encode(REFUSED)
