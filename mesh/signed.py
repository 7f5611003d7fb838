"""One record: what a node states about itself, signed, under a version that only grows.

A record has one writer. It is *durable* (a deployment, a task: it outlives its owner's absence) or *passing* (a
profile, a loaded shard: it counts only while its owner is here and has not restarted since).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, NewType, TypeVar

import msgspec

from . import limits
from .identity import SIGNATURE_BYTES, PeerId, verify
from .messages import Message, Name, Natural, unpack

PURPOSE = "record"
# The hash of what is signed. Its owner can make two records of one id with 2^64 hashes, and would only hide its own
# words with that; to hide somebody else's record under a given id takes 2^128.
ID_BYTES = 16

RecordId = NewType("RecordId", bytes)
Key = tuple[PeerId, str, str]  # owner, kind, name

T = TypeVar("T")


class Version(NamedTuple):
    """Orders everything that one owner ever says. A restart raises the incarnation."""

    incarnation: int
    sequence: int


class Content(Message, frozen=True, kw_only=True):
    """What is signed."""

    owner: PeerId
    kind: Name
    name: Name
    incarnation: Natural
    sequence: Natural
    durable: bool = False
    deleted: bool = False
    value: Annotated[bytes, msgspec.Meta(max_length=limits.RECORD_BYTES_MAX)] = b""


class SignedRecord(Message, frozen=True, kw_only=True, array_like=True):
    """A record as it travels and is kept: the exact bytes that were signed."""

    content: Annotated[bytes, msgspec.Meta(max_length=limits.RECORD_BYTES_MAX + 512)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def size_bytes(self) -> int:
        return len(self.content) + len(self.signature)


@dataclass(frozen=True, slots=True)
class Record:
    """A verified record. What is looked at often is worked out once."""

    content: Content
    signed: SignedRecord
    id: RecordId = field(init=False)
    key: Key = field(init=False)
    version: Version = field(init=False)

    def __post_init__(self) -> None:
        it = self.content
        object.__setattr__(self, "id", id_of(self.signed))
        object.__setattr__(self, "key", (it.owner, it.kind, it.name))
        object.__setattr__(self, "version", Version(it.incarnation, it.sequence))

    @property
    def owner(self) -> PeerId:
        return self.content.owner

    @property
    def name(self) -> str:
        return self.content.name

    def outranks(self, other: "Record") -> bool:
        """Whether this record wins against another of its key. Of two with one version all nodes take the same."""
        return (self.version, self.id) > (other.version, other.id)

    def value(self, kind: type[T]) -> T:
        """Decode the value. Raises PeerError when its owner wrote something else."""
        return unpack(self.content.value, kind)


def id_of(signed: SignedRecord) -> RecordId:
    """Name a record by what it says: 16 bytes."""
    return RecordId(hashlib.blake2b(signed.content, digest_size=ID_BYTES).digest())


def open_record(signed: SignedRecord) -> Record:
    """Check a record that came from anywhere. Raises PeerError when it is not its owner's."""
    content = unpack(signed.content, Content)
    verify(content.owner, PURPOSE, signed.content, signed.signature)
    return Record(content, signed)
