"""Rules about other devices: why one is not here, why one was refused, and how good the way to it is. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from ...mesh.identity import short
from .facts import Facts, Peer, Place, Try
from .findings import Finding, Severity
from .places import host_of

FAR_MS: Final = 64.0  # beyond it a phone network or the other side of the world; a token pays it at every device
REPEATED: Final = 0.02  # of all segments: TCP then halves its speed again and again
_SEGMENTS_LEAST: Final = 500  # fewer say nothing about so small a share
SLOW_BYTES_S: Final = 1.25e6  # 10 Mbit/s: a gigabyte of weights takes a quarter of an hour
_GB: Final = 1e9
_OPEN_PORTS: Final = "Let its TCP port in there (see its firewall), or check that both are in one network."


def present(facts: Facts) -> Iterator[Finding]:
    """Who is here, and how far away."""
    for peer in facts.peers:
        if not peer.here:
            continue
        if not peer.connected:
            yield Finding("peer-here", "ok", f"{peer.device} is here, told by others: a large mesh connects to few.")
            continue
        far = f", round trip {peer.round_trip_ms:.1f} ms" if peer.round_trip_ms is not None else ""
        yield Finding("peer-here", "ok", f"{peer.device} is here at {host_of(peer.at)}{far}.")
        if peer.answer_trouble:
            yield Finding(
                "peer-mute",
                "note",
                f"{peer.device} does not answer the doctor's questions.",
                peer.answer_trouble,
                "Try again in a minute. If it runs an older release, bring it up to date; it takes part all the same.",
            )
        elif peer.release and peer.release != facts.machine.release:
            yield Finding(
                "other-release",
                "note",
                f"{peer.device} runs release {peer.release}, this device {facts.machine.release}.",
                do="Bring both to the same release when something odd happens.",
            )


def absent(facts: Facts) -> Iterator[Finding]:
    """Why a device is not here."""
    heard = {voice.peer: voice.interface for voice in facts.hearing.voices if voice.peer}
    for peer in facts.peers:
        if peer.here:
            continue
        if peer.revoked:
            if peer.id in heard:
                what = f"{peer.device} was thrown out of the mesh and is still on the network (on {heard[peer.id]})."
                yield Finding("revoked-heard", "note", what, f"{peer.revoked} It is let in nowhere.")
        elif peer.refusal:
            if not facts.member.out:  # else it is what follows from that
                yield refused(peer)
        elif facts.running is None and not peer.trouble and peer.id not in heard:
            yield Finding("peer-unheard", "note", f"{peer.device} was not heard.", _unheard(facts))
        elif peer.id in heard or peer.addresses:
            yield _unreached(peer, heard.get(peer.id, ""), facts)
        else:
            yield Finding(
                "peer-unheard",
                "note",
                f"{peer.device} is not here: nobody has said where it is, and mDNS does not hear it.",
                _unheard(facts),
                f"Look there: is `lepton-node up` running? If it is, try `lepton-node doctor --at ITS-ADDRESS:PORT` "
                f"here, and `lepton-node doctor` on {peer.device}.",
            )


def _unheard(facts: Facts) -> str:
    reasons = ["It is switched off, or its node does not run"]
    if facts.hearing.seconds:
        reasons.append("it is in another network, or multicast does not pass between the two")
    return f"{'; or '.join(reasons)}."


def _unreached(peer: Peer, interface: str, facts: Facts) -> Finding:
    """A device that says where it is, and cannot be reached there."""
    if facts.running is None and not peer.trouble and not peer.tries:
        return Finding("peer-heard", "ok", f"{peer.device} is heard on {interface}.")
    if interface:
        return unreachable(f"{peer.device} is heard on {interface}", peer.tries, peer.trouble, severity="bad")
    what = f"{peer.device} is not heard by mDNS; it said earlier that it is at {', '.join(peer.addresses[:3])}"
    if peer.tries and all(one.outcome != "open" for one in peer.tries):
        outcomes = "; ".join(f"{one.address}: {one.outcome}" for one in peer.tries)
        return Finding(
            "peer-away",
            "note",
            f"{what}, where nobody answers.",
            f"{outcomes}. {_unheard(facts)}",
            f"Is `lepton-node up` running on {peer.device}?",
        )
    return unreachable(what, peer.tries, peer.trouble, severity="warn")


def unreachable(whose: str, tries: Sequence[Try], trouble: str, *, severity: Severity) -> Finding:
    """Say why somebody whose address is known cannot be reached."""
    outcomes = {one.outcome for one in tries}
    where = ", ".join(one.address for one in tries)
    if "open" in outcomes:
        reason = classified(trouble)
        what = (
            f"{whose}, and something answers there, but " + (reason[0] if reason else "no connection comes about") + "."
        )
        return Finding("dial-fails", severity, what, trouble, reason[1] if reason else _OPEN_PORTS)
    if "refused" in outcomes:
        what = f"{whose}, but no program listens there any more ({where})."
        why = "The machine is up and its port is closed: its node has just stopped, or took another port."
        return Finding(
            "dial-refused", severity, what, why, "Start its node; a fixed port helps: `--listen 0.0.0.0:4001`."
        )
    if "timed out" in outcomes:
        what = f"{whose}, but nothing answers at {where}."
        why = "Packets vanish: a firewall there, or an access point that keeps devices apart (client isolation)."
        return Finding("dial-times-out", severity, what, why, _OPEN_PORTS)
    if "no route" in outcomes:
        what = f"{whose}, but this machine knows no way to {where}."
        return Finding("dial-no-route", severity, what, "It is in another network.", "Use a network that both are in.")
    return Finding("dial-fails", severity, f"{whose}, and cannot be reached.", trouble, _OPEN_PORTS)


# What this node's own sentences say, as fragments of them, and what that means. {} is who is meant.
_MEANINGS: Final = (
    ("has expired", "grant-expired", "the grant of {} has expired, by one of the two clocks",
     "Set the clock that is wrong (see above); if both are right, {} has to join again with a new invite."),
    ("revoked", "revoked", "{} was thrown out of the mesh",
     "If that was a mistake, let {} join again with a new folder and a new invite; a revoked key stays revoked."),
    ("another mesh", "wrong-mesh", "it belongs to another mesh",
     "Let it join this one: `lepton-node invite` here, and there `lepton-node join CODE --home NEWFOLDER`."),
    ("showed no grant", "no-grant", "it never joined this mesh", "Give it an invite: `lepton-node invite`."),
    ("lives there now", "moved", "another device has that address now",
     "Its old address was given to another machine; it is found again when it announces itself."),
    ("this node itself", "itself", "it leads back to this device",
     "The address is this device's own, or a container's that all machines have: name another."),
    ("other than multistream-select", "no-node", "what answers there is no node",
     "Name the port on which the node listens (`lepton-node status` there says it), not that of its page or endpoint."),
    ("No stream for", "older", "it speaks another release of the protocol", "Bring both devices to the same release."),
    ("strangers are here", "crowded", "too many strangers were at the door at once", "It is tried again by itself."),
)  # fmt: skip


def classified(sentence: str, peer: str = "", device: str = "the other") -> tuple[str, str, str] | None:
    """Return what a refusal in words means, what to do, and its id; None for one that is not known."""
    who = device if peer and short(peer) in sentence else "this device"
    for fragment, name, meaning, do in _MEANINGS:
        if fragment in sentence:
            return meaning.format(who), do.format(who), name
    return None


def refused(peer: Peer) -> Finding:
    """Say why a device refused this one, or this one it."""
    known = classified(peer.refusal, peer.id, peer.device)
    both = f"{peer.device} and this device refuse each other"
    if known is None:
        return Finding("peer-refused", "bad", f"{both}.", peer.refusal)
    meaning, do, name = known
    its_own_fault = name == "revoked" and short(peer.id) in peer.refusal
    return Finding(f"refused-{name}", "note" if its_own_fault else "bad", f"{both}: {meaning}.", peer.refusal, do)


def places(facts: Facts) -> Iterator[Finding]:
    """What came of the addresses that the owner named."""
    devices = {peer.id: peer.device for peer in facts.peers}
    for place in facts.places:
        if place.peer:
            yield Finding("place", "ok", f"{devices.get(place.peer, place.peer[-8:])} is at {place.address}.")
        elif place.trouble or place.tries:
            yield _no_place(place)


def _no_place(place: Place) -> Finding:
    return unreachable(f"{place.address} was named", place.tries, place.trouble, severity="bad")


def reachable(facts: Facts) -> Iterator[Finding]:
    """Whether others can open connections to this device."""
    tried = [(peer.device, peer.dial_back) for peer in facts.peers if peer.dial_back]
    good = [device for device, tries in tried if any(one.outcome == "open" for one in tries)]
    if good:
        yield Finding("reachable", "ok", f"{', '.join(good)} can open connections to this device.")
    elif tried:
        said = "; ".join(f"{device}: {one.address} {one.outcome}" for device, tries in tried for one in tries)
        yield Finding(
            "not-reachable",
            "warn",
            "No peer can open a connection to this device; only those that it dials itself are here.",
            f"Asked to dial back: {said}. A firewall on this machine, a container or a router's address translation.",
            "Let the node's port in: give it a fixed one (`lepton-node up --listen 0.0.0.0:4001`) and allow TCP 4001.",
        )


def links(facts: Facts) -> Iterator[Finding]:
    """Whether the network is what holds the mesh up."""
    for peer in facts.peers:
        if peer.round_trip_ms is not None and peer.round_trip_ms > FAR_MS:
            yield Finding(
                "far",
                "note",
                f"{peer.device} is {peer.round_trip_ms:.0f} ms away.",
                "A model that is spread over both pays this for every token; training hardly notices.",
                "Placement avoids it where it can. Wi-Fi that saves power shows such figures: try a cable.",
            )
        if (sent := peer.segments_sent or 0) >= _SEGMENTS_LEAST and peer.segments_repeated > REPEATED * sent:
            share = peer.segments_repeated / sent
            yield Finding(
                "loss",
                "warn",
                f"{share:.0%} of what goes to {peer.device} has to be sent again.",
                "The network loses packets, and TCP slows down each time.",
                "Weak Wi-Fi, a bad cable, or a full line: move nearer, use a cable or 5 GHz.",
            )
        yield from _bandwidth(peer)


def _bandwidth(peer: Peer) -> Iterator[Finding]:
    if peer.measure_trouble:
        yield Finding("not-measured", "note", f"The line to {peer.device} was not measured.", peer.measure_trouble)
    known = [speed for speed in (peer.down_bytes_s, peer.up_bytes_s) if speed is not None]
    if not known:
        return
    least = min(known)
    ways = [("from it", peer.down_bytes_s), ("to it", peer.up_bytes_s)]
    said = ", ".join(f"{speed / 1e6:.1f} MB/s {way}" for way, speed in ways if speed is not None)
    if least < SLOW_BYTES_S:
        yield Finding(
            "slow-link",
            "warn",
            f"The line to {peer.device} is the bottleneck: {said}.",
            f"A gigabyte of weights takes {_GB / least / 60:.0f} minutes over it.",
            "Use a cable or nearer Wi-Fi; `int8` in tasks and deployments sends a quarter.",
        )
    else:
        yield Finding("bandwidth", "ok", f"{peer.device}: {said}; a gigabyte takes {_GB / least:.0f} s.")


RULES: Final = (present, absent, places, reachable, links)
