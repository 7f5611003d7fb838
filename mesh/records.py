"""The replicated picture: signed, versioned statements by each node about itself, merged by version. Nobody owns it.

Each key (owner, kind, name) holds the record with the highest ``(incarnation, sequence)`` that was seen. Nodes compare
the *sets* that they hold (fingerprints, `shelf.py`) and give each other what differs. Nobody states how far he has read
whom, so nobody can be made to skip anything: a member that withholds another's record, or claims to hold what it does
not, only fails to pass it on, and the next exchange with anybody else shows that it is missing. No clock is read and
no peer's clock is trusted.

Two records of one key and version with different content were both signed by their owner: that proves that it said two
things at once, or that two devices run with its key. All nodes keep the same one of the two (the higher id), the proof
stays in ``contradictions``, and what the owner says later counts as ever. Who restores a backup does this without
meaning to, so it costs nothing but the name: the owner that meets its own words of a life that it does not remember
speaks on above them.

Invariants: a record is kept only if its signature is its owner's; a key's record is only ever replaced by one that
outranks it; a passing record is of its owner's highest known incarnation; memory is bounded by ``limits``.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from . import limits
from .errors import PeerError, UsageError
from .identity import Identity, PeerId, public_key_of
from .messages import encoded, pack, unpack
from .shelf import Shelf
from .signed import PURPOSE, Content, Key, Record, RecordId, SignedRecord, Version, id_of, open_record

__all__ = ["Content", "Key", "Merged", "Record", "RecordId", "RecordStore", "SignedRecord", "Version", "open_record"]

_NEVER = Version(-1, 0)  # before anything that was ever said
# What a record takes beside its value, rounded up: names of at most 64, the owner's 52, versions, signature.
_ENVELOPE_BYTES = 384


@dataclass(slots=True)
class Merged:
    """What came of a message's records."""

    new: list[Record] = field(default_factory=list)
    restated: list[Record] = field(default_factory=list)  # this node's own, above words that it did not remember
    unproven: dict[RecordId, PeerId] = field(default_factory=dict)  # whose owners are not known to be of this mesh
    useless: list[RecordId] = field(default_factory=list)  # outranked, void, or one too many: not to be asked for
    contradicted: list[PeerId] = field(default_factory=list)  # who was first seen to say two things at once
    forged: str = ""  # why the rest was not looked at


class RecordStore:
    """Every live node's records as one node knows them."""

    def __init__(
        self,
        identity: Identity,
        incarnation: int,
        kept: Iterable[SignedRecord] = (),
        *,
        check: Callable[[SignedRecord], Record] = open_record,
    ) -> None:
        """Start with what was kept across a restart; ``incarnation`` must be higher than at any earlier start.

        ``check`` opens a record or raises PeerError; a simulation of a thousand nodes checks each but once.
        """
        self._identity = identity
        self._me = identity.peer_id
        self._check = check
        self._shelf = Shelf()
        self._said: dict[Key, Record] = {}  # what this node stated since it started
        self._version = Version(incarnation, 0)
        self.contradictions: dict[PeerId, tuple[SignedRecord, SignedRecord]] = {}
        self.revision = 0  # grows with every change, so that readers can tell whether to look again
        for record in map(check, kept):
            if record.content.durable and self._room_for(record, None):
                self._keep(record)
        self._outdo(max((record.version for record in self._shelf.of(self._me)), default=_NEVER))

    @property
    def incarnation(self) -> int:
        """How often this node has started, or more if it found that it had forgotten."""
        return self._version.incarnation

    # -- writing one's own ----------------------------------------------------------------------------------------

    def publish(self, kind: str, name: str, value: object, *, durable: bool = False) -> Record:
        """State something about oneself, under a new version. Raises UsageError when it is too large or one too many.

        A kind is durable or not: once stated, a record stays what it was.
        """
        data = encoded(value)
        if len(data) > limits.RECORD_BYTES_MAX:
            msg = f"The {kind} record {name!r} takes {len(data)} B; at most {limits.RECORD_BYTES_MAX} B travel."
            raise UsageError(msg)
        old = self._shelf.get((self._me, kind, name))
        if old is not None and old.content.durable != durable:
            msg = f"The {kind} record {name!r} cannot become {'durable' if durable else 'passing'} any more."
            raise UsageError(msg)
        self._require_own_room(kind, name, len(data), old)
        return self._write(kind, name, data, durable=durable, deleted=False)

    def withdraw(self, kind: str, name: str) -> Record | None:
        """Take a statement back; the tombstone spreads like any record."""
        old = self._shelf.get((self._me, kind, name))
        if old is None or old.content.deleted:
            return None
        return self._write(kind, name, b"", durable=old.content.durable, deleted=True)

    def _require_own_room(self, kind: str, name: str, size_bytes: int, old: Record | None) -> None:
        owned = self._shelf.owners.get(self._me)
        if owned is None:
            return
        if old is None and len(owned.records) >= limits.RECORDS_PER_OWNER_MAX:
            msg = f"No room for the {kind} record {name!r}: {limits.RECORDS_PER_OWNER_MAX} of this node's are out."
            raise UsageError(msg)
        grown = owned.size_bytes + size_bytes + _ENVELOPE_BYTES - (old.signed.size_bytes if old else 0)
        if grown > limits.RECORDS_BYTES_PER_OWNER_MAX:
            msg = (
                f"No room for the {kind} record {name!r}: this node's records would take {grown} B, and others keep "
                f"{limits.RECORDS_BYTES_PER_OWNER_MAX} B of one node. Withdraw some."
            )
            raise UsageError(msg)

    def _write(self, kind: str, name: str, value: bytes, *, durable: bool, deleted: bool) -> Record:
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
        record = Record(content, SignedRecord(content=payload, signature=self._identity.sign(PURPOSE, payload)))
        self._said[record.key] = record
        self._keep(record)
        return record

    def _outdo(self, seen: Version) -> list[Record]:
        """Speak from now on above a version of one's own that one did not know, as a node must whose disk forgot some.

        What was stated since the start is stated again: under its old version others would not look at it.
        """
        if seen.incarnation < self._version.incarnation:
            return []
        said = sorted(self._said.values(), key=lambda record: record.version)
        self._version = Version(max(seen, self._version).incarnation + 1, 0)
        return [
            self._write(it.kind, it.name, it.value, durable=it.durable, deleted=it.deleted)
            for it in (record.content for record in said)
        ]

    # -- reading --------------------------------------------------------------------------------------------------

    def live(self, kind: str, present: Collection[PeerId]) -> list[Record]:
        """Return the records of a kind that count now, given who is present, in an order that all nodes share."""
        return [
            record
            for record in self._shelf.kind(kind)
            if not record.content.deleted
            and (record.content.durable or record.owner == self._me or record.owner in present)
        ]

    def find(self, kind: str, name: str, owner: PeerId | None = None) -> Record | None:
        """Return one record that is not deleted; of several owners the one with the smallest id."""
        if owner is not None:
            found = self._shelf.get((owner, kind, name))
            return None if found is None or found.content.deleted else found
        named = (record for record in self._shelf.kind(kind) if record.name == name and not record.content.deleted)
        return next(named, None)

    def get(self, key: Key) -> Record | None:
        """Return what is held under a key, be it a tombstone."""
        return self._shelf.get(key)

    def owners(self) -> set[PeerId]:
        return set(self._shelf.owners)

    @property
    def owners_count(self) -> int:
        return len(self._shelf.owners)

    def of(self, owner: PeerId) -> list[Record]:
        """Return every record of one owner, tombstones too."""
        return self._shelf.of(owner)

    def all(self) -> list[Record]:
        """Return every record that is held, tombstones too."""
        return self._shelf.all()

    def durable(self) -> list[SignedRecord]:
        """Return what has to be kept across a restart, tombstones included."""
        held = sorted((record for record in self._shelf.all() if record.content.durable), key=lambda one: one.key)
        return [record.signed for record in held]

    # -- comparing ------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that two nodes share when they hold the same records."""
        return self._shelf.fingerprint

    def digests(self) -> bytes:
        """Return the digests of all buckets, 256 times 16 bytes."""
        return b"".join(self._shelf.digests())

    def bucket(self, number: int) -> list[RecordId]:
        """Return the ids of the records in one of the 256 buckets."""
        return self._shelf.bucket(number)

    def with_id(self, record_id: RecordId) -> Record | None:
        return self._shelf.with_id(record_id)

    # -- merging --------------------------------------------------------------------------------------------------

    def merge(self, signed: Iterable[SignedRecord], *, known: Callable[[PeerId], bool]) -> Merged:
        """Take in what a peer sent. ``known`` says whether an owner is of this mesh; records of others are passed over.

        The first forged record ends it, and is named in what is returned; what came before it stays.
        """
        got = Merged()
        own = _NEVER  # the latest of one's own words that one did not remember
        try:
            for item in signed:
                own = max(own, self._take(item, known, got))
        except PeerError as error:
            got.forged = str(error)
        got.restated = self._outdo(own)
        return got

    def _take(self, item: SignedRecord, known: Callable[[PeerId], bool], got: Merged) -> Version:
        """Take in one record; return its version if it is a word of one's own that one did not remember."""
        if self._shelf.with_id(record_id := id_of(item)) is not None:
            return _NEVER
        content = unpack(item.content, Content)
        if not known(content.owner):
            public_key_of(content.owner)  # raises unless it is at all a peer's name
            got.unproven[record_id] = content.owner
            return _NEVER
        held = self._shelf.get((content.owner, content.kind, content.name))
        version = Version(content.incarnation, content.sequence)
        if held is not None and held.version > version:
            got.useless.append(record_id)
            return _NEVER
        record = self._check(item)
        if held is not None and held.version == version and content.owner != self._me:
            self._note_contradiction(held, record, got)
        forgotten = record.owner == self._me and version.incarnation >= self._version.incarnation
        void = record.owner == self._me and not content.durable  # said in an earlier life: no longer true
        outranked = held is not None and not record.outranks(held)
        if void or outranked or not self._room_for(record, held) or not self._keep(record):
            got.useless.append(record_id)
        else:
            got.new.append(record)
        return version if forgotten else _NEVER

    def _note_contradiction(self, held: Record, record: Record, got: Merged) -> None:
        if record.owner not in self.contradictions and len(self.contradictions) < limits.CONTRADICTIONS_MAX:
            self.contradictions[record.owner] = (held.signed, record.signed)
            got.contradicted.append(record.owner)

    def adopt(self, other: "RecordStore") -> None:
        """Hold all that another store of this mesh holds, this node's own words too: a copy, made without a merge.

        For what has one picture already, as a simulation's members have when it begins.
        """
        self._shelf = other._shelf.copy()  # noqa: SLF001 - of the same class
        self.revision += 1

    def forget(self, owner: PeerId) -> None:
        """Drop everything of one owner, as after a revocation. It stays away for as long as ``known`` says no."""
        for record in self._shelf.of(owner):
            self._shelf.remove(record)
        self.contradictions.pop(owner, None)
        self.revision += 1

    def _keep(self, record: Record) -> bool:
        """Hold a record that outranks what its key held; false when a restart has made it void."""
        owned = self._shelf.owners.get(record.owner)
        before = owned.incarnation if owned is not None else -1
        if not record.content.durable and record.version.incarnation < before:
            return False
        self._shelf.put(record)
        if record.version.incarnation > before:  # a restart: what was passing has passed
            for old in self._shelf.of(record.owner):
                if not old.content.durable and old.version.incarnation < record.version.incarnation:
                    self._shelf.remove(old)
        self.revision += 1
        return True

    def _room_for(self, record: Record, held: Record | None) -> bool:
        """Whether a record fits. What others have filled is no bound on what this node may say itself."""
        shelf = self._shelf
        more = 0 if held is not None else 1
        grows = record.signed.size_bytes - (held.signed.size_bytes if held is not None else 0)
        owned = shelf.owners.get(record.owner)
        if owned is not None and (
            len(owned.records) + more > limits.RECORDS_PER_OWNER_MAX
            or owned.size_bytes + grows > limits.RECORDS_BYTES_PER_OWNER_MAX
        ):
            return False
        owners = len(shelf.owners) + (owned is None) + (self._me not in shelf.owners)
        return record.owner == self._me or (
            shelf.count + more <= limits.RECORDS_MAX
            and shelf.size_bytes + grows <= limits.RECORDS_BYTES_MAX
            and owners <= limits.MEMBERS_MAX
        )
