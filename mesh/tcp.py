"""TCP sockets and their addresses: listening, connecting, and moving bytes without a copy or a task of its own.

Addresses are libp2p multiaddrs as text (``/ip4/192.0.2.1/tcp/4001``, ``/ip6zone/eth0/ip6/fe80::1/tcp/4001``,
``/dns/name/tcp/4001``), with or without a ``/p2p/<peer id>`` at the end.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

from .errors import LinkError, UsageError

BACKLOG: Final = 128  # connections that the kernel holds for us; Linux's own default limit was this for decades
# What the kernel may hold of ours that is not yet on its way. trio's value (16 KiB) starves a writer of 512 KiB
# batches; more than a batch delays a small message behind a large one.
UNSENT_LOW_WATER: Final = 128 * 1024
_TEXT_BYTES_MAX: Final = 512  # of one address; DNS names have 253 at most


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens: a host (a literal address, perhaps with a zone, or a DNS name) and a TCP port."""

    host: str
    port: int
    family: socket.AddressFamily = socket.AF_UNSPEC

    def __str__(self) -> str:
        """As a multiaddr."""
        host, _, zone = self.host.partition("%")
        try:
            kind = f"ip{ipaddress.ip_address(host).version}"
        except ValueError:
            kind = {socket.AF_INET: "dns4", socket.AF_INET6: "dns6"}.get(self.family, "dns")
        prefix = f"/ip6zone/{zone}" if zone else ""
        return f"{prefix}/{kind}/{host}/tcp/{self.port}"


def parse_address(text: str) -> tuple[Address, str | None]:
    """Read a multiaddr: the address, and the peer id that it ends with. Raises UsageError when it is not TCP."""
    parts = text.split("/")
    try:
        if len(text) > _TEXT_BYTES_MAX or parts.pop(0):
            raise ValueError
        fields = dict(zip(parts[::2], parts[1::2], strict=True))
        kinds = [*fields]
        zone = fields.pop("ip6zone", "")
        peer_id = fields.pop("p2p", None)
        (kind, host), (_, port) = fields.items()
        if 2 * len(kinds) != len(parts) or [k for k in kinds if k in fields] != [kind, "tcp"]:
            raise ValueError
        return Address(_host(kind, host, zone), _port(port), _FAMILIES[kind]), peer_id
    except (ValueError, KeyError):
        msg = f"{text!r} is not an address that Lepton can dial; it looks like /ip4/192.0.2.1/tcp/4001."
        raise UsageError(msg) from None


_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
}


def parse_listen(text: str) -> Address:
    """Read where to listen: ``host:port``, ``[ipv6]:port`` or a multiaddr. Raises UsageError."""
    if text.startswith("/"):
        return parse_address(text)[0]
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
        return Address(host, _port(port), socket.AF_INET6 if version == 6 else socket.AF_INET)
    except ValueError:
        msg = f"{text!r} is no place to listen; it looks like 127.0.0.1:0, [::1]:4001 or /ip4/0.0.0.0/tcp/4001."
        raise UsageError(msg) from None


def parse_place(text: str) -> str:
    """Read where to dial as people write it: ``host:port``, ``[ipv6]:port`` or a multiaddr; returns a multiaddr.

    Raises UsageError.
    """
    try:
        if text.startswith("/"):
            parse_address(text)
            return text
        host, _, port = text.rpartition(":")
        if host.startswith("[") or host.replace(".", "").isdigit():
            return str(parse_listen(text))
        return str(parse_address(f"/dns/{_host('dns', host, '')}/tcp/{_port(port)}")[0])
    except (ValueError, UsageError):
        msg = (
            f"{text!r} is no address of a node; it looks like 192.0.2.1:4001, kitchen.local:4001 or [2001:db8::1]:4001."
        )
        raise UsageError(msg) from None


def _host(kind: str, host: str, zone: str) -> str:
    if kind.startswith("dns"):
        return host.encode("idna").decode() if host and ":" not in host else _fail()
    literal = ipaddress.ip_address(host)
    if f"ip{literal.version}" != kind or (zone and not literal.is_link_local):
        raise ValueError
    return f"{host}%{zone}" if zone else host


def _fail() -> str:
    raise ValueError


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError
    return int(text)


# linux/tcp.h, struct tcp_info: its length, and where tcpi_segs_out and tcpi_total_retrans are.
_TCP_INFO_BYTES, _SEGMENTS_OUT, _REPEATED = 256, 136, 100


class Socket:
    """A connected TCP socket that counts its bytes. One task reads and one writes."""

    def __init__(self, raw: socket.socket) -> None:
        raw.settimeout(0)
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, AttributeError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER)
        self._raw = raw
        self.bytes_sent = 0
        self.bytes_received = 0
        self.remote = _peer_name(raw)

    @property
    def segments(self) -> tuple[int, int] | None:
        """How many segments were sent, and how many of these again (Linux: tcp(7), TCP_INFO); None: not known."""
        try:
            told = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            return struct.unpack_from("@I", told, _SEGMENTS_OUT)[0], struct.unpack_from("@I", told, _REPEATED)[0]
        except (OSError, AttributeError, struct.error):
            return None

    def send_nowait(self, data: memoryview) -> int:
        """Give the kernel what it takes now, which may be nothing. Raises LinkError."""
        try:
            sent = self._raw.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise _lost(error) from error
        self.bytes_sent += sent
        return sent

    def receive_nowait(self, into: memoryview) -> int | None:
        """Take what has come: 0 at the end of the connection, None when nothing is here. Raises LinkError."""
        try:
            size = self._raw.recv_into(into)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise _lost(error) from error
        self.bytes_received += size
        return size

    async def writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._raw)
        except (OSError, trio.ClosedResourceError) as error:
            raise _lost(error) from error

    async def readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._raw)
        except (OSError, trio.ClosedResourceError) as error:
            raise _lost(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Raises LinkError. Cancelled, it may have sent a part: close the socket then."""
        left = memoryview(data)
        while left:
            left = left[self.send_nowait(left) :]
            if left:
                await self.writable()

    async def receive_some(self, size_bytes_max: int = 65536) -> bytes:
        """The next bytes. Raises LinkError, also at the end of the connection."""
        buffer = bytearray(size_bytes_max)
        while True:
            size = self.receive_nowait(memoryview(buffer))
            if size:
                return bytes(buffer[:size])
            if size == 0:
                msg = "The peer closed the connection during the handshake."
                raise LinkError(msg)
            await self.readable()

    def end(self) -> None:
        """Send FIN."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._raw.fileno() != -1:
            trio.lowlevel.notify_closing(self._raw)
            self._raw.close()


def _lost(error: Exception) -> LinkError:
    return LinkError(f"The connection broke: {_reason(error)}.")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _peer_name(raw: socket.socket) -> str:
    try:
        return str(_from_socket(raw.getpeername()))
    except OSError:
        return "unknown"


def _from_socket(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    host = name[0]
    if len(name) == 4 and name[3] and "%" not in host:
        host = f"{host}%{socket.if_indextoname(name[3])}"
    mapped = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(mapped, ipaddress.IPv6Address) and mapped.ipv4_mapped:
        host = str(mapped.ipv4_mapped)
    return Address(host, name[1])


async def connect(address: Address) -> Socket:
    """Connect to the first of the host's addresses that answers. Raises LinkError; bound it with a timeout."""
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, family=address.family, type=socket.SOCK_STREAM
        )
    except OSError as error:
        msg = f"The name {address.host} has no address: {error}."
        raise LinkError(msg) from error
    reason = "no address"
    for family, kind, protocol, _, where in found:
        raw = trio.socket.socket(family, kind, protocol)
        try:
            await raw.connect(where)
            return Socket(_detached(raw))
        except OSError as error:
            reason = _reason(error)
        finally:
            raw.close()
    raise LinkError(reason)


def _detached(raw: trio.socket.SocketType) -> socket.socket:
    return socket.socket(fileno=raw.detach())


class Listener:
    """One listening socket. A port is its own: no other process shares it by SO_REUSEPORT."""

    def __init__(self, address: Address) -> None:
        """Bind and listen. Raises UsageError, naming the port, when somebody else has it."""
        raw = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            if os.name != "nt":  # there the option would mean sharing; on POSIX it only skips TIME_WAIT
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.family == socket.AF_INET6:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            raw.bind(socket.getaddrinfo(address.host, address.port, address.family, socket.SOCK_STREAM)[0][4])
            raw.listen(BACKLOG)
        except OSError as error:
            raw.close()
            raise UsageError(_why_not(address, error)) from error
        raw.settimeout(0)
        self._raw = raw
        self.address = _from_socket(raw.getsockname())

    async def accept(self) -> Socket:
        """The next connection. Waits through the errors that pass, like too many open files."""
        while True:
            await trio.lowlevel.wait_readable(self._raw)
            try:
                return Socket(self._raw.accept()[0])
            except OSError as error:
                if error.errno in _SCARCE:
                    await trio.sleep(0.1)  # somebody will close a file; trio's serve_listeners waits the same

    def close(self) -> None:
        if self._raw.fileno() != -1:
            trio.lowlevel.notify_closing(self._raw)
            self._raw.close()


_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def _why_not(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {address.port} on {address.host} is taken by another program; choose another, or 0 for any."
    return f"Cannot listen on {address.host} port {address.port}: {_reason(error)}."
