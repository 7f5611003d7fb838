"""The messages of the picture: as many records as one holds, always at least one, and never more than a peer takes."""

import pytest
from lepton.mesh import limits
from lepton.mesh.errors import PeerError
from lepton.mesh.grants import Grant, issue
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import pack, unpack
from lepton.mesh.records import Record, RecordId, RecordStore
from lepton.mesh.shelf import BUCKETS
from lepton.mesh.signed import ID_BYTES
from lepton.mesh.swaps import Compare, Compared, Load, Survey, Surveyed, Swap, Swapped, ids_in, joined, load

from .fakes import FOREVER, ROOT, SERIAL, Note, credentials, identity

FINGERPRINT = bytes(ID_BYTES)
MOST_WANTED = bytes(limits.WANTED_MAX * ID_BYTES)
MOST_OWNERS = tuple(PeerId(f"{n:08}" + identity("x").peer_id[8:]) for n in range(limits.CHAINS_PER_SWAP_MAX))


def said(count: int, size: int, owner: str = "alice") -> list[Record]:
    store = RecordStore(identity(owner), 1)
    return [store.publish("note", f"n{n}", Note(text="x" * size)) for n in range(count)]


def chain_of(*owners: str) -> dict[PeerId, tuple[Grant, ...]]:
    return {identity(owner).peer_id: credentials(identity(owner)).chain for owner in owners}


def largest(loaded: Load) -> None:
    """Both messages pass with this load and all else at its largest."""
    swap = Swap(records=loaded.signed, chains=loaded.chains, want=MOST_WANTED, proofs=True)
    swapped = Swapped(records=loaded.signed, chains=loaded.chains, fingerprint=FINGERPRINT, unproven=MOST_OWNERS)
    assert unpack(pack(swap), Swap) == swap
    assert unpack(pack(swapped), Swapped) == swapped


def test_small_records_go_together_up_to_the_limit() -> None:
    records = said(limits.RECORDS_PER_OWNER_MAX, 10) + said(5, 10, "bob")
    loaded = load(records, chain_of("alice", "bob"), proofs=False)
    assert loaded.records == records[: limits.RECORDS_PER_SWAP_MAX]
    assert loaded.rest == records[limits.RECORDS_PER_SWAP_MAX :]
    assert loaded.chains == {}
    largest(loaded)


def test_proofs_go_along_when_they_are_wanted_one_for_each_owner() -> None:
    loaded = load(said(3, 10) + said(2, 10, "bob"), chain_of("alice", "bob"), proofs=True)
    assert loaded.chains == chain_of("alice", "bob")
    largest(loaded)


@pytest.mark.parametrize("size", [1000, 4000])
@pytest.mark.parametrize("proofs", [True, False])
def test_large_records_go_as_far_as_they_fit(size: int, proofs: bool) -> None:
    records = said(100, size)
    loaded = load(records, chain_of("alice"), proofs=proofs)
    assert loaded.records + loaded.rest == records
    assert loaded.rest
    largest(loaded)


def test_the_largest_record_of_the_longest_chain_fits() -> None:
    many = tuple(f"infer:{'m' * 47}{n:02}" for n in range(limits.CAPABILITIES_MAX))
    links = [issue(ROOT, ROOT.peer_id, many, expires=FOREVER, serial=SERIAL)] * limits.GRANT_CHAIN_MAX
    assert len(links[0].statement) > 0.9 * limits.GRANT_BYTES_MAX
    store = RecordStore(identity("alice"), 1)
    record = store.publish("note", "n" * 64, [b"x" * (limits.RECORD_BYTES_MAX - 8)])
    loaded = load([record], {record.owner: tuple(links)}, proofs=True)
    assert loaded.records == [record]
    largest(loaded)


def test_records_of_owners_that_cannot_be_proved_stay_here() -> None:
    records = said(2, 1, "bob") + said(1, 1)
    loaded = load(records, chain_of("alice"), proofs=False)
    assert (loaded.records, loaded.rest) == ([records[2]], [])


def test_many_long_chains_leave_room_for_themselves() -> None:
    many = tuple(f"infer:{'m' * 40}{n:02}" for n in range(limits.CAPABILITIES_MAX))
    chain = (issue(ROOT, ROOT.peer_id, many, expires=FOREVER, serial=SERIAL),) * limits.GRANT_CHAIN_MAX
    records = [record for n in range(limits.CHAINS_PER_SWAP_MAX) for record in said(1, 100, f"peer {n}")]
    loaded = load(records, {record.owner: chain for record in records}, proofs=True)
    assert 5 < len(loaded.records) < len(records)
    largest(loaded)


def test_more_owners_than_one_message_proves_wait() -> None:
    records = [record for n in range(limits.CHAINS_PER_SWAP_MAX + 1) for record in said(1, 1, f"peer {n}")]
    loaded = load(records, {record.owner: credentials(identity("x")).chain for record in records}, proofs=True)
    assert loaded.rest == records[limits.CHAINS_PER_SWAP_MAX :]


WITHIN = [
    Compare(fingerprint=FINGERPRINT, news=bytes(limits.NEWS_MAX * ID_BYTES)),
    Compared(fingerprint=FINGERPRINT, news=bytes(limits.NEWS_MAX * ID_BYTES), want=bytes(limits.NEWS_MAX * ID_BYTES)),
    Survey(digests=bytes(BUCKETS * ID_BYTES)),
    Surveyed(buckets=bytes(range(BUCKETS)), ids=bytes(limits.LISTED_MAX * ID_BYTES)),
]
BEYOND = [
    Compare(fingerprint=bytes(ID_BYTES + 1)),
    Compare(fingerprint=FINGERPRINT, news=bytes(limits.NEWS_MAX * ID_BYTES + 1)),
    Compared(fingerprint=FINGERPRINT, news=bytes(limits.NEWS_MAX * ID_BYTES + 1)),
    Compared(fingerprint=FINGERPRINT, want=bytes(limits.NEWS_MAX * ID_BYTES + 1)),
    Survey(digests=bytes(BUCKETS * ID_BYTES - 1)),
    Survey(digests=bytes(BUCKETS * ID_BYTES + 1)),
    Surveyed(buckets=bytes(BUCKETS + 1)),
    Surveyed(ids=bytes(limits.LISTED_MAX * ID_BYTES + 1)),
    Swap(want=MOST_WANTED + b"x"),
    Swap(records=tuple(record.signed for record in said(1, 1) * (limits.RECORDS_PER_SWAP_MAX + 1))),
    Swapped(fingerprint=FINGERPRINT, unproven=(*MOST_OWNERS, MOST_OWNERS[0])),
    Swapped(fingerprint=FINGERPRINT, chains=dict.fromkeys((*MOST_OWNERS, identity("x").peer_id), ())),
]


@pytest.mark.parametrize("message", WITHIN, ids=lambda one: type(one).__name__)
def test_the_largest_of_each_passes(message: object) -> None:
    assert unpack(pack(message), type(message)) == message


@pytest.mark.parametrize("number", range(len(BEYOND)))
def test_one_past_a_limit_does_not(number: int) -> None:
    message = BEYOND[number]
    with pytest.raises(PeerError):
        unpack(pack(message), type(message))


def test_ids_come_apart_as_they_were_joined_or_not_at_all() -> None:
    ids = [RecordId(bytes([n]) * ID_BYTES) for n in range(5)]
    assert ids_in(joined(ids)) == ids
    with pytest.raises(PeerError, match=r"A list of ids of 16 B takes 79 B\."):
        ids_in(joined(ids)[:-1])
