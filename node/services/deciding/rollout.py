"""A new version in place of an old one, without anybody who conducts it. Pure: records in, one node's next step out.

Every node reads the same records and derives what itself may start and end. What makes that safe though each sees the
others' news late:

- An instance ends only while more are ready than are wanted, and then in one order that all nodes share: the first so
  many of those that are not wanted as there are ready ones beyond the wanted. Who sees an instance as ready that has
  ended meanwhile counts it among the ready *and* among those that end first, so it takes no wrong step.
- None ends because of a deployment before all who run the service say that they follow it (`HostedRecord.revision`,
  `by`), and agree whether its update failed. What they ended by another plan they have said by then.
- Of a version that is new, one instance starts at a time: the next device's turn comes when the one before is ready.
- A device on which the new version does not start says so in its record, and everybody goes back, by the same rules:
  what the deployment says is from then on read without its last release. Who runs the service says it on, so that it is
  not forgotten when the first to say it leaves.

Whose word others wait for in vain, for longer than any honest device takes, is left out of account by each of them for
itself until the deployment changes: what it says it runs counts no more, and its part goes to others.

So while nothing crashes and the number of replicas stays, never fewer are ready than wanted. A crash takes what it
takes, and what is missing then is started. Under a partition each side knows only its own and does this for itself.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from ....mesh.identity import PeerId
from ..records import HostedRecord, InstanceSaid, Release, ServiceRecord
from .placing import Key, Placement

Hosted = Mapping[PeerId, HostedRecord]

RESTARTS_MAX: Final = 3  # of a new version's instance during an update, before it counts as one that does not run
_WHOLE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How many instances of which bundles a service ought to have."""

    counts: Mapping[str, int]  # by the bundle's digest
    failed: str = ""  # why its newest release is not among them
    incoming: str = ""  # the bundle of which one starts at a time

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def goal(record: ServiceRecord, hosted: Hosted, wanted: int) -> Goal:
    """Say what ought to run, given how many replicas are wanted. With shares each release has at least one of them."""
    releases, why = list(record.releases), failure(record, hosted)
    if why:
        releases.pop()
    newest = record.releases[-1].bundle.digest if record.replaces is not None and not why else ""
    return Goal(counts=_counts(releases, wanted), failed=why, incoming=newest)


def failure(record: ServiceRecord, hosted: Hosted) -> str:
    """Say where and why an update failed; nothing when it has not. A first version has nothing to go back to."""
    if record.replaces is None or len(record.releases) == 1:
        return ""
    newest = record.releases[-1].bundle.digest
    said = (its.failed[newest] for _, its in sorted(hosted.items()) if current(record, its) and newest in its.failed)
    return next(said, "")


def current(record: ServiceRecord, said: HostedRecord) -> bool:
    """Whether a host's word about bundles is about this revision: what failed before may be tried anew."""
    return said.revision == record.revision


def _counts(releases: list[Release], wanted: int) -> dict[str, int]:
    """Divide replicas by the shares: the largest remainders get what rounding leaves."""
    sharing = [release for release in releases if release.share]
    if not sharing:  # the one that comes failed, and the other was to go
        sharing = [releases[-1]]
    total = max(wanted, len(sharing)) if wanted else 0
    whole = sum(release.share or _WHOLE for release in sharing)
    free, counts = total - len(sharing), {}
    remainders = []
    for at, release in enumerate(sharing):
        if total:
            number, rest = divmod(free * (release.share or _WHOLE), whole)
            counts[release.bundle.digest] = 1 + number
            remainders.append((-rest, at, release.bundle.digest))
    for _, _, digest in sorted(remainders)[: total - sum(counts.values())]:
        counts[digest] += 1
    return counts


def is_under_way(record: ServiceRecord, hosted: Hosted) -> bool:
    """Whether the newest release is not yet what runs: the one before does, or nothing."""
    if record.replaces is None or len(record.releases) == 1:
        return False
    newest = record.releases[-1].bundle.digest
    ready = {its.bundle == newest for said in hosted.values() for its in said.instances if its.state == "ready"}
    return ready != {True}


def is_done(wanted: Goal, hosted: Hosted) -> bool:
    """Whether only what ought to run runs, of each version as many as ought to, and all of it is ready."""
    instances = [instance for its in hosted.values() for instance in its.instances]
    counts = {digest: count for digest, count in wanted.counts.items() if count}
    return Counter(its.bundle for its in instances) == counts and all(its.state == "ready" for its in instances)


def settled(record: ServiceRecord, hosted: Hosted) -> tuple[Release, ...]:
    """Return the releases without what an update has left behind: the one that failed, or those that it replaced."""
    releases = record.releases
    if failure(record, hosted):
        releases = releases[:-1]
    elif is_under_way(record, hosted) and not all(release.share for release in releases):
        return releases  # it goes on
    kept = tuple(release for release in releases if release.share)
    return kept or (msgspec.structs.replace(releases[-1], share=_WHOLE),)


def shares(record: ServiceRecord, hosted: Hosted) -> dict[str, float]:
    """Return each version's share of the calls, as it is right now, by its name.

    Where one release has all of them, what is ready shares as it is: else the first new instance of an update would be
    asked what all old ones were asked before.
    """
    ready: dict[str, float] = {}
    for its in hosted.values():
        for instance in its.instances:
            if instance.state == "ready":
                ready[instance.version] = ready.get(instance.version, 0.0) + 1.0
    releases = record.releases[:-1] if failure(record, hosted) else record.releases
    said = {release.version: float(release.share) for release in releases if release.share}
    beside = {version: share for version, share in said.items() if version in ready}
    return beside if len(said) > 1 and beside else ready


# -- one node's part --------------------------------------------------------------------------------------------------


def may_start(service: str, wanted: Goal, placement: Placement, hosted: Hosted, me: PeerId, bundle: str) -> bool:
    """Whether this node may start one more instance of a bundle now, where its placement says that one is missing."""
    if bundle != wanted.incoming:
        return True
    of_it = [
        (peer, instance) for peer, its in hosted.items() for instance in its.instances if instance.bundle == bundle
    ]
    if any(instance.state == "starting" for _, instance in of_it):
        return False
    have = {peer: sum(1 for owner, its in of_it if owner == peer and its.state == "ready") for peer in hosted}
    counts = placement.counts.get((service, bundle), {})
    return not any(peer < me and have.get(PeerId(peer), 0) < count for peer, count in counts.items())


def ending(service: str, wanted: Goal, placement: Placement, hosted: Hosted, me: PeerId) -> list[str]:
    """Return which of its instances this node may end now. ``hosted`` has to have its own word too."""
    extra = {peer: _extra(service, placement, peer, its) for peer, its in hosted.items()}
    mine = [instance.id for instance in extra.get(me, ()) if instance.state != "ready"]
    if not _agree(hosted, me):
        return mine
    ready = sum(1 for its in hosted.values() for instance in its.instances if instance.state == "ready")
    order = sorted(
        (instance.bundle in wanted.counts, peer, instance.id)
        for peer, instances in extra.items()
        for instance in instances
        if instance.state == "ready"
    )
    return mine + [name for _, peer, name in order[: max(ready - wanted.total, 0)] if peer == me]


def holding_up(service: str, wanted: Goal, placement: Placement, hosted: Hosted, me: PeerId) -> set[PeerId]:
    """Return for whose word this node waits now, before it may start an instance or end one: others', never its own."""
    counts = placement.counts.get((service, wanted.incoming), {}) if wanted.incoming else {}
    of_it = {
        peer: [its.state for its in said.instances if its.bundle == wanted.incoming] for peer, said in hosted.items()
    }
    lacking = sorted(
        PeerId(peer) for peer, count in counts.items() if of_it.get(PeerId(peer), []).count("ready") < count
    )
    turn = {peer for peer, states in of_it.items() if "starting" in states} or set(lacking[:1])
    too_many = me in hosted and any(its.state == "ready" for its in _extra(service, placement, me, hosted[me]))
    found = turn if too_many or me in lacking else set()
    return (found | (_others(hosted, me) if too_many else set())) - {me}


def _agree(hosted: Hosted, me: PeerId) -> bool:
    return not _others(hosted, me)


def _others(hosted: Hosted, me: PeerId) -> set[PeerId]:
    """Return who runs the service and does not say of its deployment what this node says."""
    mine = hosted[me]
    return {
        peer
        for peer, its in hosted.items()
        if its.instances and (its.revision, its.by, bool(its.failed)) != (mine.revision, mine.by, bool(mine.failed))
    }


def _extra(service: str, placement: Placement, peer: PeerId, said: HostedRecord) -> list[InstanceSaid]:
    """Return instances of a device beyond those that it ought to have; of equals those that start, then the last."""
    found: list[InstanceSaid] = []
    by_bundle: dict[str, list[InstanceSaid]] = {}
    for instance in said.instances:
        if instance.state in {"starting", "ready"}:
            by_bundle.setdefault(instance.bundle, []).append(instance)
    for bundle, instances in sorted(by_bundle.items()):
        key: Key = (service, bundle)
        ordered = sorted(instances, key=lambda instance: (instance.state != "ready", instance.id))
        found += ordered[placement.count(key, peer) :]
    return found
