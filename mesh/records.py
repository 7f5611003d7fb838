"""The replicated picture: signed, versioned statements by each node about itself, merged by version. Nobody owns it.

A record has one writer. It is *durable* (a deployment, a task: it outlives its owner's absence) or *passing* (a
profile, a loaded shard: it counts only while its owner is here and has not restarted since). What one owner says has
versions ``(incarnation, sequence)`` that only grow. Its durable records are one *line*, its passing ones another: so a
digest is one version per line, a delta is 'everything of that line since' (Scuttlebutt reconciliation, van Renesse
2008), and a node that kept only what is durable knows which line it has to read anew. No clock is read and no peer's
clock is trusted.

Invariants: a record is kept only if its signature is its owner's; per (owner, kind, name) the highest version wins; of
each line everything up to its head is held, so heads never skip; memory is bounded by ``limits``.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from . import limits
from .errors import UsageError
from .identity import SIGNATURE_BYTES, Identity, PeerId, verify
from .messages import Message, Name, Natural, encoded, pack, unpack

_PURPOSE = "record"

T = TypeVar("T")


class Version(NamedTuple):
    """Orders everything that one owner ever says. A restart raises the incarnation."""

    incarnation: int
    sequence: int


class Line(NamedTuple):
    """Either the durable or the passing statements of one owner."""

    owner: PeerId
    durable: bool


_NOTHING = Version(-1, 0)  # the head of a line of which nothing was read


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
    def line(self) -> Line:
        return Line(self.content.owner, self.content.durable)

    @property
    def version(self) -> Version:
        return Version(self.content.incarnation, self.content.sequence)

    def value(self, kind: type[T]) -> T:
        """Decode the value. Raises PeerError when its owner wrote something else."""
        return unpack(self.content.value, kind)


Heads = Annotated[dict[PeerId, tuple[Natural, Natural]], msgspec.Meta(max_length=limits.MEMBERS_MAX)]


class Digest(Message, frozen=True, kw_only=True):
    """How far a node has read each owner's lines."""

    durable: Heads = {}  # noqa: RUF012 - msgspec gives each its own
    passing: Heads = {}  # noqa: RUF012

    def head(self, line: Line) -> Version:
        found = (self.durable if line.durable else self.passing).get(line.owner)
        return _NOTHING if found is None else Version(*found)


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
        self._heads: dict[Line, Version] = {}
        self._said: dict[tuple[str, str, str], Record] = {}  # what this node stated since it started
        self._version = Version(incarnation, 0)
        self.revision = 0  # grows with every change, so that readers can tell whether to look again
        for record in map(open_record, kept):
            if record.content.durable:
                self._keep(record)
        self._outdo(self._head(Line(self._me, durable=True)))

    # -- writing one's own ----------------------------------------------------------------------------------------

    def publish(self, kind: str, name: str, value: object, *, durable: bool = False) -> Record:
        """State something about oneself, under a new version. Raises UsageError when it is too large or one too many.

        A kind is durable or not: once stated, a record stays what it was.
        """
        data = encoded(value)
        if len(data) > limits.RECORD_BYTES_MAX:
            msg = f"The {kind} record {name!r} takes {len(data)} B; at most {limits.RECORD_BYTES_MAX} B travel."
            raise UsageError(msg)
        old = self._records.get((self._me, kind, name))
        if old is None and not self._room_for(self._me):
            msg = f"No room for the {kind} record {name!r}: {limits.RECORDS_PER_OWNER_MAX} of this node's are out."
            raise UsageError(msg)
        if old is not None and old.content.durable != durable:
            msg = f"The {kind} record {name!r} cannot become {'durable' if durable else 'passing'} any more."
            raise UsageError(msg)
        return self._write(kind, name, data, durable=durable, deleted=False)

    def withdraw(self, kind: str, name: str) -> Record | None:
        """Take a statement back; the tombstone spreads like any record."""
        old = self._records.get((self._me, kind, name))
        if old is None or old.content.deleted:
            return None
        return self._write(kind, name, b"", durable=old.content.durable, deleted=True)

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
        record = Record(content, SignedRecord(content=payload, signature=self._identity.sign(_PURPOSE, payload)))
        self._said[record.key] = record
        self._keep(record)
        return record

    def _outdo(self, seen: Version) -> None:
        """Speak from now on above a version of one's own that one did not know, as a node must whose disk forgot some.

        What was stated since the start is stated again: under its old version others would not look at it.
        """
        if seen < self._version:
            return
        said = sorted(self._said.values(), key=lambda record: record.version)
        self._version = Version(seen.incarnation + 1, 0)
        for record in said:
            it = record.content
            self._write(it.kind, it.name, it.value, durable=it.durable, deleted=it.deleted)

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
        return {line.owner for line in self._heads}

    def durable(self) -> list[SignedRecord]:
        """Return what has to be kept across a restart, tombstones included."""
        return [record.signed for _, record in sorted(self._records.items()) if record.content.durable]

    # -- reconciling ----------------------------------------------------------------------------------------------

    def digest(self, owner: PeerId | None = None) -> Digest:
        """Return how far every line has been read, or the lines of one owner."""
        lines = [(line, head) for line, head in sorted(self._heads.items()) if owner in {None, line.owner}]
        return Digest(
            durable={line.owner: (head.incarnation, head.sequence) for line, head in lines if line.durable},
            passing={line.owner: (head.incarnation, head.sequence) for line, head in lines if not line.durable},
        )

    def newer_than(self, digest: Digest, owner: PeerId | None = None, *, turn: int = 0) -> list[Record]:
        """Return what the writer of this digest lacks (of one owner, or of all), each line in the order of versions.

        A message holds only so many; a random ``turn`` lets every owner be first at times, so that one whose records
        are never taken does not hold up the others.
        """
        owners = sorted(self.owners()) if owner is None else [owner]
        place = {name: (index - turn) % len(owners) for index, name in enumerate(owners)}
        lacking = [
            record
            for record in self._records.values()
            if record.owner in place and record.version > digest.head(record.line)
        ]
        return sorted(lacking, key=lambda record: (place[record.owner], record.version))

    def follows_on(self, since: Digest) -> bool:
        """Whether records said since these heads follow on what is known here."""
        lines = [Line(owner, durable=True) for owner in since.durable]
        lines += [Line(owner, durable=False) for owner in since.passing]
        return all(self._head(line) >= since.head(line) for line in lines)

    def merge(self, signed: Iterable[SignedRecord], *, since: Digest, known: Callable[[PeerId], bool]) -> list[Record]:
        """Take in what a peer sent and return what was new. ``known`` says whether an owner is of this mesh.

        The records are all that the peer has of their lines after the heads in ``since``, or the first of these. A line
        read less far is passed over, for its head would skip what was said in between; so are unknown owners (both
        come again). Raises PeerError at the first forged record; what came before it stays.

        What this node stated durably before its disk forgot it comes back like this, unless it has stated something
        durable again before it heard of it.
        """
        new = []
        passed_over: set[Line] = set()
        own = _NOTHING  # the latest of one's own words that one did not know
        for item in signed:
            content = unpack(item.content, Content)
            line, version = Line(content.owner, content.durable), Version(content.incarnation, content.sequence)
            if line in passed_over or not known(line.owner) or version <= self._head(line):
                continue
            if self._head(line) < since.head(line):
                passed_over.add(line)
                continue
            record = open_record(item)
            if record.owner == self._me:
                own = max(own, record.version)
                if not record.content.durable:
                    continue  # said before a restart: no longer true
            if record.key not in self._records and not self._room_for(record.owner):
                passed_over.add(line)
            elif self._keep(record):
                new.append(record)
        self._outdo(own)
        return new

    def forget(self, owner: PeerId) -> None:
        """Drop everything of one owner, as after a revocation."""
        self._records = {key: record for key, record in self._records.items() if record.owner != owner}
        self._heads = {line: head for line, head in self._heads.items() if line.owner != owner}
        self.revision += 1

    def _head(self, line: Line) -> Version:
        return self._heads.get(line, _NOTHING)

    def _incarnation(self, owner: PeerId) -> int:
        return max(self._head(Line(owner, durable)).incarnation for durable in (True, False))

    def _room_for(self, owner: PeerId) -> bool:
        """Whether one more record of this owner fits."""
        of_owner = sum(1 for who, _, _ in self._records if who == owner)
        return (
            of_owner < limits.RECORDS_PER_OWNER_MAX
            and len(self._records) < limits.RECORDS_MAX
            and len(self.owners() | {self._me, owner}) <= limits.MEMBERS_MAX
        )

    def _keep(self, record: Record) -> bool:
        """Hold a record that follows on its line's head; false when it no longer counts."""
        before = self._incarnation(record.owner)
        self._heads[record.line] = max(self._head(record.line), record.version)
        now = self._incarnation(record.owner)
        old = self._records.get(record.key)
        if (record.version.incarnation < now and not record.content.durable) or (old and old.version > record.version):
            return False
        if now > before:  # a restart: what was passing has passed
            void = Line(record.owner, durable=False)
            self._records = {key: known for key, known in self._records.items() if known.line != void}
        self._records[record.key] = record
        self.revision += 1
        return True
