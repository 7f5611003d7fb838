"""Rules about discovery: which interface hears whom, and what keeps multicast from passing. Pure."""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Final

from .facts import Ear, Facts, Interface, Voice
from .findings import Finding
from .places import is_near

IPV6_MTU: Final = 1280  # RFC 8200, section 5: the least that a link of IPv6 carries
_LET_MDNS: Final = "Let UDP port 5353 in on this interface"


def network(facts: Facts) -> Iterator[Finding]:
    """Whether there is a network at all, and interfaces that mislead."""
    outside = [one for one in facts.interfaces if one.kind != "loopback" and one.up and one.addresses]
    inside_only = bool(facts.chosen) and all(ipaddress.ip_address(ip).is_loopback for ip in facts.chosen)
    if not outside and not inside_only:
        yield Finding(
            "no-network",
            "bad",
            "No interface of this machine is up with an address.",
            do="Connect it: plug in the cable, or join the Wi-Fi.",
        )
    if facts.machine.in_container and outside:
        yield Finding(
            "in-container",
            "note",
            f"This is a container: its addresses ({', '.join(one.name for one in outside)}) may mean nothing outside.",
            "Other devices reach a container only at ports that its host forwards, and multicast does not enter it.",
            "Run it with the host's network (`--network host`).",
        )
    for one in outside:
        yield from _misleading(one, facts)
        if (given := _self_given(one)) is not None:
            yield given
        if one.mtu < IPV6_MTU:
            yield Finding(
                "small-mtu",
                "warn",
                f"{one.name} carries packets of {one.mtu} bytes at most.",
                f"IPv6 needs {IPV6_MTU}, and a tunnel in which larger ones vanish lets small messages through and "
                "stops weights.",
                f"Raise it: `ip link set {one.name} mtu 1420`, here and at the other end.",
            )


def _self_given(one: Interface) -> Finding | None:
    """Find an interface that no DHCP server answered."""
    ipv4 = [ipaddress.ip_interface(text) for text in one.addresses if ":" not in text]
    if not ipv4 or not all(address.ip.is_link_local for address in ipv4):
        return None
    return Finding(
        "self-assigned",
        "warn",
        f"{one.name} gave itself its IPv4 address ({ipv4[0].ip}): nobody on the network gave it one.",
        "It reaches only devices that did the same, unless both have IPv6.",
        "Look whether the router is on and the cable is in; or plug both devices into one switch.",
    )


def _misleading(one: Interface, facts: Facts) -> Iterator[Finding]:
    chosen = {address.partition("/")[0] for address in one.addresses} & set(facts.chosen)
    if one.kind not in {"vpn", "container", "virtual"} or (facts.chosen and not chosen):
        return
    reached = {
        "vpn": "Other devices reach it only inside the same VPN, and most VPNs carry no multicast.",
        "container": "It leads to containers of this machine. Other devices have one of the same address, so what is "
        "announced there leads them to themselves.",
        "virtual": "It leads to virtual machines or containers of this machine.",
    }[one.kind]
    yield Finding(
        "misleading-interface",
        "note",
        f"{one.name} ({', '.join(one.addresses)}) is announced too, and is a {_KINDS[one.kind]}.",
        reached,
        "It costs others a failed dial. To leave it out, name the others: `interfaces = [ADDRESS, ...]` in node.toml.",
    )


_KINDS: Final = {"vpn": "VPN's", "container": "container bridge", "virtual": "virtual one"}


def hearing(facts: Facts) -> Iterator[Finding]:
    """What each interface hears."""
    if not facts.hearing.seconds:
        return
    for ear in facts.hearing.ears:
        if ear.trouble:
            yield Finding(
                "no-multicast",
                "warn",
                f"{ear.interface} gives no mDNS ({ear.trouble}).",
                "Peers are not found through it.",
                "Name a peer's address where there is no other: `lepton-node up --bootstrap HOST:PORT`.",
            )
        elif not ear.echoed:
            yield Finding(
                "multicast-dropped-here",
                "bad",
                f"{ear.interface}: this machine drops multicast itself: its own question did not come back.",
                "A firewall on this machine, most likely.",
                f"{_LET_MDNS}: {_allow(facts)}.",
            )
        else:
            yield _heard_on(ear, facts)


def _heard_on(ear: Ear, facts: Facts) -> Finding:
    here = [voice for voice in facts.hearing.voices if voice.interface == ear.interface]
    ours = _names({voice.peer for voice in here} - {"", facts.member.me}, facts)
    strangers = len({voice.addresses for voice in here if not voice.peer})
    parts = [*ours, *([f"{strangers} of another mesh"] if strangers and facts.member.mesh else [])]
    if strangers and not facts.member.mesh:
        parts.append(f"{strangers} {'node' if strangers == 1 else 'nodes'} of Lepton, each of whatever mesh")
    if parts:
        return Finding("heard", "ok", f"{ear.interface} hears {', '.join(parts)}.")
    return Finding(
        "nobody-heard",
        "note",
        f"{ear.interface} hears nobody but this machine.",
        "Nobody else runs a node there; or something on the way drops multicast: guest networks (client isolation), "
        "some switches and mesh Wi-Fi, all routed networks and most VPNs.",
        "If a node does run there, name its address: `lepton-node doctor --at HOST:PORT` says whether that works.",
    )


def own_voice(facts: Facts) -> Iterator[Finding]:
    """Whether this node's own announcement is on the network."""
    good = [ear.interface for ear in facts.hearing.ears if ear.echoed and not ear.trouble]
    if facts.running is None or not good:
        return
    mine = {voice.interface for voice in facts.hearing.voices if voice.peer == facts.member.me}
    if not mine:
        yield Finding(
            "not-announced",
            "bad",
            "This node's own announcement is not heard, not even here.",
            f"Listened on {', '.join(good)} for {facts.hearing.seconds:g} s. The node may announce itself on other "
            "interfaces (`interfaces` in node.toml), or listen where none of them leads.",
            "Compare `interfaces` and `listen` in node.toml with this machine's addresses; start the node anew.",
        )
    else:
        yield Finding("announced", "ok", f"This node's own announcement is heard on {', '.join(sorted(mine))}.")


def blocked(facts: Facts) -> Iterator[Finding]:
    """Whether peers are here over TCP whose announcements do not come: multicast ends on the way."""
    heard = {voice.peer for voice in facts.hearing.voices}
    able = {ear.interface for ear in facts.hearing.ears if ear.echoed and not ear.trouble}
    for one in facts.interfaces:
        if one.name not in able:
            continue
        near = [peer for peer in facts.peers if peer.connected and peer.id not in heard and is_near(peer.at, one)]
        if near:
            names = ", ".join(peer.device for peer in near)
            yield Finding(
                "multicast-blocked",
                "warn",
                f"{names}: here over TCP on {one.name}, but never heard by mDNS there.",
                "They are in the same network, so something between drops multicast: an access point, a switch with "
                "IGMP snooping, or their firewall.",
                "It works for now; to be safe after a restart, give each node an address of another: "
                '`bootstrap = ["HOST:PORT"]` in node.toml.',
            )


def strangers(facts: Facts) -> Iterator[Finding]:
    """Nodes of other meshes on this network: harmless, and a common mistake."""
    found: dict[str, Voice] = {voice.source: voice for voice in facts.hearing.voices if not voice.peer}
    own = {address.partition("/")[0] for one in facts.interfaces for address in one.addresses if one.kind != "loopback"}
    if found and facts.member.mesh:
        where = ", ".join(f"{source} (this machine)" if source in own else source for source in sorted(found))
        yield Finding(
            "other-mesh",
            "note",
            f"Nodes of another mesh are on this network, at {where}.",
            "Meshes ignore each other. Two that were made under the same name are two all the same: `mesh create` "
            "on each device makes a mesh each.",
            "If one of them ought to be here, let it join: `lepton-node invite` here, and there `lepton-node join "
            "CODE --home NEWFOLDER`.",
        )


def _names(peers: set[str], facts: Facts) -> list[str]:
    devices = {peer.id: peer.device for peer in facts.peers}
    return sorted(devices.get(peer, "?").replace("?", peer[-8:]) for peer in peers)


def _allow(facts: Facts) -> str:
    ways: Sequence[str] = [wall.allow for wall in facts.walls if wall.allow and wall.on is not False]
    return " or ".join(f"`{way}`" for way in ways) or "its firewall's manual says how"


RULES: Final = (network, hearing, own_voice, blocked, strangers)
