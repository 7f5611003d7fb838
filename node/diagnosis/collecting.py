"""Collecting facts: from this machine, from what is heard on the network, and from the node if one runs here."""

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio

from ...mesh.admission import Admission
from ...mesh.errors import LeptonError, UsageError
from ...mesh.grants import GRANT_LIFETIME_S, authority_of, role_of
from ...mesh.identity import PeerId
from ...mesh.overhearing import ears, overhear
from ...mesh.revocations import Revocations
from ...mesh.tcp import parse_place
from ..config import Config, load_config
from ..control import Control, NoNode
from ..home import Home
from . import here
from .asking import Asked
from .facts import Ear, Facts, Hearing, Member, Peer, Place, Running, Voice
from .greeting import greet

LISTEN_S: Final = 3.0  # answers are held up by one second at most (RFC 6762, section 6), and a question may be lost


async def collect(home: Home, *, peer: str = "", at: str = "", listen_s: float = LISTEN_S) -> Facts:
    """Collect all facts. ``peer`` is one to measure the line to, ``at`` an address to dial; 0 s: do not listen.

    Raises UsageError for a peer or an address that is none; what is wrong with the folder is a fact.
    """
    place = parse_place(at) if at else ""
    member, config = _member(home)
    running, asked = await _running(home), list[Asked]()
    if running is None and peer:
        raise UsageError("The line to a peer is measured by a running node; start it with `lepton-node up`.")
    interfaces = running.interfaces if running is not None else config.interfaces

    async def ask() -> None:
        said, _ = await Control(home.path).ask("doctor", {"peer": peer, "at": at})
        asked.append(msgspec.convert(said, Asked))

    async with trio.open_nursery() as nursery:
        if running is not None:
            nursery.start_soon(ask)
        hearing = await _hear(member, interfaces, home, listen_s)
    facts = Facts(
        taken_at_s=time.time(),
        home=str(home.path),
        member=member,
        machine=await trio.to_thread.run_sync(here.machine, home.path),
        interfaces=here.interfaces(),
        chosen=interfaces,
        hearing=hearing,
        walls=here.walls(),
    )
    if asked:
        return msgspec.structs.replace(facts, running=running, peers=asked[0].peers, places=asked[0].places)
    peers, places = await _alone(home, member, hearing, place)
    ports = await trio.to_thread.run_sync(here.ports, config)
    return msgspec.structs.replace(facts, ports=ports, peers=peers, places=places)


def _member(home: Home) -> tuple[Member, Config]:
    """Read the folder, without making or changing anything in it."""
    config = Config()
    try:
        config = load_config(home.path / "node.toml")
        if not home.in_mesh:
            return Member(), config
        held, me = home.credentials(), home.identity().peer_id
        own = authority_of(held.chain, root=held.root, subject=me, now=0.0)
        root_key_here = home.root() is not None
        return Member(
            mesh=held.mesh_name,
            me=me,
            role=role_of(own.capabilities),
            expires=own.expires,
            grant_life_s=GRANT_LIFETIME_S,
            root_key_here=root_key_here,
            out=Revocations(held.root, home.revocations()).why_not(held.chain),
        ), config
    except LeptonError as error:
        return Member(trouble=str(error)), config


async def _running(home: Home) -> Running | None:
    try:
        said, _ = await Control(home.path).ask("doctor", {"brief": True})
    except NoNode:
        return None
    return msgspec.convert(said, Running)


async def _hear(member: Member, interfaces: tuple[str, ...], home: Home, listen_s: float) -> Hearing:
    if not listen_s:
        return Hearing()
    root = home.credentials().root if member.mesh else None
    heard = await overhear(root, ears(interfaces), listen_s)
    return Hearing(
        seconds=listen_s,
        ears=tuple(
            Ear(interface=ear.name, echoed=ear.name in heard.echoes, trouble=heard.troubles.get(ear.name, ""))
            for ear in heard.ears
        ),
        voices=tuple(
            Voice(interface=one.interface, source=one.source, peer=one.peer or "", addresses=one.addresses)
            for one in heard.voices
        ),
    )


# -- where no node runs ------------------------------------------------------------------------------------------------


async def _alone(home: Home, member: Member, hearing: Hearing, at: str) -> tuple[tuple[Peer, ...], tuple[Place, ...]]:
    """Return those who were members when the node last ran, and what comes of greeting those heard now."""
    if not member.mesh or member.trouble:
        return (), (Place(address=at, trouble="Only a member is let in; join first."),) if at else ()
    known = {PeerId(its.peer): its for its in home.members() if its.peer != member.me}
    devices = {peer: its.device for peer, its in known.items()}
    try:
        admission = Admission(home.credentials(), home.identity().peer_id, time.time(), home.revocations())
    except LeptonError:  # thrown out, or expired: the rules on this device say it
        return (), ()
    greeted, places = await greet(home.identity(), admission, _heard(hearing, member.me), at, devices)
    absent = [
        Peer(id=peer, device=its.device, revoked=admission.revocations.why(peer))
        for peer, its in sorted(known.items())
        if peer not in {one.id for one in greeted}
    ]
    return (*greeted, *absent), places


def _heard(hearing: Hearing, me: str) -> Mapping[str, list[str]]:
    found = dict[str, Any]()
    for voice in hearing.voices:
        if voice.peer and voice.peer != me:
            mine = found.setdefault(voice.peer, [])
            mine += [address for address in voice.addresses if address not in mine]
    return found
