"""The messages of membership: hello, join, and the exchange of records."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from . import limits
from .grants import Chain, Grant
from .identity import PeerId
from .messages import Message, Text, encoded
from .records import Digest, Record, SignedRecord
from .revocations import Revocation

HELLO = "/lepton/hello/1"
JOIN = "/lepton/join/1"

SetDigest = Annotated[bytes, msgspec.Meta(max_length=32)]


class Hello(Message, frozen=True, kw_only=True):
    """First words on a connection, by the side that dialled: 'this is what proves that I belong'.

    Where the two digests of revocations differ, ``revocations.Said`` follows on this stream until the sets are equal.
    """

    chain: Chain
    revocations: SetDigest = b""


class HelloAnswer(Message, frozen=True, kw_only=True):
    """The other side's proof, or why it refuses: to whom was revoked, with the revocations that say so."""

    chain: Chain = ()
    refused: Text = ""
    revocations: SetDigest = b""
    proof: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=limits.GRANT_CHAIN_MAX)] = ()


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


class Part(Message, frozen=True, kw_only=True):
    """'I give up our connection, and stay where I am': said before a connection is closed for want of use or room."""

    reason: Text


class Delta(Message, frozen=True, kw_only=True):
    """Records, and the chains of their owners so that any node can verify them.

    The records are all after the heads in ``since``, or the first of these. Who has not read up to there (a push was
    lost) does not take them, for its heads would skip what was said in between, and asks for an exchange.
    """

    records: Annotated[tuple[SignedRecord, ...], msgspec.Meta(max_length=limits.RECORDS_PER_DELTA_MAX)] = ()
    chains: Annotated[dict[PeerId, tuple[Grant, ...]], msgspec.Meta(max_length=limits.RECORDS_PER_DELTA_MAX)] = {}  # noqa: RUF012
    digest: Digest | None = None
    since: Digest = Digest()


# What the names and lengths of a Delta's fields and of one record, grant and head take in msgpack, rounded up.
_FRAME_BYTES, _RECORD_BYTES, _GRANT_BYTES, _HEAD_BYTES = 256, 16, 48, 96


def delta_of(
    records: Sequence[Record],
    chains: Mapping[PeerId, tuple[Grant, ...]],
    *,
    since: Digest,
    digest: Digest | None = None,
) -> Delta:
    """Say as many of these records as one message holds, from the first on. Owners without a chain are left out."""
    room = limits.HEADER_BYTES_MAX - _FRAME_BYTES - len(encoded(digest))
    said: list[SignedRecord] = []
    owners: dict[PeerId, tuple[Grant, ...]] = {}
    for record in records:
        if (chain := chains.get(record.owner)) is None:
            continue
        room -= len(record.signed.content) + len(record.signed.signature) + _RECORD_BYTES
        if record.owner not in owners:
            room -= sum(len(grant.statement) + len(grant.signature) + _GRANT_BYTES for grant in chain) + 3 * _HEAD_BYTES
        if room < 0 or len(said) == limits.RECORDS_PER_DELTA_MAX:
            break
        said.append(record.signed)
        owners[record.owner] = chain
    return Delta(records=tuple(said), chains=owners, digest=digest, since=_of(since, owners))


def _of(digest: Digest, owners: Mapping[PeerId, object]) -> Digest:
    return Digest(
        durable={owner: head for owner, head in digest.durable.items() if owner in owners},
        passing={owner: head for owner, head in digest.passing.items() if owner in owners},
    )
