"""What goes wrong in a scenario: each fault is a table with a moment, a victim, and, where it passes, an end.

A fault whose victim is not there when it is due (it crashed, it was thrown out) does not happen.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

from .sections import Period, Seconds, Section, Share

# Far beyond what a clock does that is not broken; bad quartz does 1e-4.
Drift = Annotated[float, msgspec.Meta(ge=-0.5, le=0.5)]
Slowness = Annotated[float, msgspec.Meta(ge=1, le=1000)]
Offset = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Most = Annotated[int, msgspec.Meta(ge=0, le=16)]


class Crash(Section, frozen=True, kw_only=True):
    """A process dies, without a word. With `during`, the first device that is in the middle of that, from `at_s` on."""

    at_s: Seconds
    node: str = ""  # its name; empty: whoever fits
    during: Literal["", "request", "round", "answer"] = ""  # computing for another's request or session; in a round
    restart_after_s: Seconds = 0.0  # 0: never
    # What of its disk is gone when it is back. `records`: all but its key and its grant, as after an old backup.
    # `everything`: a new device to all others, which joins with an invite of its own.
    loses: Literal["nothing", "records", "everything"] = "nothing"


class Freeze(Section, frozen=True, kw_only=True):
    """A process is stopped, and goes on later: it hears and does nothing, and its connections stay open."""

    at_s: Seconds
    node: str
    thaw_after_s: Period


class Partition(Section, frozen=True, kw_only=True):
    """Links between groups of nodes are cut, then healed. Who is in no group is with the first.

    `bridges` keep their links to all: with one of them, two groups of one node each are a line of three.
    """

    at_s: Seconds
    heal_s: Seconds
    groups: tuple[tuple[str, ...], ...]
    bridges: tuple[str, ...] = ()


class OneWay(Section, frozen=True, kw_only=True):
    """What `senders` say does not reach `receivers`, who are heard as ever. Nobody can dial across it.

    With `during`, a stage of the first answer that is under way from `at_s` on, and the stage behind it.
    """

    at_s: Seconds
    heal_s: Seconds
    senders: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    during: Literal["", "answer"] = ""


class Weather(Section, frozen=True, kw_only=True):
    """Links behave otherwise for a while: all of them, those of `node`, or those between `node` and `other`."""

    at_s: Seconds
    end_s: Seconds
    node: str = ""
    other: str = ""
    latency_s: Seconds | None = None  # what is not said stays as it is
    jitter_s: Seconds | None = None
    loss: Share | None = None
    duplication: Share | None = None
    reordering: Share | None = None
    bandwidth_bytes_per_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


class Slow(Section, frozen=True, kw_only=True):
    """A device takes so many times as long for all that it does: computing, loading, handling what comes and is due."""

    at_s: Seconds
    end_s: Seconds
    node: str
    times: Slowness


class Skew(Section, frozen=True, kw_only=True):
    """A device's calendar is wrong by so much from now on, and its clocks run fast by so much of each second."""

    at_s: Seconds
    node: str
    offset_s: Offset = 0.0
    drift: Drift = 0.0


class Revoke(Section, frozen=True, kw_only=True):
    """The first device throws another one out, for good."""

    at_s: Seconds
    node: str


class Join(Section, frozen=True, kw_only=True):
    """A new device comes with an invite of the first one; it is called `node`."""

    at_s: Seconds
    node: str


class Faults(Section, frozen=True, kw_only=True):
    """Faults to be drawn from the seed: how many of each kind at most. All are over when `settle_s` begins."""

    first_s: Seconds = 10.0
    length_s_max: Period = 30.0  # of what passes: a freeze, a cut, weather, a slow device, the time until a restart
    crash: Most = 0  # a restart follows
    death: Most = 0  # no restart follows
    lost_records: Most = 0  # a crash, and a restart without what was on the disk but the key and the grant
    lost_disk: Most = 0  # a crash, and then a new device in its place
    freeze: Most = 0
    partition: Most = 0
    one_way: Most = 0
    weather: Most = 0
    slow: Most = 0
    skew: Most = 0
    revoke: Most = 0
    join: Most = 0
    loss_max: Share = 0.3  # of weather
    slow_times_max: Slowness = 10.0
    skew_s_max: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 30 * 24 * 3600.0  # a third of how long a grant holds
    drift_max: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.01  # a hundred times what bad quartz does


Fault = Crash | Freeze | Partition | OneWay | Weather | Slow | Skew | Revoke | Join

KINDS: Final[dict[str, type[Fault]]] = {
    "crash": Crash, "freeze": Freeze, "partition": Partition, "one_way": OneWay, "weather": Weather, "slow": Slow,
    "skew": Skew, "revoke": Revoke, "join": Join,
}  # fmt: skip


def named(fault: Fault) -> Iterator[str]:
    """Name all nodes that a fault speaks of."""
    match fault:
        case Partition(groups=groups, bridges=bridges):
            for group in groups:
                yield from group
            yield from bridges
        case OneWay(senders=senders, receivers=receivers):
            yield from senders
            yield from receivers
        case Weather(node=node, other=other):
            yield from filter(None, (node, other))
        case _:
            yield from filter(None, (fault.node,))


def complaint(fault: Fault, first: str) -> str:
    """Say what cannot be about a fault; `first` is the device that gives invites and revokes. Empty if it can be."""
    match fault:
        case Partition(at_s=at_s, heal_s=heal_s, groups=groups):
            members = [name for group in groups for name in group]
            if heal_s <= at_s or len(members) != len(set(members)):
                return "a partition heals after it begins, and no node is in two of its groups"
        case OneWay():
            return _complaint_of_one_way(fault)
        case Weather(at_s=at_s, end_s=end_s, node=node, other=other):
            if end_s <= at_s or (other and (not node or other == node)):
                return "weather ends after it begins, and is between two nodes, around one, or everywhere"
        case Slow(at_s=at_s, end_s=end_s) if end_s <= at_s:
            return "a slow device is fast again after it began to be slow"
        case Crash():
            return _complaint_of_crash(fault, first)
        case Revoke(node=node) if node == first:
            return f"{first} made the mesh and is the one that revokes; revoke another"
    return ""


def _complaint_of_one_way(cut: OneWay) -> str:
    senders, receivers = set(cut.senders), set(cut.receivers)
    if cut.during and (senders or receivers):
        return "a one-way cut that says during what it strikes names nobody"
    if cut.heal_s <= cut.at_s or not (cut.during or (senders and receivers)) or senders & receivers:
        return "a one-way cut heals after it begins, between some senders and some other receivers"
    return ""


def _complaint_of_crash(crash: Crash, first: str) -> str:
    if not crash.node and not crash.during:
        return "a crash names its node, or says during what it strikes"
    if crash.loses != "nothing" and not crash.restart_after_s:
        return "a crash that loses something of the disk needs restart_after_s"
    if crash.loses == "everything" and crash.node in {"", first}:
        return f"a crash that loses everything names its node, and not {first}, which gives the invites"
    return ""
