"""The messages of membership: hello, join, and the exchange of records."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from . import limits
from .grants import Chain, Grant
from .identity import PeerId
from .messages import Message, Name, Text, encoded
from .pake import CONFIRMATION_BYTES, SHARE_BYTES
from .records import Digest, Record, SignedRecord
from .revocations import Revocation

HELLO = "/lepton/hello/1"
JOIN = "/lepton/join/2"

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
    """A stranger with an invite's code asks by its public name whether this node holds it."""

    nameplate: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{3}\Z")]


class JoinHeld(Message, frozen=True, kw_only=True):
    """The holder's share of the key exchange; nothing when this node does not hold it, or why it may not be tried."""

    share: Annotated[bytes, msgspec.Meta(max_length=SHARE_BYTES)] = b""
    refused: Text = ""


class JoinProof(Message, frozen=True, kw_only=True):
    """The stranger's share, and the proof that it knows the code."""

    share: Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
    confirmation: Annotated[bytes, msgspec.Meta(min_length=CONFIRMATION_BYTES, max_length=CONFIRMATION_BYTES)]


class JoinGranted(Message, frozen=True, kw_only=True):
    """The holder's proof that it knows the code, and a sealed Verdict; or why it says no more."""

    confirmation: Annotated[bytes, msgspec.Meta(max_length=CONFIRMATION_BYTES)] = b""
    sealed: Annotated[bytes, msgspec.Meta(max_length=limits.BIN_BYTES_MAX)] = b""
    refused: Text = ""


class Welcome(Message, frozen=True, kw_only=True):
    """The mesh, and the new member's chain of grants; its last link is the issuer's, the ones before prove the issuer.

    ``revocations`` are those that the issuer knows, or as many as fit: the first greeting brings the rest.
    """

    mesh_name: Name
    root: PeerId
    chain: Chain
    revocations: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=limits.REVOCATIONS_MAX)] = ()


class Verdict(Message, frozen=True, kw_only=True):
    """What is sealed in JoinGranted: welcome, or why not."""

    welcome: Welcome | None = None
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
