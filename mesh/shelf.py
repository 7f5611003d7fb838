"""Records in their places: by key, owner, kind and id, and a fingerprint of them all.

Two nodes with the same fingerprint hold the same records. If theirs differ, 256 bucket digests say where: a bucket is
all records whose id begins with the same byte, its digest the hash of these ids in order (a Merkle tree of two levels,
Merkle 1987). A change costs one bucket's hash when somebody next asks. Sums of hashes would be cheaper and are not
sound here: with 128 records of its own a member finds two sets of one 128-bit sum in 2^23 steps (Wagner 2002), and can
hide another's record behind them; with hashes of whole buckets this takes 2^64.

Invariant: every place holds the same records, one for each key.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from .identity import PeerId
from .signed import ID_BYTES, Key, Record, RecordId

BUCKETS = 256  # the first byte of an id; 8,192 records make 32 ids in each, half a KiB


@dataclass(slots=True)
class Owned:
    """One owner's records."""

    records: dict[Key, Record] = field(default_factory=dict)
    size_bytes: int = 0
    incarnation: int = -1  # the highest that was seen


class Shelf:
    """Holds records; which ones is its user's to decide."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self.owners: dict[PeerId, Owned] = {}
        self._kinds: dict[str, dict[Key, Record]] = {}
        self._orders: dict[str, list[Key]] = {}  # of each kind, until one is added or taken away
        self._buckets: list[dict[RecordId, Record]] = [{} for _ in range(BUCKETS)]
        self._digests = [_digest(())] * BUCKETS
        self._stale: set[int] = set()  # buckets whose digest is to be made anew
        self._fingerprint = b""

    def copy(self) -> "Shelf":
        """Return another that holds the same."""
        other = Shelf()
        other.count, other.size_bytes = self.count, self.size_bytes
        other.owners = {
            owner: Owned(owned.records.copy(), owned.size_bytes, owned.incarnation)
            for owner, owned in self.owners.items()
        }
        other._kinds = {kind: records.copy() for kind, records in self._kinds.items()}
        other._buckets = [bucket.copy() for bucket in self._buckets]
        other._digests, other._fingerprint = self.digests().copy(), self.fingerprint
        return other

    def put(self, record: Record) -> None:
        """Hold a record, in place of what its key held."""
        old = self.get(record.key)
        if old is not None:
            self.drop(old)
        owned = self.owners.setdefault(record.owner, Owned())
        owned.records[record.key] = record
        owned.size_bytes += record.signed.size_bytes
        owned.incarnation = max(owned.incarnation, record.version.incarnation)
        self.size_bytes += record.signed.size_bytes
        self.count += 1
        kind = self._kinds.setdefault(record.content.kind, {})
        kind[record.key] = record
        if old is None:
            self._orders.pop(record.content.kind, None)
        self._bucket_of(record.id)[record.id] = record

    def drop(self, record: Record) -> None:
        """Hold it no longer."""
        owned = self.owners[record.owner]
        del owned.records[record.key]
        owned.size_bytes -= record.signed.size_bytes
        self.size_bytes -= record.signed.size_bytes
        self.count -= 1
        kind = self._kinds[record.content.kind]
        del kind[record.key]
        if not kind:
            del self._kinds[record.content.kind]
        del self._bucket_of(record.id)[record.id]

    def remove(self, record: Record) -> None:
        """Hold nothing of its key any more."""
        self.drop(record)
        self._orders.pop(record.content.kind, None)
        if not self.owners[record.owner].records:
            del self.owners[record.owner]

    # -- looking up ---------------------------------------------------------------------------------------------------

    def get(self, key: Key) -> Record | None:
        owned = self.owners.get(key[0])
        return None if owned is None else owned.records.get(key)

    def of(self, owner: PeerId) -> list[Record]:
        owned = self.owners.get(owner)
        return [] if owned is None else list(owned.records.values())

    def kind(self, kind: str) -> list[Record]:
        """Return the records of a kind in the order of their keys."""
        found = self._kinds.get(kind, {})
        if kind not in self._orders:
            self._orders[kind] = sorted(found)
        return [found[key] for key in self._orders[kind]]

    def all(self) -> list[Record]:
        return [record for owned in self.owners.values() for record in owned.records.values()]

    def with_id(self, record_id: RecordId) -> Record | None:
        return self._buckets[record_id[0]].get(record_id)

    # -- comparing ----------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that only the same records have."""
        if self._stale or not self._fingerprint:
            self._fingerprint = _digest(self.digests())
        return self._fingerprint

    def digests(self) -> list[bytes]:
        """Return each bucket's digest, 16 bytes."""
        for number in self._stale:
            self._digests[number] = _digest(sorted(self._buckets[number]))
        if self._stale:
            self._fingerprint = b""
        self._stale.clear()
        return self._digests

    def bucket(self, number: int) -> list[RecordId]:
        """Return the ids in a bucket."""
        return list(self._buckets[number])

    def _bucket_of(self, record_id: RecordId) -> dict[RecordId, Record]:
        """Return the bucket of an id, about to change."""
        self._stale.add(record_id[0])
        return self._buckets[record_id[0]]


def _digest(parts: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=ID_BYTES).digest()
