"""The messages of the picture: two nodes compare what they hold, and give each other what differs.

An exchange begins with ``Compare``: a fingerprint, and the ids of what was lately learned. Equal fingerprints end it.
What the news does not explain is found by ``Survey``: the digests of 256 buckets, answered with the ids in those that
differ. Records go in ``Swap`` and its answer, which is also what pushes. The chains that prove their owners go along
only when they are asked for: everybody has them already, and they are as large as a record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from . import limits
from .errors import PeerError
from .grants import Grant
from .identity import PeerId
from .messages import Message
from .shelf import BUCKETS
from .signed import ID_BYTES, Record, RecordId, SignedRecord

Fingerprint = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Wanted = Annotated[bytes, msgspec.Meta(max_length=limits.WANTED_MAX * ID_BYTES)]
News = Annotated[bytes, msgspec.Meta(max_length=limits.NEWS_MAX * ID_BYTES)]
Records = Annotated[tuple[SignedRecord, ...], msgspec.Meta(max_length=limits.RECORDS_PER_SWAP_MAX)]
Owners = Annotated[tuple[PeerId, ...], msgspec.Meta(max_length=limits.CHAINS_PER_SWAP_MAX)]
Chains = Annotated[dict[PeerId, tuple[Grant, ...]], msgspec.Meta(max_length=limits.CHAINS_PER_SWAP_MAX)]


class Compare(Message, frozen=True, kw_only=True):
    """Say what one holds, and what one learned lately."""

    fingerprint: Fingerprint
    news: News = b""


class Compared(Message, frozen=True, kw_only=True):
    """The same of the other side, and which of the asker's news it lacks. No more than a fingerprint if both agree."""

    fingerprint: Fingerprint
    news: News = b""
    want: News = b""


class Survey(Message, frozen=True, kw_only=True):
    """The digest of each bucket."""

    digests: Annotated[bytes, msgspec.Meta(min_length=BUCKETS * ID_BYTES, max_length=BUCKETS * ID_BYTES)]


class Surveyed(Message, frozen=True, kw_only=True):
    """All ids in those buckets whose digests differ, or in as many of them as one message holds."""

    buckets: Annotated[bytes, msgspec.Meta(max_length=BUCKETS)] = b""
    ids: Annotated[bytes, msgspec.Meta(max_length=limits.LISTED_MAX * ID_BYTES)] = b""


class Swap(Message, frozen=True, kw_only=True):
    """Records for the other side, and what is wanted of it. A push wants nothing."""

    records: Records = ()
    chains: Chains = {}  # noqa: RUF012 - msgspec gives each its own
    want: Wanted = b""
    proofs: bool = False  # whether the chains of the owners are wanted too


class Swapped(Message, frozen=True, kw_only=True):
    """What was wanted, as far as one message holds it, and how the answerer stands after what it was given."""

    fingerprint: Fingerprint
    records: Records = ()
    chains: Chains = {}  # noqa: RUF012
    unproven: Owners = ()  # owners of what it was given whose chains it lacks


def joined(ids: Iterable[RecordId]) -> bytes:
    return b"".join(ids)


def ids_in(data: bytes) -> list[RecordId]:
    """Take ids apart. Raises PeerError when they are not whole."""
    if len(data) % ID_BYTES:
        msg = f"A list of ids of {ID_BYTES} B takes {len(data)} B."
        raise PeerError(msg)
    return [RecordId(data[at : at + ID_BYTES]) for at in range(0, len(data), ID_BYTES)]


# What the other fields of a Swap or Swapped, and the lengths of one record, chain and grant take, rounded up.
_FRAME_BYTES, _RECORD_BYTES, _CHAIN_BYTES, _GRANT_BYTES = 256, 16, 64, 48
_ROOM_BYTES = (
    limits.HEADER_BYTES_MAX - _FRAME_BYTES - limits.WANTED_MAX * ID_BYTES - limits.CHAINS_PER_SWAP_MAX * _CHAIN_BYTES
)


@dataclass(slots=True)
class Load:
    """The records of one message, and those that have to wait for the next."""

    records: list[Record] = field(default_factory=list)
    chains: dict[PeerId, tuple[Grant, ...]] = field(default_factory=dict)
    rest: list[Record] = field(default_factory=list)

    @property
    def signed(self) -> tuple[SignedRecord, ...]:
        return tuple(record.signed for record in self.records)


def load(records: Sequence[Record], chains: Mapping[PeerId, tuple[Grant, ...]], *, proofs: bool) -> Load:
    """Take as many of these records as one message holds, from the first on; with ``proofs`` their owners' chains too.

    At least one fits. Records of owners without a chain are left out: nobody could be made to take them.
    """
    room, taken = _ROOM_BYTES, Load()
    for number, record in enumerate(records):
        if (chain := chains.get(record.owner)) is None:
            continue
        room -= record.signed.size_bytes + _RECORD_BYTES
        proof = proofs and record.owner not in taken.chains
        if proof:
            room -= sum(len(grant.statement) + len(grant.signature) + _GRANT_BYTES for grant in chain) + _CHAIN_BYTES
        full = len(taken.records) == limits.RECORDS_PER_SWAP_MAX
        if room < 0 or full or (proof and len(taken.chains) == limits.CHAINS_PER_SWAP_MAX):
            taken.rest = list(records[number:])
            break
        taken.records.append(record)
        if proof:
            taken.chains[record.owner] = chain
    return taken
