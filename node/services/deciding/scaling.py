"""How many replicas a service ought to have, by how long its calls wait. A machine without I/O: loads in, a number out.

There is no coordinator: of the devices that host services the one with the smallest id that is here counts (`leader`),
and says the number in its record. Being here is its lease: when it leaves, the next goes on from what runs then.
Under a partition each side has such a device and scales what it has of the service, so that both have at least the
least number; when they meet again the smallest id's number counts, and what is beyond it is ended. A node that sees
another leader than the rest for a moment does no harm: its own number is in its record, and nobody reads it.

It grows when calls wait for longer than the deployment says, for a while, and only once all that were wanted are
ready: an instance that starts has relieved nobody yet. It shrinks by one when calls have waited for next to nothing for
`idle_s`, and the rest could do the work; the last one ends when nobody has called for `idle_s`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ....mesh.identity import PeerId
from ..records import HostedRecord, InstanceSaid, ServiceRecord

UP_S: Final = 2.0  # calls have to wait for so long in a row: a burst that is over by then needs no instance
SLACK: Final = 0.25  # of the wait that makes it grow: below it one is too many. Far apart, so that it does not swing


def leader(hosts: Iterable[PeerId]) -> PeerId | None:
    """Return whose number counts, of the devices that are here and may host the service."""
    return min(hosts, default=None)


def wanted_of(record: ServiceRecord, hosted: Mapping[PeerId, HostedRecord], hosts: Iterable[PeerId]) -> int:
    """Return how many replicas there ought to be, as everybody reads it. Before it was said, what runs stays."""
    if record.replicas_max is None:
        return record.replicas
    first = leader(hosts)
    said = hosted[first].wanted if first is not None and first in hosted else None
    return _within(record, _running(hosted) if said is None else said)


def _running(hosted: Mapping[PeerId, HostedRecord]) -> int:
    return sum(1 for its in hosted.values() for instance in its.instances if instance.state in {"starting", "ready"})


def _within(record: ServiceRecord, number: int) -> int:
    most = record.replicas if record.replicas_max is None else max(record.replicas_max, record.replicas)
    return max(record.replicas, min(number, most))


def _places(record: ServiceRecord) -> int:
    """Return how many calls an instance works on at once, by the method that takes the fewest."""
    methods = record.releases[-1].methods
    return min(method.concurrency * method.batch_size_max for method in methods)


@dataclass(slots=True)
class Scaling:
    """One service's number, as the node sees it that counts."""

    wanted: int
    _busy_since: float | None = None
    _idle_since: float | None = None

    def wake(self) -> None:
        """Somebody calls: there has to be one."""
        self.wanted = max(self.wanted, 1)
        self._idle_since = None

    def look(self, record: ServiceRecord, instances: Iterable[InstanceSaid], now: float) -> int:
        """Take in what all hosts say of their instances, and return the number."""
        ready = [instance for instance in instances if instance.state == "ready"]
        self.wanted = _within(record, self.wanted)
        waits_ms = sum(instance.queue_ms for instance in ready) / len(ready) if ready else 0.0
        settled = len(ready) >= self.wanted
        busy = settled and bool(ready) and waits_ms > record.queue_ms
        self._busy_since = (self._busy_since if self._busy_since is not None else now) if busy else None
        idle = settled and self._can_spare(record, ready, waits_ms)
        self._idle_since = (self._idle_since if self._idle_since is not None else now) if idle else None
        if self._busy_since is not None and now - self._busy_since >= UP_S:
            self._set(record, self.wanted + max(1, self.wanted // 2))
        elif self._idle_since is not None and now - self._idle_since >= self._patience_s(record):
            self._set(record, self.wanted - 1)
        return self.wanted

    def deadline(self, record: ServiceRecord) -> float | None:
        """When it would change if nothing else does."""
        due = [] if self._busy_since is None else [self._busy_since + UP_S]
        if self._idle_since is not None and self.wanted > record.replicas:
            due.append(self._idle_since + self._patience_s(record))
        return min(due, default=None)

    def _can_spare(self, record: ServiceRecord, ready: list[InstanceSaid], waits_ms: float) -> bool:
        if self.wanted <= 1:  # the last one, which its host says is quiet after `idle_s`
            return all(instance.quiet for instance in ready)
        running = sum(instance.running for instance in ready)
        return waits_ms <= SLACK * record.queue_ms and running <= (self.wanted - 1) * _places(record)

    def _patience_s(self, record: ServiceRecord) -> float:
        return record.idle_s if self.wanted > 1 else 0.0

    def _set(self, record: ServiceRecord, number: int) -> None:
        self.wanted = _within(record, number)
        self._busy_since = self._idle_since = None
