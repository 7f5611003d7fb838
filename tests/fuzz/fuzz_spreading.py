"""Fuzz the talk about the picture: whatever a member asks or answers, the machine goes on and all that it says passes.

The owner whose records are held beforehand cannot be made to lose one, and nobody but the owners is ever held.
"""

import random

from .fuzzing import Data, main, watched

with watched("lepton.mesh.spreading", "lepton.mesh.reconciling", "lepton.mesh.records", "lepton.mesh.shelf"):
    from lepton.mesh.errors import PeerError
    from lepton.mesh.messages import encoded, pack, unpack
    from lepton.mesh.records import RecordId, RecordStore
    from lepton.mesh.spreading import (
        METHODS,
        Answered,
        Asked,
        Call,
        Effect,
        Expired,
        Failed,
        Offend,
        PeerGone,
        PeerHere,
        Published,
        Reply,
        Spreading,
    )  # fmt: skip
    from lepton.mesh.swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped, joined

from ..mesh.fakes import Note, identity
from ..mesh.talkers import Everybody

ANN, BEN = identity("ann"), identity("ben")
OWNERS = {ANN.peer_id, BEN.peer_id}
QUESTIONS: list[type[Compare | Survey | Swap]] = [Compare, Survey, Swap]


def _said(texts: int) -> RecordStore:
    store = RecordStore(BEN, 1)
    for number in range(texts):
        store.publish("note", str(number), Note(text="x"), durable=number % 2 == 0)
    return store


BENS = _said(4)
IDS = sorted(record.id for record in BENS.all())


def _ids(data: Data) -> bytes:
    cut = data.integer(0, 15) if data.flag() else 0
    ids = [data.pick(IDS) if data.flag() else RecordId(data.take(16).ljust(16)) for _ in range(data.integer(0, 5))]
    return joined(ids)[cut:]


def _records(data: Data) -> Swap:
    held = [record.signed for record in BENS.all()]
    return Swap(records=tuple(data.pick(held) for _ in range(data.integer(0, 4))))


def _question(data: Data) -> Compare | Survey | Swap:
    kind = data.pick(QUESTIONS)
    if data.flag():
        return unpack(data.take(data.integer(0, 255)), kind)
    if kind is Compare:
        return Compare(fingerprint=data.take(16).ljust(16), news=_ids(data))
    if kind is Survey:
        return Survey(digests=data.take(64).ljust(4096))
    return Swap(records=_records(data).records, want=_ids(data), proofs=data.flag())


def _answer(data: Data, call: Call) -> Compared | Surveyed | Swapped:
    _, kind = METHODS[type(call.message)]
    if data.flag():
        return unpack(data.take(data.integer(0, 255)), kind)
    fingerprint = data.take(16).ljust(16)
    if kind is Compared:
        return Compared(fingerprint=fingerprint, news=_ids(data), want=_ids(data))
    if kind is Surveyed:
        return Surveyed(buckets=data.take(data.integer(0, 8)), ids=_ids(data))
    unproven = tuple(data.pick([ANN.peer_id, BEN.peer_id]) for _ in range(data.integer(0, 2)))
    return Swapped(fingerprint=fingerprint, records=_records(data).records, unproven=unproven)


class Talk:
    """One machine, and the calls that it waits for."""

    def __init__(self) -> None:
        self.store = RecordStore(ANN, 9, [record.signed for record in BENS.all()[:2]])
        self.machine = Spreading(ANN.peer_id, self.store, Everybody(), random.Random(1))
        self.pending: list[Call] = []
        self.taken = False

    def step(self, data: Data, now: float) -> None:
        match data.integer(0, 7):
            case 0:
                event = PeerHere(BEN.peer_id) if data.flag() else PeerGone(BEN.peer_id)
                self.hear(self.machine.handle(event, now))
            case 1:
                record = self.store.publish("note", data.pick(["a", "b"]), Note(), durable=False)
                self.hear(self.machine.handle(Published(record), now))
            case 2 if self.pending:
                self.hear(self.machine.handle(Failed(self.pending.pop(0).number), now))
            case 3 | 4 | 5 if self.pending:
                call = self.pending.pop(0)
                self.hear(self.machine.handle(Answered(call.number, _answer(data, call)), now))
            case 6:
                self.hear(self.machine.handle(Expired(), now))
            case _:
                said = self.machine.handle(Asked(BEN.peer_id, _question(data)), now)
                assert len([effect for effect in said if isinstance(effect, Reply | Offend)]) == 1
                self.hear(said)

    def hear(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Call | Reply):
                pack(effect.message)  # asserts that it is not over the limit
            self.taken |= isinstance(effect, Reply)
            if isinstance(effect, Call):
                self.pending.append(effect)


def one(raw: bytes) -> bool:
    data, talk, now = Data(raw), Talk(), 0.0
    talk.hear(talk.machine.handle(PeerHere(BEN.peer_id), now))
    before = {record.key: record.version for record in talk.store.all()}
    while data.left():
        now += 0.5
        try:
            talk.step(data, now)
        except PeerError:  # not decoded: the shell has hung up
            continue
    after = {record.key: record.version for record in talk.store.all()}
    assert all(after[key] >= version for key, version in before.items())
    assert talk.store.owners() <= OWNERS
    return talk.taken


SEEDS = [
    b"\x07\x00\x00" + BENS.fingerprint + b"\x00\x04" + b"\x01\x00" * 4,
    b"\x06\x03\x00" + BENS.fingerprint + b"\x00\x02\x01\x00\x01\x01\x00\x01\x01\x02" * 2,
    b"\x01\x00\x03\x00" + bytes(40),
    b"\x07\x01\x01\x48" + encoded(Compare(fingerprint=BENS.fingerprint, news=joined(IDS[:3]))),
    b"\x07\x02\x00\x03\x00\x01\x02\x03\x00\x02\x01\x00\x01\x01\x01",
]

if __name__ == "__main__":
    main(one, SEEDS)
