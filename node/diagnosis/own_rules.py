"""Rules about this device itself: its folder, its grant, its clock, its ports. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime
from statistics import median
from typing import Final

from ...mesh.admission import JOIN_ANEW
from .facts import Facts
from .findings import Finding

CLOCK_S: Final = 30.0  # a difference that people notice in logs; nothing of Lepton needs less than hours
_BEHIND_S: Final = 300.0  # a file system may stamp by another machine's clock, some minutes off
_DAY_S: Final = 86400.0


def folder(facts: Facts) -> Iterator[Finding]:
    """Whether the folder can be read, and is of a mesh."""
    member = facts.member
    if member.trouble:
        yield Finding("folder-damaged", "bad", f"The folder {facts.home} cannot be used.", member.trouble)
    elif not member.mesh:
        yield Finding(
            "no-mesh",
            "note",
            "This device is in no mesh yet.",
            do="Make one (`lepton-node mesh create NAME`) or join one (`lepton-node join CODE`).",
        )
    elif member.out:
        yield Finding(
            "thrown-out", "bad", f"This device was thrown out of the mesh {member.mesh!r}.", member.out, JOIN_ANEW
        )
    elif facts.running is None:
        yield Finding(
            "not-running",
            "warn",
            "No node runs here, so the others do not see this device.",
            do="Start it: `lepton-node up`.",
        )
    else:
        device = facts.running.device
        yield Finding("running", "ok", f"{device} runs in the mesh {member.mesh!r} as {member.role}.")


def grant(facts: Facts) -> Iterator[Finding]:
    """Until when the grant is good, by this device's clock."""
    member = facts.member
    if not member.mesh or member.out or member.trouble:
        return
    left_s = member.expires - facts.taken_at_s
    on = _date(member.expires)
    renewal = "Grants are renewed by whoever invited this device or another admin, in the last third of their life."
    if left_s <= 0:
        yield Finding(
            "grant-expired",
            "bad",
            f"This device's grant has expired (on {on}), so every peer refuses it.",
            f"{renewal} By this device's clock it is {_date(facts.taken_at_s)} now.",
            "If the clock is right, ask an admin for an invite and join again; else set the clock.",
        )
    elif left_s < member.grant_life_s / 6:  # half of the time for renewing it has passed
        yield Finding(
            "grant-ends-soon",
            "warn",
            f"This device's grant ends in {_days(left_s)} (on {on}) and was not renewed.",
            f"{renewal} None of them was met.",
            "Run the device with the root key, or an admin's, together with this one for a minute.",
        )
    else:
        yield Finding("grant", "ok", f"The grant is good for {_days(left_s)} (until {on}).")


def clock(facts: Facts) -> Iterator[Finding]:
    """Whether this clock can be right. No decision between nodes rests on clocks, but grants end by them."""
    behind_s = facts.machine.newest_file_s - facts.taken_at_s
    if behind_s > _BEHIND_S:
        yield Finding(
            "clock-behind",
            "bad",
            f"This device's clock is at least {_span(behind_s)} behind: its own files are from the future.",
            "A small computer without a battery begins anew at each start, until it is told the time.",
            "Turn on time from the network (`timedatectl set-ntp true`), or set the clock.",
        )
    skews = {peer.device: peer.skew_s for peer in facts.peers if peer.skew_s is not None}
    errors = {peer.device: peer.skew_error_s for peer in facts.peers}
    off = {device: skew for device, skew in skews.items() if abs(skew) > CLOCK_S + errors[device]}
    if not skews:
        return
    middle = median(skews.values())
    if not off:
        most = max(abs(skew) for skew in skews.values())
        yield Finding("clock", "ok", f"The clock agrees within {_span(most)} with {_those(len(skews), 'peer')}.")
    elif len(skews) > 1 and abs(middle) > CLOCK_S:
        yield _clock_off("This device's clock", -middle, f"So say most of {_those(len(skews), 'peer')}.")
    elif len(skews) == 1:
        ((device, skew),) = off.items()
        yield _clock_off(f"The clock of {device}, or this one,", skew, "With two devices nobody can say which.")
    else:
        for device, skew in sorted(off.items()):
            yield _clock_off(f"The clock of {device}", skew, "The other peers agree with this device.")


def _clock_off(whose: str, by_s: float, why: str) -> Finding:
    """Make the finding of a clock that is ahead by so much, or behind."""
    how = f"{_span(abs(by_s))} {'ahead' if by_s > 0 else 'behind'}"
    return Finding(
        "clock-differs",
        "bad" if abs(by_s) > _DAY_S else "warn",
        f"{whose} is {how}.",
        f"{why} Only grants and invites end by the clock: hours do no harm to a grant of months, but an invite of one "
        "hour is over at once, and logs do not fit together.",
        "Turn on time from the network there (`timedatectl set-ntp true`).",
    )


def ports(facts: Facts) -> Iterator[Finding]:
    """Whether the node listens, or could, where others find it."""
    for port in facts.ports:
        if port.taken_by or port.trouble:
            yield Finding(
                "port-taken" if port.taken_by else "port-unusable",
                "bad",
                f"`{port.what}` names {port.wanted}, which cannot be used: {port.taken_by or port.trouble}.",
                do=f"Stop that program, or name another port under `{port.what}` in node.toml; 0 is any free one.",
            )
    if facts.running is None:
        return
    listening = facts.running.listening
    inside = [place for place in listening if "/127." in place or place.startswith("/ip6/::1/")]
    if listening and len(inside) == len(listening) and not _is_local(facts):
        yield Finding(
            "listens-inside",
            "warn",
            "The node listens on this machine alone, so no other device can reach it.",
            f"It listens on {', '.join(listening)}.",
            'Leave `listen` out of node.toml, or name "0.0.0.0:0".',
        )
    else:
        yield Finding("listening", "ok", f"It listens on {', '.join(listening)}.")


def _is_local(facts: Facts) -> bool:
    """Whether the owner wants loopback alone."""
    return bool(facts.chosen) and all(address.startswith(("127.", "::1")) for address in facts.chosen)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _days(seconds: float) -> str:
    return f"{seconds / _DAY_S:.0f} days" if seconds >= 2 * _DAY_S else _span(seconds)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{max(seconds, 0.001) * 1000:.0f} ms"


def _those(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


RULES: Final = (folder, grant, clock, ports)
