"""Greeting members without running a node: whether they would let this device in, and if not, why."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import trio

from ...mesh.admission import Admission
from ...mesh.door import Door
from ...mesh.errors import LeptonError, PeerError, Refused
from ...mesh.identity import Identity, PeerId, short
from ...mesh.invites import InviteBook
from ...mesh.transport import Transport, open_transport
from .asking import TRIED_MAX
from .checkup import try_address
from .facts import Peer, Place

GREETED_MAX: Final = 8  # of those heard: the rest fares alike
_TIMEOUT_S: Final = 5.0
_TRY_S: Final = 2.0


async def greet(
    identity: Identity,
    admission: Admission,
    heard: Mapping[str, Sequence[str]],
    at: str,
    devices: Mapping[PeerId, str],
) -> tuple[tuple[Peer, ...], tuple[Place, ...]]:
    """Dial those heard, and an address, as this device's node would; hang up at once. Nothing is served meanwhile."""
    door = Door(identity, admission, InviteBook())
    peers, places = [], []
    async with open_transport(identity, (), on_connection=door.pass_through, handlers={}) as transport:
        for peer, addresses in sorted(heard.items())[:GREETED_MAX]:
            found = await _dial(transport, peer, addresses)
            device = devices.get(PeerId(peer), short(peer))
            peers.append(msgspec.structs.replace(found, device=device))
        if at:
            places.append(await _meet(transport, at))
    return tuple(peers), tuple(places)


async def _dial(transport: Transport, peer: str, addresses: Sequence[str]) -> Peer:
    known = Peer(id=peer, addresses=tuple(addresses))
    began = trio.current_time()
    try:
        connection = await transport.dial(PeerId(peer), addresses, timeout_s=_TIMEOUT_S)
    except (Refused, PeerError) as error:
        return msgspec.structs.replace(known, refusal=str(error))
    except LeptonError as error:
        tries = [await try_address(address, _TRY_S) for address in addresses[:TRIED_MAX]]
        return msgspec.structs.replace(known, trouble=str(error), tries=tuple(tries))
    took_ms = 1000 * (trio.current_time() - began)
    with trio.move_on_after(_TRY_S):
        took_ms = 1000 * await connection.ping()
    at = str(connection.remote_address)
    return msgspec.structs.replace(known, here=True, connected=True, at=at, round_trip_ms=round(took_ms, 3))


async def _meet(transport: Transport, address: str) -> Place:
    try:
        connection = await transport.dial_whoever([address], timeout_s=_TIMEOUT_S)
    except LeptonError as error:
        return Place(address=address, trouble=str(error), tries=(await try_address(address, _TRY_S),))
    return Place(address=address, peer=connection.peer_id)
