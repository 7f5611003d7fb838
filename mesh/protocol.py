"""The messages of membership: hello, join, and the exchange of records."""

from typing import Annotated

import msgspec

from . import limits
from .grants import Chain, Grant
from .identity import PeerId
from .messages import Message, Text
from .records import Digest, SignedRecord

HELLO = "/lepton/hello/1"
JOIN = "/lepton/join/1"


class Hello(Message, frozen=True, kw_only=True):
    """First words on a connection, by the side that dialled: 'this is what proves that I belong'."""

    chain: Chain


class HelloAnswer(Message, frozen=True, kw_only=True):
    """The other side's proof, or why it refuses."""

    chain: Chain = ()
    refused: Text = ""


class JoinAsk(Message, frozen=True, kw_only=True):
    """A stranger with an invite asks: do you hold it? Nothing secret is shown yet."""

    hint: Annotated[bytes, msgspec.Meta(max_length=16)]


class JoinHeld(Message, frozen=True, kw_only=True):
    """Whether this node holds the invite, and the proof that it may."""

    held: bool
    chain: Chain = ()


class JoinSecret(Message, frozen=True, kw_only=True):
    """The secret, shown to a proven holder over the encrypted connection."""

    secret: Annotated[bytes, msgspec.Meta(max_length=64)]


class JoinGranted(Message, frozen=True, kw_only=True):
    """The chain that makes the joiner a member, or why not."""

    chain: Chain = ()
    refused: Text = ""


class Delta(Message, frozen=True, kw_only=True):
    """Records, and the chains of their owners so that any node can verify them."""

    records: Annotated[tuple[SignedRecord, ...], msgspec.Meta(max_length=limits.RECORDS_PER_DELTA_MAX)] = ()
    chains: Annotated[dict[PeerId, tuple[Grant, ...]], msgspec.Meta(max_length=limits.RECORDS_PER_DELTA_MAX)] = {}  # noqa: RUF012
    digest: Digest | None = None
