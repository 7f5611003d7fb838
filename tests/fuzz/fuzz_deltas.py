"""Fuzz the merging of records: what is in the picture was signed by its owner, in versions that only grow."""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.records", "lepton.mesh.protocol"):
    from lepton.mesh import limits
    from lepton.mesh.errors import PeerError
    from lepton.mesh.messages import encoded, unpack
    from lepton.mesh.protocol import Delta
    from lepton.mesh.records import Digest, RecordStore, SignedRecord

from ..mesh.fakes import Note, credentials, identity

ANN, BEN = identity("ann"), identity("ben")
OWNERS = {ANN.peer_id, BEN.peer_id}


def said(texts: int) -> list[SignedRecord]:
    store = RecordStore(BEN, 1)
    return [store.publish("note", str(number), Note(text="x")).signed for number in range(texts)]


RECORDS = said(3)


def _delta(data: Data) -> Delta:
    if data.flag():
        return unpack(data.rest(), Delta)
    records = []
    for _ in range(data.integer(0, 6)):
        content = bytearray(data.pick(RECORDS).content)
        if data.flag():
            content[data.integer(0, len(content) - 1)] ^= data.integer(0, 255)
        if data.flag():
            content = bytearray(data.take(data.integer(0, 255)))
        signature = BEN.sign("record", bytes(content)) if data.flag() else data.pick(RECORDS).signature
        records.append(SignedRecord(content=bytes(content), signature=signature))
    return Delta(records=tuple(records), since=Digest())


def one(raw: bytes) -> bool:
    data = Data(raw)
    store = RecordStore(ANN, 1)
    try:
        delta = _delta(data)
        before = store.digest()
        new = store.merge(delta.records, since=delta.since, known=OWNERS.__contains__)
    except PeerError:
        return False
    assert all(record.owner in OWNERS for record in new)
    assert len(new) <= limits.RECORDS_PER_DELTA_MAX
    assert store.digest() != before or not new
    assert store.merge(delta.records, since=delta.since, known=OWNERS.__contains__) == []  # once is enough
    return bool(new)


SEEDS = [
    b"\x01" + encoded(Delta(records=tuple(RECORDS))),
    b"\x01" + encoded(Delta(records=(RECORDS[0],), chains={BEN.peer_id: credentials(BEN).chain}, digest=Digest())),
    b"\x00\x03" + b"\x00\x00\x00\x01" + b"\x01\x00\x00\x01",
]

if __name__ == "__main__":
    main(one, SEEDS)
