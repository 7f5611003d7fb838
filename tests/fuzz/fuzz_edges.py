"""Fuzz the edges: announcements that anybody on the network makes, and what comes over the control socket."""

import socket

import msgspec
from zeroconf import ServiceInfo

from .fuzzing import Data, main, watched

with watched("lepton.mesh.discovery", "lepton.mesh.announcements", "lepton.node.control"):
    from lepton.mesh import discovery
    from lepton.mesh.announcements import NONCE_BYTES, Seal
    from lepton.mesh.errors import PeerError
    from lepton.mesh.frames import FrameDecoder, encode
    from lepton.mesh.identity import public_key_of
    from lepton.mesh.messages import pack, unpack
    from lepton.node import control

from ..mesh.fakes import ROOT

SEAL = Seal(ROOT.peer_id)


def one(raw: bytes) -> bool:
    data = Data(raw)
    return _announcement(data) if data.flag() else _request(data.rest())


def _announcement(data: Data) -> bool:
    sealed = data.flag()
    port = data.integer(0, 65535)
    addresses = [
        data.take(4).rjust(4, b"\x00") if data.flag() else data.take(16).rjust(16, b"\x00")
        for _ in range(data.integer(0, 3))
    ]
    own = SEAL.close(ROOT.peer_id, port, bytes(NONCE_BYTES))
    texts = _text(b"s=" + own) if sealed else data.rest()
    info = ServiceInfo(
        discovery.SERVICE_TYPE, f"x.{discovery.SERVICE_TYPE}", port, addresses=addresses, properties=texts
    )
    hint = discovery.read_hint(info, SEAL)
    if hint is None:
        return False
    public_key_of(hint.peer)
    assert 0 < len(hint.addresses) <= len(addresses)
    return True


def _text(*entries: bytes) -> bytes:
    return b"".join(bytes([len(entry)]) + entry for entry in entries)


def _request(stream: bytes) -> bool:
    try:
        for frame in FrameDecoder(body_bytes_max=10_000).receive(stream):
            asked = unpack(frame.header, control.Request)
            control._read_body(asked, frame)
    except PeerError:
        return False
    return True


_ASKED = control.Request(command="status", json_bytes=2)
SEEDS = [
    b"\x00" + b"".join(encode(pack(_ASKED), [b"{}"])),
    b"\x01\x01\x0f\xa1\x01\x01" + socket.inet_aton("127.0.0.1"),
    b"\x01\x01\x0f\xa1\x01\x00" + socket.inet_pton(socket.AF_INET6, "fd00::1"),
    b"\x01\x00\x0f\xa1\x01\x01" + socket.inet_aton("127.0.0.1") + _text(b"s=" + bytes(74)),
    b"\x00" + b"".join(encode(pack(msgspec.structs.replace(_ASKED, json_bytes=4)), [b"[[]]"])),
]

if __name__ == "__main__":
    main(one, SEEDS)
