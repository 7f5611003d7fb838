"""A home router: devices inside reach the world through one address, and nobody reaches them unasked. No socket here.

By default the strictest of the kinds in RFC 4787: a port outside for every pair of ends (address- and port-dependent
mapping), which lets in answers of that end alone. ``friendly`` is what hole punching hopes for: one port outside for a
place inside, whomever it talks to. It translates TCP and UDP over IPv4, and answers ARP for its two addresses.

A hardware address ends with the last number of the IPv4 address here, as those of a Lan do, so nobody is asked for it.
"""

import ipaddress
import itertools
from dataclasses import dataclass, field
from typing import Final

from .switch import Port

_IPV4: Final = b"\x08\x00"
_ARP: Final = b"\x08\x06"
_CHECKSUM_AT: Final = {6: 16, 17: 6}  # in the headers of TCP and UDP
_FIRST_PORT: Final = 40_000

End = tuple[bytes, int]  # IPv4 address, port


def hardware(ipv4: bytes) -> bytes:
    """The hardware address that belongs to an IPv4 address."""
    return b"\x02\0\0\0\0" + ipv4[3:]


@dataclass(slots=True)
class _Mapping:
    inside: End
    outside_port: int
    asked: set[End] = field(default_factory=set)  # whose answers may come in


class Nat:
    """Two ports of a switch, an address on each side."""

    def __init__(self, name: str, inside: str, outside: str, *, friendly: bool = False) -> None:
        self.inside_port: Port = f"{name} inside"
        self.outside_port: Port = f"{name} outside"
        self._addresses = {
            self.inside_port: ipaddress.IPv4Address(inside).packed,
            self.outside_port: ipaddress.IPv4Address(outside).packed,
        }
        self._friendly = friendly
        self._by_inside: dict[object, _Mapping] = {}
        self._by_outside: dict[tuple[int, int], _Mapping] = {}  # protocol, port
        self._ports = itertools.count(_FIRST_PORT)

    def receive(self, port: Port, frame: bytes) -> list[tuple[Port, bytes]]:
        """Take a frame that came to one of its ports; returns what it sends, and from which."""
        kind = frame[12:14]
        if kind == _ARP:
            return self._answer(port, frame)
        if kind != _IPV4 or frame[:6] != hardware(self._addresses[port]) or frame[23] not in _CHECKSUM_AT:
            return []
        packet = bytearray(frame[14:])
        sent = self._out(packet) if port == self.inside_port else self._in(packet)
        if not sent:
            return []
        to = self.outside_port if port == self.inside_port else self.inside_port
        return [(to, hardware(bytes(packet[16:20])) + hardware(self._addresses[to]) + _IPV4 + bytes(packet))]

    def _answer(self, port: Port, frame: bytes) -> list[tuple[Port, bytes]]:
        mine = self._addresses[port]
        if frame[20:22] != b"\0\x01" or frame[38:42] != mine:
            return []
        asker = frame[22:32]  # hardware address, IPv4 address
        head = frame[6:12] + hardware(mine) + frame[12:20] + b"\0\x02"
        return [(port, head + hardware(mine) + mine + asker)]

    def _out(self, packet: bytearray) -> bool:
        protocol, at = packet[9], (packet[0] & 15) * 4
        inside: End = bytes(packet[12:16]), int.from_bytes(packet[at : at + 2])
        remote: End = bytes(packet[16:20]), int.from_bytes(packet[at + 2 : at + 4])
        key = (protocol, inside) if self._friendly else (protocol, inside, remote)
        mapping = self._by_inside.get(key)
        if mapping is None:
            mapping = self._by_inside[key] = _Mapping(inside, next(self._ports))
            self._by_outside[protocol, mapping.outside_port] = mapping
        mapping.asked.add(remote)
        _rewrite(packet, 12, at, (self._addresses[self.outside_port], mapping.outside_port))
        return True

    def _in(self, packet: bytearray) -> bool:
        protocol, at = packet[9], (packet[0] & 15) * 4
        remote: End = bytes(packet[12:16]), int.from_bytes(packet[at : at + 2])
        mapping = self._by_outside.get((protocol, int.from_bytes(packet[at + 2 : at + 4])))
        if mapping is None or remote not in mapping.asked:
            return False
        _rewrite(packet, 16, at + 2, mapping.inside)
        return True


def _rewrite(packet: bytearray, address_at: int, port_at: int, to: End) -> None:
    """Put another address and port in, and mend both checksums by the difference (RFC 1624)."""
    checksum_at = (packet[0] & 15) * 4 + _CHECKSUM_AT[packet[9]]
    address, port = to[0], to[1].to_bytes(2)
    before = bytes(packet[address_at : address_at + 4])
    _mend(packet, 10, before, address)
    _mend(packet, checksum_at, before + packet[port_at : port_at + 2], address + port)
    packet[address_at : address_at + 4] = address
    packet[port_at : port_at + 2] = port


def _mend(packet: bytearray, at: int, before: bytes, after: bytes) -> None:
    total = ~int.from_bytes(packet[at : at + 2]) & 0xFFFF
    for place in range(0, len(before), 2):
        total += (~int.from_bytes(before[place : place + 2]) & 0xFFFF) + int.from_bytes(after[place : place + 2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[at : at + 2] = (~total & 0xFFFF).to_bytes(2)
