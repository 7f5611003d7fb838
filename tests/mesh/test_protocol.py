"""Deltas: as many records as one message holds, always at least one, and never more than a peer accepts."""

import pytest
from lepton.mesh import limits
from lepton.mesh.grants import Grant, issue
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import pack, unpack
from lepton.mesh.protocol import Delta, delta_of
from lepton.mesh.records import Digest, Record, RecordStore

from .fakes import FOREVER, ROOT, SERIAL, Note, credentials, identity

LARGEST = {f"{n:08}" + identity("x").peer_id[8:]: (2**53 - 1, 2**53 - 1) for n in range(limits.MEMBERS_MAX)}
FULL = Digest(
    durable={PeerId(peer): head for peer, head in LARGEST.items()},
    passing={PeerId(peer): head for peer, head in LARGEST.items()},
)


def said(count: int, size: int, owner: str = "alice") -> list[Record]:
    store = RecordStore(identity(owner), 1)
    return [store.publish("note", f"n{n}", Note(text="x" * size)) for n in range(count)]


def chain_of(owner: str) -> dict[PeerId, tuple[Grant, ...]]:
    return {identity(owner).peer_id: credentials(identity(owner)).chain}


def test_small_records_go_together_up_to_the_limit() -> None:
    records = said(limits.RECORDS_PER_DELTA_MAX + 5, 10)
    delta = delta_of(records, chain_of("alice"), since=Digest())
    assert delta.records == tuple(record.signed for record in records[: limits.RECORDS_PER_DELTA_MAX])
    assert delta.chains == chain_of("alice")
    assert unpack(pack(delta), Delta) == delta


@pytest.mark.parametrize("size", [1000, 4000])
@pytest.mark.parametrize("digest", [None, Digest(), FULL])
def test_large_records_go_as_far_as_they_fit(size: int, digest: Digest | None) -> None:
    records = said(40, size)
    delta = delta_of(records, chain_of("alice"), since=Digest(), digest=digest)
    assert delta.records == tuple(record.signed for record in records[: len(delta.records)])
    assert unpack(pack(delta), Delta) == delta
    missed = records[len(delta.records)]
    if len(delta.records) < limits.RECORDS_PER_DELTA_MAX:  # what was left out would indeed not have fitted
        assert len(pack(delta)) + len(missed.signed.content) + 1024 > limits.HEADER_BYTES_MAX


def test_the_largest_record_of_the_longest_chain_fits_beside_the_largest_digest() -> None:
    many = tuple(f"infer:{'m' * 47}{n:02}" for n in range(limits.CAPABILITIES_MAX))
    links = [issue(ROOT, ROOT.peer_id, many, expires=FOREVER, serial=SERIAL)] * limits.GRANT_CHAIN_MAX
    assert len(links[0].statement) > 0.9 * limits.GRANT_BYTES_MAX
    store = RecordStore(identity("alice"), 1)
    record = store.publish("note", "n" * 64, [b"x" * (limits.RECORD_BYTES_MAX - 8)])
    delta = delta_of([record], {record.owner: tuple(links)}, since=FULL, digest=FULL)
    assert delta.records == (record.signed,)
    assert unpack(pack(delta), Delta) == delta


def test_a_delta_says_what_it_follows_on_for_its_own_owners_only() -> None:
    since = Digest(
        durable={identity("alice").peer_id: (1, 1), identity("bob").peer_id: (1, 2)},
        passing={identity("alice").peer_id: (1, 3)},
    )
    delta = delta_of(said(1, 1), chain_of("alice"), since=since)
    assert delta.since == Digest(
        durable={identity("alice").peer_id: (1, 1)}, passing={identity("alice").peer_id: (1, 3)}
    )


def test_records_of_owners_that_cannot_be_proved_stay_here() -> None:
    records = said(2, 1, "bob") + said(1, 1)
    delta = delta_of(records, chain_of("alice"), since=Digest())
    assert delta.records == (records[2].signed,)


def test_many_long_chains_leave_room_for_themselves() -> None:
    many = tuple(f"infer:{'m' * 40}{n:02}" for n in range(limits.CAPABILITIES_MAX))
    chain = (issue(ROOT, ROOT.peer_id, many, expires=FOREVER, serial=SERIAL),) * limits.GRANT_CHAIN_MAX
    records = [record for n in range(limits.RECORDS_PER_DELTA_MAX) for record in said(1, 100, f"peer {n}")]
    delta = delta_of(records, {record.owner: chain for record in records}, since=Digest())
    assert 5 < len(delta.records) < len(records)
    assert unpack(pack(delta), Delta) == delta
