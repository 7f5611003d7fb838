"""How members find each other where mDNS does not reach: addresses that the user gave, and those that members publish.

Every member states where it can be dialled, in a record that spreads like any other. So one address of one member is
enough to meet all. When the machine moves to another network or wakes up, it says so anew, has its connections probed,
and begins its dials without old pauses.
"""

import ipaddress
import logging
import random
from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from . import limits, membership, surroundings
from .bootstrap import Bootstrap, Place
from .discovery import local_addresses, multiaddress
from .errors import LeptonError, PeerError
from .identity import PeerId, short
from .messages import Message
from .protocol import ADDRESS, Whereabouts
from .records import RecordStore
from .tcp import parse_address, parse_place
from .transport import Transport

_SETTLE_S: Final = 0.2  # records come in bursts; an address that is read so much later is still in time

log = logging.getLogger(__name__)


def reachable_at(listening: Sequence[str], ips: Sequence[str]) -> tuple[str, ...]:
    """Return the multiaddrs at which others reach a node that listens on these and whose machine has these addresses.

    Link-local addresses mean something only to who is on the same link, and mDNS tells those.
    """
    found = []
    for text in listening:
        place, _ = parse_address(text)
        host = ipaddress.ip_address(place.host.partition("%")[0])
        here = (
            [ip for ip in ips if ipaddress.ip_address(ip).version == host.version]
            if host.is_unspecified
            else [place.host]
        )
        found += [multiaddress(ip, place.port) for ip in here if not ipaddress.ip_address(ip).is_link_local]
    return tuple(dict.fromkeys(found))[: limits.HINTED_ADDRESSES_MAX]


class Finding:
    """One node's search for the others, beside mDNS."""

    def __init__(
        self,
        addresses: Sequence[str],
        interfaces: Sequence[str],
        store: RecordStore,
        pace: membership.Config,
        rng: random.Random,
        *,
        note: Callable[[membership.Event], None],
        publish: Callable[[str, str, Message], object],
        present: Callable[[], Collection[PeerId]],
        changed: Callable[[], trio.Event],
    ) -> None:
        """``note`` tells membership, ``publish`` makes a record. Raises UsageError for an address that is none."""
        self._bootstrap = Bootstrap(rng, pace)
        self._bootstrap.add(map(parse_place, addresses))
        self._interfaces = tuple(interfaces)
        self._store = store
        self._note, self._publish, self._present, self._changed = note, publish, present, changed
        self._said: tuple[str, ...] = ()
        self._transport: Transport

    @property
    def places(self) -> list[Place]:
        """The addresses that the user gave, and what came of each."""
        return list(self._bootstrap.places.values())

    async def run(self, transport: Transport) -> None:
        """Search for as long as the node runs."""
        self._transport = transport
        self._say()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(surroundings.watch, self._moved, self._ips)
            nursery.start_soon(self._read)
            if self._bootstrap.places:
                nursery.start_soon(self._look, nursery)

    # -- one's own addresses ------------------------------------------------------------------------------------------

    def _ips(self) -> tuple[str, ...]:
        return self._interfaces or local_addresses()

    def _say(self) -> None:
        """State where this node can be dialled now."""
        addresses = reachable_at(self._transport.addresses, self._ips())
        if addresses != self._said:
            self._said = addresses
            self._publish(ADDRESS, "self", Whereabouts(addresses=addresses))

    def _moved(self, what: str) -> None:
        log.info("looking at all connections anew: %s", what)
        self._say()
        self._bootstrap.afresh(trio.current_time())
        self._note(membership.Unsettled())

    # -- the others' addresses ----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Follow what members say of where they are."""
        read: dict[PeerId, object] = {}
        while True:
            changed = self._changed()
            for record in self._store.live(ADDRESS, self._store.owners()):
                if read.get(record.owner) != record.version:
                    read[record.owner] = record.version
                    try:
                        addresses = record.value(Whereabouts).addresses
                    except PeerError as error:
                        log.warning("%s published a bad %s record: %s", short(record.owner), ADDRESS, error)
                        continue
                    self._note(membership.Hinted(record.owner, addresses, signed=True))
            await trio.sleep(_SETTLE_S)
            await changed.wait()

    # -- addresses that the user gave ---------------------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        while True:
            for address in self._bootstrap.due(self._present(), trio.current_time()):
                nursery.start_soon(self._dial, address)
            await trio.sleep_until(self._bootstrap.deadline)

    async def _dial(self, address: str) -> None:
        try:
            connection = await self._transport.dial_whoever([address], timeout_s=limits.DIAL_TIMEOUT_S)
        except LeptonError as error:
            log.info("nobody of this mesh at %s: %s", address, error)
            self._bootstrap.failed(address, str(error), trio.current_time())
            return
        self._bootstrap.met(address, connection.peer_id)
        self._note(membership.Hinted(connection.peer_id, (address,)))
