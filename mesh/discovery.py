"""mDNS: who of this mesh is on the local network. Hints only; whether a peer is alive is for connections to say.

zeroconf runs on its own asyncio thread; what it hears crosses into trio through one bounded channel. An announcement
says a random instance name, the mesh's tag, the peer id and a port, and nothing of what the node does.
"""

import asyncio
import hashlib
import ipaddress
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import ifaddr
import trio
from zeroconf import (
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)

from .errors import LinkError, PeerError, UsageError
from .identity import PeerId, public_key_of
from .tcp import parse_address

SERVICE_TYPE = "_lepton._tcp.local."
_HINTS_MAX = 256  # waiting hints; a flood on the LAN drops the newest, and the next announcement repeats them
_RESOLVE_TIMEOUT_MS = 2000
_REGISTER_TIMEOUT_S = 10.0  # it takes a millisecond on a thread of its own
_TAG_BYTES = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hint:
    """Somebody of the mesh may be listening at these multiaddresses."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself."""

    peer: PeerId
    port: int
    addresses: tuple[str, ...]  # IP addresses, none of them a wildcard


def tag_of(mesh: PeerId) -> str:
    """Name a mesh on the network without telling its root key."""
    return hashlib.blake2b(b"lepton/mdns\x00" + mesh.encode(), digest_size=_TAG_BYTES).hexdigest()


def local_addresses() -> tuple[str, ...]:
    """Return every IP address of this machine but loopback's. Those of one link come without a zone: it is for whoever
    hears them to say through which interface that link is reached.
    """
    every = (ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips)
    found = (ip if isinstance(ip, str) else ip[0] for ip in every)
    return tuple(text for text in found if not ipaddress.ip_address(text).is_loopback)


def announcement(me: PeerId, listening: Sequence[str], ips: Sequence[str]) -> Announcement:
    """Say the first port that this node listens on, and those of these addresses on which it is open."""
    places = [parse_address(text)[0] for text in listening]
    port = places[0].port
    hosts = {place.host.partition("%")[0] for place in places if place.port == port}
    every = {4: "0.0.0.0" in hosts, 6: "::" in hosts}  # noqa: S104 - reads where we listen
    return Announcement(me, port, tuple(ip for ip in ips if ip in hosts or every[ipaddress.ip_address(ip).version]))


@asynccontextmanager
async def open_discovery(
    mesh: PeerId, *, interfaces: Sequence[str] = (), announce: Announcement | None = None
) -> AsyncIterator[trio.MemoryReceiveChannel[Hint]]:
    """Announce (if asked) and listen; yields the channel of hints. Empty ``interfaces`` means all.

    Raises UsageError when an interface does not exist, LinkError when the network gives no multicast.
    """
    send, receive = trio.open_memory_channel[Hint](_HINTS_MAX)
    zeroconf = await trio.to_thread.run_sync(_start, interfaces)
    try:
        browser = await trio.to_thread.run_sync(
            _browse, zeroconf, tag_of(mesh), send, trio.lowlevel.current_trio_token()
        )
        info = await _announce(zeroconf, mesh, announce) if announce is not None else None
        try:
            yield receive
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3.0):
                await trio.to_thread.run_sync(_stop, zeroconf, browser, info, abandon_on_cancel=True)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 3.0):
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)
        raise


def _start(interfaces: Sequence[str]) -> Zeroconf:
    try:
        if not interfaces:
            return Zeroconf(
                interfaces=InterfaceChoice.All, ip_version=IPVersion.All if socket.has_ipv6 else IPVersion.V4Only
            )
        for address in interfaces:  # before Zeroconf does, which leaves sockets open when one is wrong
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
        return Zeroconf(interfaces=list(interfaces))
    except (OSError, RuntimeError) as error:
        if interfaces:
            named = ", ".join(interfaces)
            msg = f"Cannot use the interface {named} for discovery: {error}. Name one of this machine's addresses."
            raise UsageError(msg) from error
        msg = f"This machine gives no multicast, so peers cannot be found by mDNS: {error}."
        raise LinkError(msg) from error


def _browse(
    zeroconf: Zeroconf, tag: str, send: trio.MemorySendChannel[Hint], token: trio.lowlevel.TrioToken
) -> ServiceBrowser:
    def deliver(hint: Hint) -> None:
        try:
            send.send_nowait(hint)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a hint of %s was dropped", hint.peer)

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and zeroconf.loop is not None:
            asyncio.run_coroutine_threadsafe(resolve(ServiceInfo(service_type, name)), zeroconf.loop)

    async def resolve(info: ServiceInfo) -> None:
        if not info.load_from_cache(zeroconf) and not await info.async_request(zeroconf, _RESOLVE_TIMEOUT_MS):
            return
        if (hint := read_hint(info, tag)) is not None:
            try:
                token.run_sync_soon(deliver, hint)
            except trio.RunFinishedError:
                log.debug("a hint came after the end")

    return ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[changed])


def read_hint(info: ServiceInfo, tag: str) -> Hint | None:
    """Read an announcement by anybody on the network; what is of another mesh or malformed gives None."""
    said = {key: value for key, value in info.properties.items() if value is not None}
    if said.get(b"m") != tag.encode() or not info.port:
        return None
    try:
        peer = said.get(b"p", b"").decode("ascii")
        public_key_of(peer)
    except (UnicodeDecodeError, PeerError):
        return None
    heard = info.parsed_scoped_addresses()
    addresses = tuple(multiaddress(ip, info.port) for ip in heard if _can_be_dialled(ip))
    return Hint(PeerId(peer), addresses) if addresses else None


def _can_be_dialled(ip: str) -> bool:
    """Whether a link-local IPv6 address says on which link: one that was heard over IPv4 does not."""
    address = ipaddress.ip_address(ip)
    return not isinstance(address, ipaddress.IPv6Address) or not address.is_link_local or address.scope_id is not None


def multiaddress(ip: str, port: int) -> str:
    """Write an IP address, which may carry a zone, and a TCP port as a multiaddress."""
    if ":" not in ip:
        return f"/ip4/{ip}/tcp/{port}"
    address, _, zone = ip.partition("%")
    return f"/ip6zone/{zone}/ip6/{address}/tcp/{port}" if zone else f"/ip6/{address}/tcp/{port}"


async def _announce(zeroconf: Zeroconf, mesh: PeerId, said: Announcement) -> ServiceInfo:
    instance = secrets.token_hex(8)
    info = ServiceInfo(
        SERVICE_TYPE,
        f"{instance}.{SERVICE_TYPE}",
        port=said.port,
        properties={"v": "1", "m": tag_of(mesh), "p": said.peer},
        server=f"{instance}.local.",
        parsed_addresses=list(said.addresses),
    )
    await trio.to_thread.run_sync(_register, zeroconf, info)
    return info


def _register(zeroconf: Zeroconf, info: ServiceInfo) -> None:
    """Say it and answer whoever asks from now on. RFC 6762, section 8.1: who knows that nobody else has a name, as with
    64 random bits, should not probe for it first; and nobody waits here for the repetitions of it. Saves 1.6 s.
    """
    assert zeroconf.loop is not None
    said = zeroconf.async_register_service(info, cooperating_responders=True)
    asyncio.run_coroutine_threadsafe(said, zeroconf.loop).result(_REGISTER_TIMEOUT_S)


def _stop(zeroconf: Zeroconf, browser: ServiceBrowser, info: ServiceInfo | None) -> None:
    browser.cancel()
    if info is not None:
        zeroconf.unregister_service(info)
    zeroconf.close()
