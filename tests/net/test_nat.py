"""The router alone: what it lets out and in, and that its checksums are right."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .nat import Nat, hardware

INSIDE, OUTSIDE = "192.168.1.254", "10.0.0.200"
ports = st.integers(1, 65535)


def packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def checksum(data: bytes) -> int:
    """RFC 1071; 0 over data that holds its own right checksum."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(source: tuple[str, int], to: tuple[str, int], gateway: str, data: bytes = b"data") -> bytes:
    """A frame for the gateway with a TCP segment between two ends."""
    addresses = packed(source[0]) + packed(to[0])
    segment = bytearray(source[1].to_bytes(2) + to[1].to_bytes(2) + bytes(8) + b"\x50\x18\xff\xff" + bytes(4) + data)
    segment[16:18] = checksum(addresses + b"\0\x06" + len(segment).to_bytes(2) + segment).to_bytes(2)
    header = bytearray(b"\x45\0" + (20 + len(segment)).to_bytes(2) + bytes(4) + b"\x40\x06\0\0" + addresses)
    header[10:12] = checksum(bytes(header)).to_bytes(2)
    return hardware(packed(gateway)) + hardware(packed(source[0])) + b"\x08\0" + bytes(header) + bytes(segment)


def ends(frame: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    """Source and destination of a frame whose checksums hold."""
    packet = frame[14:]
    assert checksum(packet[:20]) == 0
    assert checksum(packet[12:20] + b"\0\x06" + (len(packet) - 20).to_bytes(2) + packet[20:]) == 0
    source, to = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
    return (source, int.from_bytes(packet[20:22])), (to, int.from_bytes(packet[22:24]))


def nat(*, friendly: bool = False) -> Nat:
    return Nat("n", INSIDE, OUTSIDE, friendly=friendly)


@given(ports, ports, st.binary(max_size=6).map(lambda data: data * 2))
def test_an_answer_comes_back_to_who_asked(mine: int, theirs: int, data: bytes) -> None:
    router = nat()
    ((port, sent),) = router.receive("n inside", tcp(("192.168.1.7", mine), ("10.0.0.1", theirs), INSIDE, data))
    source, to = ends(sent)
    assert (port, source[0], to) == ("n outside", OUTSIDE, ("10.0.0.1", theirs))
    assert sent[:6] == hardware(packed("10.0.0.1"))
    ((port, came),) = router.receive("n outside", tcp(to, source, OUTSIDE, data))
    assert (port, *ends(came)) == ("n inside", ("10.0.0.1", theirs), ("192.168.1.7", mine))
    assert came[:6] == hardware(packed("192.168.1.7"))


@pytest.mark.parametrize("friendly", [False, True])
def test_nobody_comes_in_unasked(friendly: bool) -> None:
    router = nat(friendly=friendly)
    ((_, sent),) = router.receive("n inside", tcp(("192.168.1.7", 5), ("10.0.0.1", 80), INSIDE))
    (_, outside), _ = ends(sent)
    for stranger in (("10.0.0.2", 80), ("10.0.0.1", 81)):
        assert router.receive("n outside", tcp(stranger, (OUTSIDE, outside), OUTSIDE)) == []
    assert router.receive("n outside", tcp(("10.0.0.1", 80), (OUTSIDE, outside + 1), OUTSIDE)) == []


@pytest.mark.parametrize(("friendly", "count"), [(False, 2), (True, 1)])
def test_a_friendly_router_keeps_one_port_for_one_place(friendly: bool, count: int) -> None:
    router = nat(friendly=friendly)
    frames = [tcp(("192.168.1.7", 5), (to, 80), INSIDE) for to in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]
    assert len({ends(router.receive("n inside", frame)[0][1])[0] for frame in frames}) == count
