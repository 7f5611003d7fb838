"""Who is heard by mDNS through which interface, for a diagnosis: a question on each, and some seconds of listening.

zeroconf does not say through which interface a packet came, and a socket is given what any socket of the machine asked
for. So this one asks the system for each packet's interface (IP_PKTINFO: ip(7); IPV6_RECVPKTINFO: RFC 3542). One's own
question comes back on an interface unless something on this machine drops multicast there.
"""

import ipaddress
import logging
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

import ifaddr
import trio
from zeroconf import (  # type: ignore[attr-defined]  # it exports them without saying so
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSQuestion,
    DNSRecord,
    DNSService,
    DNSText,
    Error,
    ServiceInfo,
)

from .announcements import Seal
from .discovery import SERVICE_TYPE, read_hint, read_sighting
from .identity import PeerId

QUESTIONS: Final = 3  # spread over the time of listening: one packet may be lost, and answers are held up by 1 s
VOICES_MAX: Final = 256  # announcements that are remembered: a flood on the LAN ends there
_PORT: Final = 5353
_GROUP_4: Final = "224.0.0.251"
_GROUP_6: Final = "ff02::fb"
_IP_PKTINFO: Final = getattr(socket, "IP_PKTINFO", 8)  # linux/in.h; Python 3.11 does not name it
_PACKET_BYTES_MAX: Final = 9000  # RFC 6762, section 17
_BESIDE_BYTES: Final = 256  # what the system says beside a packet takes 36
_QUERY, _CLASS_IN, _TYPE_PTR = 0, 1, 12  # RFC 1035

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ear:
    """One interface, with the address over which IPv4 goes out of it, if any, and whether it has IPv6."""

    name: str
    index: int
    ipv4: str = ""
    has_ipv6: bool = False


@dataclass(frozen=True, slots=True)
class Voice:
    """An announcement as it came in. ``peer`` is None when it is of another mesh than the one asked for."""

    interface: str
    source: str
    peer: PeerId | None
    addresses: tuple[str, ...]


@dataclass(slots=True)
class Overheard:
    """What came in while listening: announcements, where one's own question came back, where nothing can be heard."""

    ears: tuple[Ear, ...]
    voices: list[Voice] = field(default_factory=list)
    echoes: set[str] = field(default_factory=set)
    troubles: dict[str, str] = field(default_factory=dict)  # by interface


def ears(addresses: Sequence[str] = ()) -> tuple[Ear, ...]:
    """Return the interfaces that have one of these addresses; without any named, all that are not loopback."""
    found = []
    for adapter in ifaddr.get_adapters():
        ips = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips]
        wanted = [ip for ip in ips if (ip in addresses if addresses else not ipaddress.ip_address(ip).is_loopback)]
        if wanted and adapter.index is not None:
            ipv4 = next((ip for ip in wanted if ":" not in ip), "")
            found.append(Ear(adapter.name, adapter.index, ipv4, any(":" in ip for ip in wanted)))
    return tuple(sorted(found, key=lambda ear: ear.name))


async def overhear(mesh: PeerId | None, listening: Sequence[Ear], listen_s: float) -> Overheard:
    """Ask on each of these interfaces who is there, and listen. Raises nothing: what fails is in ``troubles``."""
    heard = Overheard(tuple(listening))
    number = secrets.randbelow(2**16 - 1) + 1  # RFC 6762, section 18.1: others ignore it, and it marks our question
    question = _question(number)
    with ExitStack() as stack:
        sockets = [
            opened
            for family, able in ((socket.AF_INET, _v4(listening)), (socket.AF_INET6, _v6(listening)))
            if able and (opened := await _open(family, able, heard)) is not None
        ]
        for raw, _ in sockets:
            stack.callback(raw.close)
        with trio.move_on_after(listen_s):
            async with trio.open_nursery() as nursery:
                for raw, able in sockets:
                    nursery.start_soon(_listen, raw, able, heard, mesh, question)
                for _ in range(QUESTIONS):
                    for raw, able in sockets:
                        await _ask(raw, able, question, heard)
                    await trio.sleep(listen_s / QUESTIONS)
    return heard


def _v4(listening: Sequence[Ear]) -> list[Ear]:
    return [ear for ear in listening if ear.ipv4]


def _v6(listening: Sequence[Ear]) -> list[Ear]:
    return [ear for ear in listening if ear.has_ipv6 and socket.has_ipv6]


def _question(number: int) -> bytes:
    asked = DNSOutgoing(_QUERY, multicast=False, id_=number)  # multicast packets of zeroconf have no number
    asked.add_question(DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN))
    return bytes(asked.packets()[0])


# -- sockets -----------------------------------------------------------------------------------------------------------


async def _open(
    family: socket.AddressFamily, listening: Sequence[Ear], heard: Overheard
) -> tuple[trio.socket.SocketType, list[Ear]] | None:
    """Open a socket that hears all of these, and return it with those that it does hear."""
    raw = trio.socket.socket(family, socket.SOCK_DGRAM)
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(AttributeError, OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _configure(raw, family)
        await raw.bind(("", _PORT))
    except OSError as error:
        raw.close()
        heard.troubles.update((ear.name, f"UDP port {_PORT}: {error.strerror or error}") for ear in listening)
        return None
    able = []
    for ear in listening:
        try:
            _join(raw, family, ear)
            able.append(ear)
        except OSError as error:
            heard.troubles[ear.name] = f"no multicast: {error.strerror or error}"
    return raw, able


def _configure(raw: trio.socket.SocketType, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET:
        raw.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        return
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)


def _join(raw: trio.socket.SocketType, family: socket.AddressFamily, ear: Ear) -> None:
    if family == socket.AF_INET:
        member = socket.inet_aton(_GROUP_4) + socket.inet_aton(ear.ipv4)
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    else:
        member = socket.inet_pton(socket.AF_INET6, _GROUP_6) + struct.pack("@I", ear.index)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


async def _ask(raw: trio.socket.SocketType, listening: Sequence[Ear], question: bytes, heard: Overheard) -> None:
    for ear in listening:
        try:
            if raw.family == socket.AF_INET:
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ear.ipv4))
                await raw.sendto(question, (_GROUP_4, _PORT))
            else:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, ear.index)
                await raw.sendto(question, (_GROUP_6, _PORT, 0, ear.index))
        except OSError as error:
            heard.troubles.setdefault(ear.name, f"cannot send multicast: {error.strerror or error}")


# -- hearing -----------------------------------------------------------------------------------------------------------


async def _listen(
    raw: trio.socket.SocketType, listening: Sequence[Ear], heard: Overheard, mesh: PeerId | None, question: bytes
) -> None:
    names = {ear.index: ear.name for ear in listening}
    seal = Seal(mesh) if mesh is not None else None
    while True:
        data, said, _, where = await raw.recvmsg(_PACKET_BYTES_MAX, _BESIDE_BYTES)
        source: tuple[str, int] = where  # type: ignore[assignment]  # of a socket of the internet
        name = names.get(interface_index(said))
        if name is None:
            continue
        if data == question:
            heard.echoes.add(name)
        elif len(heard.voices) < VOICES_MAX:
            found = voices(data, name, source[0].partition("%")[0], seal, interface_index(said))
            heard.voices += [voice for voice in dict.fromkeys(found) if voice not in heard.voices]
            del heard.voices[VOICES_MAX:]  # one packet may have hundreds


def interface_index(said: Sequence[tuple[int, int, bytes]]) -> int:
    """Read through which interface a packet came from what the system said beside it; 0 when it did not."""
    for level, kind, value in said:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(value) >= 4:
            return int(struct.unpack_from("@i", value)[0])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(value) >= 20:
            return int(struct.unpack_from("@I", value, 16)[0])
    return 0


def voices(data: bytes, interface: str, source: str, seal: Seal | None, index: int = 0) -> list[Voice]:
    """Read the announcements in one packet from anybody; what is malformed gives none."""
    packet = DNSIncoming(data)
    if not packet.valid or packet.is_query():
        return []
    answers = packet.answers()
    texts = {one.key: one.text for one in answers if isinstance(one, DNSText)}
    found = []
    for service in (one for one in answers if isinstance(one, DNSService) and one.ttl > 0):
        if not service.key.endswith(SERVICE_TYPE):
            continue
        try:
            info = _info(service, texts.get(service.key, b""), answers, index)
            sighting, hint = read_sighting(info), read_hint(info, seal) if seal is not None else None
        except (Error, ValueError) as error:  # anybody may send anything
            log.debug("an announcement from %s is none: %s", source, error)
            continue
        if sighting is not None:
            found.append(Voice(interface, source, hint.peer if hint else None, sighting.addresses))
    return found


def _info(service: DNSService, text: bytes, answers: Sequence[DNSRecord], index: int) -> ServiceInfo:
    addresses = [one.address for one in answers if isinstance(one, DNSAddress) and one.key == service.server_key]
    properties: bytes | Mapping[str, str] = text or {}
    return ServiceInfo(
        SERVICE_TYPE,
        service.name,
        port=service.port,
        properties=properties,  # type: ignore[arg-type]  # it takes a dictionary or the bytes of one
        addresses=addresses,
        interface_index=index or None,
    )
