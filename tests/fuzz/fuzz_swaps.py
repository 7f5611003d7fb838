"""Fuzz the merging of records: what is in the picture was signed by its owner, in versions that only grow."""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.records", "lepton.mesh.swaps", "lepton.mesh.signed"):
    from lepton.mesh import limits
    from lepton.mesh.errors import PeerError
    from lepton.mesh.messages import encoded, unpack
    from lepton.mesh.records import RecordStore
    from lepton.mesh.signed import SignedRecord
    from lepton.mesh.swaps import Swap

from ..mesh.fakes import Note, credentials, identity

ANN, BEN = identity("ann"), identity("ben")
OWNERS = {ANN.peer_id, BEN.peer_id}


def said(texts: int) -> list[SignedRecord]:
    store = RecordStore(BEN, 1)
    return [store.publish("note", str(number), Note(text="x")).signed for number in range(texts)]


RECORDS = said(3)


def _swap(data: Data) -> Swap:
    if data.flag():
        return unpack(data.rest(), Swap)
    records = []
    for _ in range(data.integer(0, 6)):
        content = bytearray(data.pick(RECORDS).content)
        if data.flag():
            content[data.integer(0, len(content) - 1)] ^= data.integer(0, 255)
        if data.flag():
            content = bytearray(data.take(data.integer(0, 255)))
        signature = BEN.sign("record", bytes(content)) if data.flag() else data.pick(RECORDS).signature
        records.append(SignedRecord(content=bytes(content), signature=signature))
    return Swap(records=tuple(records))


def one(raw: bytes) -> bool:
    store = RecordStore(ANN, 1)
    try:
        swap = _swap(Data(raw))
    except PeerError:
        return False
    got = store.merge(swap.records, known=OWNERS.__contains__)
    assert all(record.owner in OWNERS for record in got.new)
    assert len(got.new) <= limits.RECORDS_PER_SWAP_MAX
    again = store.merge(swap.records, known=OWNERS.__contains__)
    assert not [record for record in again.new if record.owner != ANN.peer_id]  # once is enough
    return bool(got.new)


SEEDS = [
    b"\x01" + encoded(Swap(records=tuple(RECORDS))),
    b"\x01" + encoded(Swap(records=(RECORDS[0],), chains={BEN.peer_id: credentials(BEN).chain})),
    b"\x00\x03" + b"\x00\x00\x00\x01" + b"\x01\x00\x00\x01",
]

if __name__ == "__main__":
    main(one, SEEDS)
