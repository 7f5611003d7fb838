"""The replicated picture: signed, versioned statements by each node about itself, merged by version. Nobody owns it.

A record has one writer. All records of one owner share one line of versions ``(incarnation, sequence)``, which only
grows, so a digest is one version per owner and a delta is 'everything of that owner since' (Scuttlebutt
reconciliation, van Renesse 2008). No clock is read and no peer's clock is trusted.

Invariants: a record is kept only if its signature is its owner's; per (owner, kind, name) the highest version wins; per
owner everything up to the head version is held, so heads never skip; memory is bounded by ``limits``.

A record is *durable* (a deployment, a task: it outlives its owner's absence) or not (a profile, a loaded shard: it
counts only while its owner is here and has not restarted since).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from . import limits
from .errors import UsageError
from .identity import SIGNATURE_BYTES, Identity, PeerId, verify
from .messages import Message, Name, Natural, pack, unpack

_PURPOSE = "record"

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


class Record(NamedTuple):
    """A verified record."""

    content: Content
    signed: SignedRecord

    @property
    def owner(self) -> PeerId:
        return self.content.owner

    @property
    def name(self) -> str:
        return self.content.name

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.content.owner, self.content.kind, self.content.name)

    @property
    def version(self) -> Version:
        return Version(self.content.incarnation, self.content.sequence)

    def value(self, kind: type[T]) -> T:
        """Decode the value. Raises PeerError when its owner wrote something else."""
        return unpack(self.content.value, kind)


class Digest(Message, frozen=True, kw_only=True):
    """How far a node has read each owner."""

    heads: Annotated[dict[PeerId, tuple[Natural, Natural]], msgspec.Meta(max_length=limits.MAP_ITEMS_MAX)]


def open_record(signed: SignedRecord) -> Record:
    """Check a record that came from anywhere. Raises PeerError when it is not its owner's."""
    content = unpack(signed.content, Content)
    verify(content.owner, _PURPOSE, signed.content, signed.signature)
    return Record(content, signed)


class RecordStore:
    """Every live node's records as one node knows them."""

    def __init__(self, identity: Identity, incarnation: int, kept: Iterable[SignedRecord] = ()) -> None:
        """Start with what was kept across a restart; ``incarnation`` must be higher than at any earlier start."""
        self._identity = identity
        self._me = identity.peer_id
        self._records: dict[tuple[str, str, str], Record] = {}
        self._heads: dict[PeerId, Version] = {}
        self._version = Version(incarnation, 0)
        self.revision = 0  # grows with every change, so that readers can tell whether to look again
        for signed in kept:
            record = open_record(signed)
            self._records[record.key] = record
            self._heads[record.owner] = max(self._heads.get(record.owner, record.version), record.version)
        self._outdo(self._heads.get(self._me, self._version))

    # -- writing one's own ----------------------------------------------------------------------------------------

    def publish(self, kind: str, name: str, value: object, *, durable: bool = False) -> Record:
        """State something about oneself, under a new version. Raises UsageError when it is too large."""
        return self._write(kind, name, pack(value), durable=durable, deleted=False)

    def withdraw(self, kind: str, name: str) -> Record | None:
        """Take a statement back; the tombstone spreads like any record."""
        old = self._records.get((self._me, kind, name))
        if old is None or old.content.deleted:
            return None
        return self._write(kind, name, b"", durable=old.content.durable, deleted=True)

    def _write(self, kind: str, name: str, value: bytes, *, durable: bool, deleted: bool) -> Record:
        if len(value) > limits.RECORD_BYTES_MAX:
            msg = f"The {kind} record {name!r} takes {len(value)} B; at most {limits.RECORD_BYTES_MAX} B travel."
            raise UsageError(msg)
        self._version = Version(self._version.incarnation, self._version.sequence + 1)
        content = Content(
            owner=self._me,
            kind=kind,
            name=name,
            incarnation=self._version.incarnation,
            sequence=self._version.sequence,
            durable=durable,
            deleted=deleted,
            value=value,
        )
        payload = pack(content)
        record = Record(content, SignedRecord(content=payload, signature=self._identity.sign(_PURPOSE, payload)))
        self._keep(record)
        return record

    # -- reading --------------------------------------------------------------------------------------------------

    def live(self, kind: str, present: Collection[PeerId]) -> list[Record]:
        """Return the records of a kind that count now, given who is present, in an order that all nodes share."""
        return sorted(
            (
                record
                for record in self._records.values()
                if record.content.kind == kind
                and not record.content.deleted
                and (record.content.durable or record.owner == self._me or record.owner in present)
            ),
            key=lambda record: record.key,
        )

    def find(self, kind: str, name: str, owner: PeerId | None = None) -> Record | None:
        """Return one record that is not deleted; of several owners the one with the smallest id."""
        found = [
            record
            for (who, what, called), record in self._records.items()
            if what == kind and called == name and owner in {None, who} and not record.content.deleted
        ]
        return min(found, key=lambda record: record.key, default=None)

    def owners(self) -> set[PeerId]:
        return set(self._heads)

    def durable(self) -> list[SignedRecord]:
        """Return what has to be kept across a restart, tombstones included."""
        return [record.signed for _, record in sorted(self._records.items()) if record.content.durable]

    # -- reconciling ----------------------------------------------------------------------------------------------

    def digest(self) -> Digest:
        return Digest(heads={owner: tuple(head) for owner, head in sorted(self._heads.items())})

    def newer_than(self, digest: Digest) -> list[Record]:
        """Return what the writer of this digest lacks, per owner in the order of versions, as much as one message holds.

        At most ``limits.RECORDS_PER_DELTA_MAX`` records and ``limits.DELTA_BYTES_MAX`` bytes.
        """
        heads: Mapping[PeerId, tuple[int, int]] = digest.heads
        lacking = [record for record in self._records.values() if record.version > heads.get(record.owner, (-1, 0))]
        lacking.sort(key=lambda record: (record.owner, record.version))
        sizes = accumulate(len(record.signed.content) for record in lacking[: limits.RECORDS_PER_DELTA_MAX])
        fitting = sum(1 for size in sizes if size <= limits.DELTA_BYTES_MAX)
        return lacking[:fitting]

    def merge(self, signed: Iterable[SignedRecord], *, known: Callable[[PeerId], bool]) -> list[Record]:
        """Take in what a peer sent and return what was new. ``known`` says whether an owner is of this mesh.

        Records of unknown owners are passed over (they come again once the grant is known). Raises PeerError at the
        first forged one; what came before it stays.
        """
        new = []
        full: set[PeerId] = set()  # owners with more records than fit: a head must not skip what was not kept
        for item in signed:
            content = unpack(item.content, Content)
            if (
                content.owner in full
                or not known(content.owner)
                or Version(content.incarnation, content.sequence) <= self._head(content.owner)
            ):
                continue
            record = open_record(item)
            if record.owner == self._me:
                self._outdo(record.version)
                if not record.content.durable:
                    continue  # said before a restart that lost the disk: no longer true
            if not self._room_for(record):
                full.add(record.owner)
                continue
            self._keep(record)
            new.append(record)
        return new

    def forget(self, owner: PeerId) -> None:
        """Drop everything of one owner, as after a revocation."""
        self._records = {key: record for key, record in self._records.items() if record.owner != owner}
        self._heads.pop(owner, None)
        self.revision += 1

    def _head(self, owner: PeerId) -> Version:
        return self._heads.get(owner, Version(-1, 0))

    def _outdo(self, seen: Version) -> None:
        """Speak from now on with a version above one that was seen, as a node must whose disk forgot some."""
        if seen >= self._version:
            self._version = Version(seen.incarnation + 1, 0)

    def _room_for(self, record: Record) -> bool:
        if record.key in self._records:
            return True
        of_owner = sum(1 for owner, _, _ in self._records if owner == record.owner)
        return of_owner < limits.RECORDS_PER_OWNER_MAX and len(self._records) < limits.RECORDS_MAX

    def _keep(self, record: Record) -> None:
        head = self._head(record.owner)
        if record.version.incarnation > head.incarnation:
            self._records = {
                key: old for key, old in self._records.items() if old.owner != record.owner or old.content.durable
            }
        self._records[record.key] = record
        self._heads[record.owner] = max(head, record.version)
        self.revision += 1
