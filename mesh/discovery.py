"""mDNS: who of this mesh is on the local network. Hints only; whether a peer is alive is for connections to say.

zeroconf runs on its own asyncio thread; what it hears crosses into trio through one bounded channel. An announcement
(`announcements.py`) lasts minutes: then the node appears under another name, and only after that its old name goes.
A stranger that wants to join cannot read announcements; it sees that somebody of Lepton is at these addresses.
"""

import asyncio
import ipaddress
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import ifaddr
import trio
import zeroconf as mdns
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from . import surroundings
from .announcements import NONCE_BYTES, Seal
from .errors import LinkError, UsageError
from .identity import PeerId
from .tcp import parse_address

SERVICE_TYPE = "_lepton._tcp.local."
LIFETIME_S: Final = 300.0  # of an announcement's names, on average; who listens for longer follows the address anyway
_HINTS_MAX = 256  # waiting hints; a flood on the LAN drops the newest, and the next announcement repeats them
_RESOLVE_TIMEOUT_MS = 2000
_REGISTER_TIMEOUT_S = 10.0  # it takes a millisecond on a thread of its own
_STOP_TIMEOUT_S = 3.0
_SEALED: Final = b"s"

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hint:
    """Somebody of the mesh may be listening at these multiaddresses."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """Some node of some mesh may be listening at these multiaddresses."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """Who announces itself, and the multiaddresses on which it listens."""

    peer: PeerId
    listening: tuple[str, ...]

    def at(self, ips: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """Return the first port that it listens on, and those of these addresses on which that one is open."""
        places = [parse_address(text)[0] for text in self.listening]
        port = places[0].port
        hosts = {place.host.partition("%")[0] for place in places if place.port == port}
        every = {4: "0.0.0.0" in hosts, 6: "::" in hosts}  # noqa: S104 - reads where we listen
        return port, tuple(ip for ip in ips if ip in hosts or every[ipaddress.ip_address(ip).version])


def local_addresses() -> tuple[str, ...]:
    """Return every IP address of this machine but loopback's. Those of one link come without a zone: it is for whoever
    hears them to say through which interface that link is reached.
    """
    every = (ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips)
    found = (ip if isinstance(ip, str) else ip[0] for ip in every)
    return tuple(text for text in found if not ipaddress.ip_address(text).is_loopback)


@asynccontextmanager
async def open_discovery(
    mesh: PeerId, *, interfaces: Sequence[str] = (), announce: Announcement | None = None
) -> AsyncIterator[trio.MemoryReceiveChannel[Hint]]:
    """Announce (if asked) and listen; yields the channel of hints. Empty ``interfaces`` means all.

    Raises UsageError when an interface does not exist, LinkError when the network gives no multicast.
    """
    seal = Seal(mesh)
    async with _listening(interfaces, lambda info: read_hint(info, seal)) as (zeroconf, hints):
        if announce is None:
            yield hints
            return
        announcer = _Announcer(zeroconf, seal, announce, tuple(interfaces))
        await announcer.renew()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            try:
                yield hints
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_TIMEOUT_S):
                    await announcer.withdraw()


@asynccontextmanager
async def open_search(*, interfaces: Sequence[str] = ()) -> AsyncIterator[trio.MemoryReceiveChannel[Sighting]]:
    """Listen for nodes of any mesh, and announce nothing. Raises as ``open_discovery`` does."""
    async with _listening(interfaces, read_sighting) as (_, sightings):
        yield sightings


@asynccontextmanager
async def _listening(
    interfaces: Sequence[str], read: Callable[[ServiceInfo], T | None]
) -> AsyncIterator[tuple[Zeroconf, trio.MemoryReceiveChannel[T]]]:
    send, receive = trio.open_memory_channel[T](_HINTS_MAX)
    zeroconf = await trio.to_thread.run_sync(_start, interfaces)
    try:
        browser = await trio.to_thread.run_sync(_browse, zeroconf, read, send, trio.lowlevel.current_trio_token())
        try:
            yield zeroconf, receive
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_TIMEOUT_S):
                await trio.to_thread.run_sync(browser.cancel, abandon_on_cancel=True)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_TIMEOUT_S):
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


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


# -- listening ---------------------------------------------------------------------------------------------------------


def _browse(
    zeroconf: Zeroconf,
    read: Callable[[ServiceInfo], T | None],
    send: trio.MemorySendChannel[T],
    token: trio.lowlevel.TrioToken,
) -> ServiceBrowser:
    def deliver(heard: T) -> None:
        try:
            send.send_nowait(heard)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a hint was dropped: %s", heard)

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and zeroconf.loop is not None:
            asyncio.run_coroutine_threadsafe(resolve(ServiceInfo(service_type, name)), zeroconf.loop)

    async def resolve(info: ServiceInfo) -> None:
        if not info.load_from_cache(zeroconf) and not await info.async_request(zeroconf, _RESOLVE_TIMEOUT_MS):
            return
        if (heard := read(info)) is not None:
            try:
                token.run_sync_soon(deliver, heard)
            except trio.RunFinishedError:
                log.debug("a hint came after the end")

    return ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[changed])


def read_hint(info: ServiceInfo, seal: Seal) -> Hint | None:
    """Read an announcement by anybody on the network; what is of another mesh or malformed gives None."""
    sighting = read_sighting(info)
    peer = seal.open(info.properties.get(_SEALED) or b"", info.port or 0)
    return None if sighting is None or peer is None else Hint(peer, sighting.addresses)


def read_sighting(info: ServiceInfo) -> Sighting | None:
    """Read where an announcement says that somebody is, whoever it may be."""
    if not info.port:
        return None
    heard = info.parsed_scoped_addresses()
    addresses = tuple(multiaddress(ip, info.port) for ip in heard if _can_be_dialled(ip))
    return Sighting(addresses) if addresses else None


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


# -- announcing --------------------------------------------------------------------------------------------------------


class _Announcer:
    """Keeps one node announced, under a name that changes with time and with the node's addresses."""

    def __init__(self, zeroconf: Zeroconf, seal: Seal, said: Announcement, interfaces: tuple[str, ...]) -> None:
        self._zeroconf = zeroconf
        self._seal = seal
        self._said = said
        self._interfaces = interfaces
        self._shown: ServiceInfo | None = None

    async def run(self) -> None:
        moved = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(surroundings.watch, lambda _what: moved.set(), self._here)
            while True:
                with trio.move_on_after(LIFETIME_S * secrets.SystemRandom().uniform(0.5, 1.5)):
                    await moved.wait()
                if moved.is_set():  # perhaps to another network, where the name seen in the last one must not appear
                    moved = trio.Event()
                    await self.withdraw()
                    await self._in_thread(self._zeroconf.update_interfaces)
                await self.renew()

    def _here(self) -> tuple[str, ...]:
        return self._interfaces or local_addresses()

    async def renew(self) -> None:
        """Appear under a new name, and then give up the old one."""
        old, self._shown = self._shown, self._fresh(self._here())
        if self._shown is not None:
            await self._in_thread(_register, self._zeroconf, self._shown)
        if old is not None:
            await self._in_thread(self._zeroconf.unregister_service, old)

    async def withdraw(self) -> None:
        """Take back what is announced."""
        old, self._shown = self._shown, None
        if old is not None:
            await self._in_thread(self._zeroconf.unregister_service, old)

    def _fresh(self, ips: Sequence[str]) -> ServiceInfo | None:
        """Draw all names anew; nothing to announce without an address."""
        port, addresses = self._said.at(ips)
        if not addresses:
            return None
        return ServiceInfo(
            SERVICE_TYPE,
            f"{secrets.token_hex(8)}.{SERVICE_TYPE}",
            port=port,
            properties={_SEALED: self._seal.close(self._said.peer, port, secrets.token_bytes(NONCE_BYTES))},
            server=f"{secrets.token_hex(8)}.local.",
            parsed_addresses=list(addresses),
        )

    @staticmethod
    async def _in_thread(work: Callable[..., object], *args: object) -> None:
        try:
            await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True)
        except (OSError, TimeoutError, mdns.Error) as error:
            log.warning("mDNS: %s; other nodes may not see this one until its next announcement.", error)


def _register(zeroconf: Zeroconf, info: ServiceInfo) -> None:
    """Say it and answer whoever asks from now on. RFC 6762, section 8.1: who knows that nobody else has a name, as with
    64 random bits, should not probe for it first; and nobody waits here for the repetitions of it. Saves 1.6 s.
    """
    assert zeroconf.loop is not None
    said = zeroconf.async_register_service(info, cooperating_responders=True)
    asyncio.run_coroutine_threadsafe(said, zeroconf.loop).result(_REGISTER_TIMEOUT_S)
