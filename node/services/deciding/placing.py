"""Which device runs how many instances of what: a pure function, computed by every node for itself. No scheduler node.

Invariants: equal pictures give equal placements; one that was followed stays (what runs where it may run is kept, and
only then is anything added); no device is given more memory or cores than it offers. Replicas of a service lie on as
many devices as there are: where one has two more than another could have, one moves. Where all is alike, a hash of the
service's and the device's names decides, so that different services lie on different devices (rendezvous hashing:
Thaler and Ravishankar 1998).

A model's placement (`node/placement`) seeks cuts through layers and a quick way through them; a replica has neither,
so all that the two have in common is that they are functions of the picture.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Key = tuple[str, str]  # a service's name and a bundle's digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one device gives. Cores are in thousandths, so that sums are exact."""

    peer: str
    memory_bytes: int
    cores_m: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """So many instances of one bundle, each of which takes so much, on any of these devices."""

    key: Key
    count: int
    memory_bytes: int
    cores_m: int
    may: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where instances ought to run, and how many found no place."""

    counts: Mapping[Key, Mapping[str, int]] = field(default_factory=dict)
    missing: Mapping[Key, int] = field(default_factory=dict)

    def count(self, key: Key, peer: str) -> int:
        return self.counts.get(key, {}).get(peer, 0)


def place(
    jobs: Sequence[Job],
    devices: Iterable[Device],
    running: Mapping[Key, Mapping[str, int]],
    occupied: Mapping[str, int] | None = None,
) -> Placement:
    """Place all jobs, in the order of their keys. ``running`` is what runs now, or starts.

    ``occupied`` is memory in bytes that instances take which end soon: what is added has to fit beside them.
    """
    work = _Work(sorted(devices, key=lambda device: device.peer), occupied or {})
    ordered = sorted(jobs, key=lambda job: job.key)
    for job in ordered:
        work.keep(job, running.get(job.key, {}))
    work.free_is_left()
    for job in ordered:
        work.fill(job)
    for job in ordered:
        work.level(job)
    missing = {job.key: job.count - sum(work.counts[job.key].values()) for job in ordered}
    return Placement(
        counts={key: dict(count) for key, count in work.counts.items()},
        missing={key: number for key, number in missing.items() if number},
    )


class _Work:
    def __init__(self, devices: Sequence[Device], occupied: Mapping[str, int]) -> None:
        self.counts: dict[Key, Counter[str]] = {}
        self._of_service: dict[str, Counter[str]] = {}
        self._memory = {device.peer: device.memory_bytes for device in devices}
        self._cores = {device.peer: device.cores_m for device in devices}
        self._occupied = occupied

    def keep(self, job: Job, running: Mapping[str, int]) -> None:
        """Take what runs, one of each device before a second of any."""
        self.counts[job.key] = Counter()
        self._of_service.setdefault(job.key[0], Counter())
        for level in range(max(running.values(), default=0)):
            for peer in _ranked(job, (peer for peer, count in running.items() if count > level)):
                if self._wants(job) and self._fits(job, peer):
                    self._add(job, peer, 1)

    def free_is_left(self) -> None:
        """From now on only what is really free is given away."""
        for peer, memory_bytes in self._occupied.items():
            if peer in self._memory:
                self._memory[peer] -= memory_bytes

    def fill(self, job: Job) -> None:
        while self._wants(job):
            able = [peer for peer in _ranked(job, job.may) if self._fits(job, peer)]
            if not able:
                return
            self._add(job, min(able, key=lambda peer: self._of_service[job.key[0]][peer]), 1)

    def level(self, job: Job) -> None:
        """Move instances from devices that have two more than others could have."""
        lying = self._of_service[job.key[0]]
        while True:
            able = [peer for peer in _ranked(job, job.may) if self._fits(job, peer)]
            here = [peer for peer in reversed(_ranked(job, self.counts[job.key])) if self.counts[job.key][peer]]
            if not able or not here:
                return
            least = min(able, key=lambda peer: lying[peer])
            most = max(here, key=lambda peer: lying[peer])
            if lying[most] - lying[least] < 2:
                return
            self._add(job, most, -1)
            self._add(job, least, 1)

    def _wants(self, job: Job) -> bool:
        return sum(self.counts[job.key].values()) < job.count

    def _fits(self, job: Job, peer: str) -> bool:
        return (
            peer in job.may
            and job.memory_bytes <= self._memory.get(peer, -1)
            and job.cores_m <= self._cores.get(peer, -1)
        )

    def _add(self, job: Job, peer: str, number: int) -> None:
        self.counts[job.key][peer] += number
        self._of_service[job.key[0]][peer] += number
        self._memory[peer] -= number * job.memory_bytes
        self._cores[peer] -= number * job.cores_m


def _ranked(job: Job, peers: Iterable[str]) -> list[str]:
    """Return peers in an order of this service's own, which a device that comes or goes does not change for others."""
    return sorted(peers, key=lambda peer: hashlib.sha256(f"{job.key[0]}/{peer}".encode()).digest())
