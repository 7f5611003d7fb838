"""Fuzz what reads a stranger's bytes before and below the muxer: multistream-select, both handshakes, both record
layers.

``python tests/fuzz/fuzz_records.py -max_total_time=60``. Whatever comes gives PeerError or nothing, and what is
delivered is a prefix of what was sealed: a damaged, cut, repeated or swapped record is never taken for another.
"""

import sys

import atheris

with atheris.instrument_imports(include=["lepton.mesh.multistream", "lepton.mesh.noise", "lepton.mesh.records_layer"]):
    from lepton.mesh.errors import PeerError
    from lepton.mesh.multistream import HEADER, Answering, Asking, encode
    from lepton.mesh.noise import NoiseHandshake, NoiseKeys
    from lepton.mesh.records_layer import NoiseRecords
    from lepton.mesh.tls import TlsHandshake, TlsKeys

MUXERS = ["/yamux/1.0.0"]


class Me:
    seed = b"s" * 32
    peer_id = "unused"


NOISE, TLS = NoiseKeys(Me(), MUXERS), TlsKeys(Me(), MUXERS)


def multistream(data: atheris.FuzzedDataProvider) -> None:
    machine = Answering({"/a", "/b"}) if data.ConsumeBool() else Asking(["/a", "/b"])
    while data.remaining_bytes() and machine.chosen is None:
        word = data.PickValueInList([HEADER, "/a", "/b", "na", "ls"])
        good = data.ConsumeBool()
        machine.receive(encode(word) if good else data.ConsumeBytes(data.ConsumeIntInRange(0, 20)))


def handshake(data: atheris.FuzzedDataProvider) -> None:
    initiator = data.ConsumeBool()
    kind = data.ConsumeBool()
    machine = NoiseHandshake(NOISE, initiator=initiator) if kind else TlsHandshake(TLS, initiator=initiator)
    hello = machine.start()
    if kind and data.ConsumeBool():
        other = NoiseHandshake(NOISE, initiator=not initiator)
        first = bytearray(other.start() or other.receive(hello))
        if first:
            first[data.ConsumeIntInRange(0, len(first) - 1)] ^= data.ConsumeIntInRange(0, 255)
        machine.receive(bytes(first))
    while data.remaining_bytes() and machine.records is None:
        machine.receive(data.ConsumeBytes(data.ConsumeIntInRange(1, 200)))


def records(data: atheris.FuzzedDataProvider) -> None:
    sender, receiver = NoiseRecords(b"1" * 32, b"2" * 32), NoiseRecords(b"2" * 32, b"1" * 32)
    sealed = [bytes([number]) * data.ConsumeIntInRange(1, 50) for number in range(data.ConsumeIntInRange(1, 6))]
    blocks = [sender.seal([piece]) for piece in sealed]
    link = bytearray()
    for _ in range(data.ConsumeIntInRange(0, 8)):
        link += data.PickValueInList(blocks)
    if data.ConsumeBool():
        link = bytearray(b"".join(blocks))
    if link and data.ConsumeBool():
        link[data.ConsumeIntInRange(0, len(link) - 1)] ^= data.ConsumeIntInRange(0, 255)
    got = b""
    try:
        while link:
            cut = data.ConsumeIntInRange(1, 80)
            got += b"".join(receiver.open(memoryview(link)[:cut]))
            link = link[cut:]
    finally:
        assert b"".join(sealed).startswith(got)


def test_one(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    try:
        data.PickValueInList([multistream, handshake, records])(data)
    except PeerError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
