"""Fuzz what reads a stranger's bytes before and below the muxer: multistream-select, both handshakes, both record
layers.

``python -m tests.fuzz.fuzz_records -max_total_time=60``. Whatever comes gives PeerError or nothing, and what is
delivered is a prefix of what was sealed: a damaged, cut, repeated or swapped record is never taken for another.
"""

from .fuzzing import Data, main, watched

with watched("lepton.mesh.multistream", "lepton.mesh.noise", "lepton.mesh.records_layer"):
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


def multistream(data: Data) -> None:
    machine = Answering({"/a", "/b"}) if data.flag() else Asking(["/a", "/b"])
    while data.left() and machine.chosen is None:
        word = data.pick([HEADER, "/a", "/b", "na", "ls"])
        good = data.flag()
        machine.receive(encode(word) if good else data.take(data.integer(0, 20)))


def handshake(data: Data) -> None:
    initiator = data.flag()
    kind = data.flag()
    machine = NoiseHandshake(NOISE, initiator=initiator) if kind else TlsHandshake(TLS, initiator=initiator)
    hello = machine.start()
    if kind and data.flag():
        other = NoiseHandshake(NOISE, initiator=not initiator)
        first = bytearray(other.start() or other.receive(hello))
        if first:
            first[data.integer(0, len(first) - 1)] ^= data.integer(0, 255)
        machine.receive(bytes(first))
    while data.left() and machine.records is None:
        machine.receive(data.take(data.integer(1, 200)))


def records(data: Data) -> None:
    sender, receiver = NoiseRecords(b"1" * 32, b"2" * 32), NoiseRecords(b"2" * 32, b"1" * 32)
    sealed = [bytes([number]) * data.integer(1, 50) for number in range(data.integer(1, 6))]
    blocks = [sender.seal([piece]) for piece in sealed]
    link = bytearray()
    for _ in range(data.integer(0, 8)):
        link += data.pick(blocks)
    if data.flag():
        link = bytearray(b"".join(blocks))
    if link and data.flag():
        link[data.integer(0, len(link) - 1)] ^= data.integer(0, 255)
    got = b""
    try:
        while link:
            cut = data.integer(1, 80)
            got += b"".join(receiver.open(memoryview(link)[:cut]))
            link = link[cut:]
    finally:
        assert b"".join(sealed).startswith(got)


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        data.pick([multistream, handshake, records])(data)
    except PeerError:
        return False
    return True


SEEDS = [
    b"\x02",
    b"\x10\x00\xff\x00\x00\x00\x00\x27" + bytes(80),
    bytes(range(256)),
    bytes(range(255, -1, -1)) * 2,
    b"\x01\x02\x00\x01" * 50,
]

if __name__ == "__main__":
    main(one, SEEDS)
