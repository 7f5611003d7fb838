"""What ought to be done about all services together: the same on every node that sees the same. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ....mesh.identity import PeerId
from ..records import HostedRecord, Offering, Release, ServiceRecord
from ..spec import Needs
from .placing import Device, Job, Key, Placement, place
from .rollout import Goal, Hosted, current, goal
from .scaling import wanted_of
from .view import Deployed, ServiceView

_CORES_MAX = 2**20  # what a record may say beyond that is nonsense, and sums stay exact
_BYTES_MAX = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What the records say of services."""

    services: Mapping[str, Deployed] = field(default_factory=dict)  # that ought to run
    hosted: Mapping[str, Hosted] = field(default_factory=dict)
    offerings: Mapping[PeerId, Offering] = field(default_factory=dict)
    barred: Mapping[str, frozenset[PeerId]] = field(default_factory=dict)  # by service: whose grant lets not host it

    def hosts(self, service: str) -> frozenset[PeerId]:
        """Return the devices whose grant and offer let them host a service."""
        return frozenset(self.offerings) - self.barred.get(service, frozenset())

    def without(self, ignored: Mapping[str, frozenset[PeerId]]) -> "Picture":
        """Return the same as if some devices, by service, could not host it and said nothing of it."""
        if not ignored:
            return self
        hosted = {
            name: {peer: its for peer, its in said.items() if peer not in ignored.get(name, ())}
            for name, said in self.hosted.items()
        }
        barred = {
            name: self.barred.get(name, frozenset()) | ignored.get(name, frozenset())
            for name in {*self.barred, *ignored}
        }
        return replace(self, hosted=hosted, barred=barred)

    def with_word_of(self, peer: PeerId, said: Mapping[str, HostedRecord]) -> "Picture":
        """Return the same with a peer's latest word in place of what its records say."""
        hosted: dict[str, Hosted] = {}
        for name in {*self.hosted, *said}:
            others = {owner: its for owner, its in self.hosted.get(name, {}).items() if owner != peer}
            hosted[name] = others | ({peer: said[name]} if name in said else {})
        return replace(self, hosted=hosted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Goals and places of all services."""

    goals: Mapping[str, Goal]
    placement: Placement

    def missing(self, service: str) -> int:
        """How many instances have no device that they fit."""
        return sum(number for (name, _), number in self.placement.missing.items() if name == service)


def picture_of(view: ServiceView) -> Picture:
    """Return all that the records say of services, as it is now."""
    services = {name: its for name, its in view.known().items() if not its.record.removed and its.record.releases}
    offerings = view.offerings()
    barred = {name: frozenset(peer for peer in offerings if not view.may_host(peer, name)) for name in services}
    return Picture(services=services, hosted=view.hosted(), offerings=offerings, barred=barred)


def outlook(picture: Picture) -> Outlook:
    """Derive goals and places from a picture."""
    goals = {}
    for name, service in picture.services.items():
        hosted = picture.hosted.get(name, {})
        goals[name] = goal(service.record, hosted, wanted_of(service.record, hosted, picture.hosts(name)))
    jobs = [job for name in picture.services for job in _jobs(name, picture, goals[name])]
    devices = [
        Device(peer=peer, memory_bytes=min(offer.memory_bytes, _BYTES_MAX), cores_m=_cores_m(offer.cores))
        for peer, offer in picture.offerings.items()
    ]
    return Outlook(goals=goals, placement=place(jobs, devices, _running(picture), _occupied(picture, goals)))


def _jobs(name: str, picture: Picture, wanted: Goal) -> Iterator[Job]:
    record = picture.services[name].record
    for release in record.releases:
        count = wanted.counts.get(release.bundle.digest, 0)
        if count:
            yield Job(
                key=(name, release.bundle.digest),
                count=count,
                memory_bytes=release.needs.memory_bytes,
                cores_m=_cores_m(release.needs.cores),
                may=frozenset(peer for peer in picture.hosts(name) if _can(picture, name, record, release, peer)),
            )


def _can(picture: Picture, name: str, record: ServiceRecord, release: Release, peer: PeerId) -> bool:
    offer, said = picture.offerings[peer], picture.hosted.get(name, {}).get(peer)
    has = set(record.on) <= set(offer.labels) and set(release.needs.devices) <= set(offer.devices)
    does_not = said is not None and current(record, said) and release.bundle.digest in {*said.failed, *said.refused}
    return has and not does_not


def _running(picture: Picture) -> dict[Key, dict[str, int]]:
    found: dict[Key, dict[str, int]] = {}
    for name, hosted in picture.hosted.items():
        for peer, its in hosted.items():
            for instance in its.instances:
                if instance.state in {"starting", "ready"}:
                    counts = found.setdefault((name, instance.bundle), {})
                    counts[peer] = counts.get(peer, 0) + 1
    return found


def _occupied(picture: Picture, goals: Mapping[str, Goal]) -> dict[str, int]:
    """Return the memory of instances that are to end, or do: what comes has to fit beside them."""
    found: dict[str, int] = {}
    for name, hosted in picture.hosted.items():
        needs = _needs(picture, name)
        counts = goals[name].counts if name in goals else {}
        for peer, its in hosted.items():
            for instance in its.instances:
                if instance.state == "draining" or instance.bundle not in counts:
                    found[peer] = found.get(peer, 0) + needs.get(instance.bundle, Needs(memory_bytes=0)).memory_bytes
    return found


def _needs(picture: Picture, name: str) -> dict[str, Needs]:
    service = picture.services.get(name)
    return {} if service is None else {release.bundle.digest: release.needs for release in service.record.releases}


def _cores_m(cores: float) -> int:
    return round(cores * 1000) if 0 <= cores <= _CORES_MAX else _CORES_MAX * 1000 * (cores > 0)  # NaN gives none
