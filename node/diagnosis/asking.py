"""What a running node adds to a diagnosis: whom it knows, what they answer, and what came of its dials."""

import time
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import trio

from ...mesh.calls import Empty
from ...mesh.errors import LeptonError, LinkError, UsageError
from ...mesh.grants import read_grant
from ...mesh.identity import PeerId, short
from ...mesh.tcp import parse_place
from ..authority import devices_of
from .checkup import (
    CHECKUP,
    SAMPLE,
    SAMPLE_BODY_BYTES_MAX,
    SAMPLE_BYTES_MAX,
    Ask,
    Sample,
    Seen,
    ports_at,
    try_address,
)
from .facts import Fact, Peer, Place, Running, Try
from .places import host_of

if TYPE_CHECKING:
    from ..node import Node

PEERS_MAX: Final = 64  # that a diagnosis asks or tries; a larger mesh has too many to read about
TRIED_MAX: Final = 4  # addresses of one absent peer
_AT_ONCE: Final = 8
_ANSWER_S: Final = 8.0  # two dials back are in it
_TRY_S: Final = 2.0
_FIRST_BYTES: Final = 256 * 1024  # how slow a line is shows in these; 4 MiB would take minutes at 1 Mbit/s
_QUICK_S: Final = 1.0  # a line that takes the first bytes in this is given more
_SAMPLE_S: Final = 30.0


class Asked(Fact, frozen=True, kw_only=True):
    """What the node says."""

    peers: tuple[Peer, ...]
    places: tuple[Place, ...]


def introduced(node: "Node") -> dict[str, Any]:
    """Return `Running` as plain data, at once."""
    web = node.web.url if node.web else ""
    listening, interfaces = tuple(node.mesh.addresses), node.config.interfaces
    said = Running(device=node.device, listening=listening, interfaces=interfaces, web=web)
    return dict(msgspec.to_builtins(said))


async def examine(node: "Node", *, peer: str = "", at: str = "") -> dict[str, Any]:
    """Return `Asked` as plain data. ``peer`` names one to which the line is measured, ``at`` an address to dial.

    Takes as long as absent peers do not answer. Raises UsageError for a name or an address that is none.
    """
    place = parse_place(at) if at else ""
    known = _known(node)
    chosen = _named(peer, known) if peer else ""
    kept = [one for one in node.mesh.finding.places if one.address != place]
    named = [_place(node, one.address, one.peer or "", one.trouble) for one in kept]
    if place:
        named.append(await _met(node, place))
    peers = await _each([one for one in known if one.id != chosen], lambda one: _look(node, one))
    if chosen:  # alone: others' answers would share its line
        look = await _look(node, next(one for one in known if one.id == chosen))
        peers.append(await _measured(node, look))
    said = Asked(
        peers=tuple(sorted(peers, key=lambda one: (one.device, one.id))),
        places=tuple(await _each(named, _tried_place)),
    )
    return dict(msgspec.to_builtins(said))


def _known(node: "Node") -> list[Peer]:
    """Everybody of whom this node knows anything, those first of whom there is most to say."""
    mesh = node.mesh
    devices, chains, where = devices_of(node.home, mesh), mesh.admission.members(), mesh.whereabouts()
    ids = {*chains, *where, *mesh.present, *mesh.refusals, *mesh.admission.revocations.counting} - {mesh.me}
    round_trips = mesh.probing.round_trips_s
    found = [
        Peer(
            id=one,
            device=devices.get(one, short(one)),
            here=one in mesh.present,
            connected=one in mesh.connected,
            addresses=where.get(one, ()),
            expires=min((read_grant(grant).expires for grant in chains.get(one, ())), default=None),
            revoked=mesh.admission.revocations.why(one),
            trouble=mesh.dial_troubles.get(one, ""),
            refusal=mesh.refusals.get(one, ""),
            round_trip_ms=1000 * round_trips[one] if one in round_trips else None,
        )
        for one in sorted(ids)
    ]
    found.sort(key=lambda one: (not one.connected, not one.here, not one.refusal, not one.trouble))
    return found[:PEERS_MAX]


def _named(text: str, known: Collection[Peer]) -> str:
    found = [one.id for one in known if text in {one.id, one.device} or short(one.id).startswith(text)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(one.device for one in known)) or "none yet"
    raise UsageError(f"{text!r} names {len(found) or 'no'} peers of this node; it knows {names}.")


async def _each(items: Collection[Any], look: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    limit, found = trio.CapacityLimiter(_AT_ONCE), list[Any]()

    async def one(item: object) -> None:
        async with limit:
            found.append(await look(item))

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)
    return found


# -- one peer ----------------------------------------------------------------------------------------------------------


async def _look(node: "Node", peer: Peer) -> Peer:
    """Ask one that is connected, and try the addresses of one that is not here."""
    if peer.connected:
        return await _asked(node, peer)
    if peer.here or peer.revoked:
        return peer
    tries = [await try_address(address, _TRY_S) for address in peer.addresses[:TRIED_MAX]]
    return msgspec.structs.replace(peer, tries=tuple(tries))


async def _asked(node: "Node", peer: Peer) -> Peer:
    mesh = node.mesh
    connection = mesh.connection(PeerId(peer.id))
    at = "" if connection is None else str(connection.remote_address)
    segments = None if connection is None else connection.segments
    peer = msgspec.structs.replace(
        peer, at=at, segments_sent=segments[0] if segments else None, segments_repeated=segments[1] if segments else 0
    )
    ports = ports_at(tuple(mesh.addresses), host_of(at))
    began, before = time.time(), trio.current_time()
    try:
        # The first takes the way alone, so that the clocks' difference is known to half a round trip.
        seen = (await mesh.calls.call(PeerId(peer.id), CHECKUP, Ask(), Seen, timeout_s=_ANSWER_S)).message
        took_s = trio.current_time() - before
        back = (await mesh.calls.call(PeerId(peer.id), CHECKUP, Ask(ports=ports), Seen, timeout_s=_ANSWER_S)).message
    except LeptonError as error:
        return msgspec.structs.replace(peer, answer_trouble=str(error))
    best_ms = min(1000 * took_s, peer.round_trip_ms or 1000 * took_s)
    tries = [
        Try(address=f"{host_of(back.seen_at)} port {port}", outcome=outcome)
        for port, outcome in zip(ports, back.outcomes, strict=False)
    ]
    return msgspec.structs.replace(
        peer,
        round_trip_ms=round(best_ms, 3),
        skew_s=round(seen.unix_s - (began + took_s / 2), 3),
        skew_error_s=round(took_s / 2, 3),
        release=seen.release,
        dial_back=tuple(tries),
    )


async def measure_line(node: "Node", peer: str) -> tuple[float, float]:
    """Return what the line to a peer carries from there and to there, in bytes per second, and keep it for the page.

    Raises UsageError for nobody who is known, LinkError for one who is not connected or does not take part.
    """
    known = next((one for one in _known(node) if one.id == peer), None)
    if known is None:
        raise UsageError(f"No device with the id {peer[:64]} is here; `lepton-node status` lists those that are.")
    found = await _measured(node, known)
    if found.down_bytes_s is None or found.up_bytes_s is None:
        raise LinkError(found.measure_trouble)
    return found.down_bytes_s, found.up_bytes_s


async def _measured(node: "Node", peer: Peer) -> Peer:
    """Measure the line to a peer both ways."""
    if not peer.connected:
        return msgspec.structs.replace(peer, measure_trouble=f"{peer.device} is not connected to this device.")
    rtt_s = (peer.round_trip_ms or 0.0) / 1000
    try:
        down = await _rate(lambda size: _pull(node, peer.id, size), rtt_s)
        up = await _rate(lambda size: _push(node, peer.id, size), rtt_s)
    except LeptonError as error:
        return msgspec.structs.replace(peer, measure_trouble=str(error))
    node.seeing.lines[PeerId(peer.id)] = round(down), round(up)
    return msgspec.structs.replace(peer, down_bytes_s=round(down), up_bytes_s=round(up))


async def _rate(move: Callable[[int], Awaitable[None]], rtt_s: float) -> float:
    """Return bytes per second of the largest piece that the line was given."""
    size, took_s = _FIRST_BYTES, await _timed(move, _FIRST_BYTES)
    if took_s < _QUICK_S:
        size, took_s = SAMPLE_BYTES_MAX, await _timed(move, SAMPLE_BYTES_MAX)
    return size / max(took_s - rtt_s, took_s / 10, 1e-6)


async def _timed(move: Callable[[int], Awaitable[None]], size: int) -> float:
    began = trio.current_time()
    await move(size)
    return trio.current_time() - began


async def _pull(node: "Node", peer: str, size: int) -> None:
    await node.mesh.calls.call(
        PeerId(peer),
        SAMPLE,
        Sample(wanted_bytes=size),
        Empty,
        timeout_s=_SAMPLE_S,
        answer_bytes_max=SAMPLE_BODY_BYTES_MAX,
    )


async def _push(node: "Node", peer: str, size: int) -> None:
    await node.mesh.calls.call(
        PeerId(peer), SAMPLE, Sample(), Empty, arrays=[np.zeros(size, np.uint8)], timeout_s=_SAMPLE_S
    )


# -- addresses that the owner named ------------------------------------------------------------------------------------


def _place(node: "Node", address: str, peer: str, trouble: str) -> Place:
    return Place(address=address, peer=peer if peer in node.mesh.present else "", trouble=trouble)


async def _met(node: "Node", address: str) -> Place:
    try:
        return Place(address=address, peer=await node.mesh.meet(address))
    except LeptonError as error:
        return Place(address=address, trouble=str(error))


async def _tried_place(place: Place) -> Place:
    if place.peer or not (place.trouble or place.address):
        return place
    return msgspec.structs.replace(place, tries=(await try_address(place.address, _TRY_S),))
