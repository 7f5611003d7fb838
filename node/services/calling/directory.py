"""What one caller knows of each service: what ought to run, who is ready, and how its own calls there have gone.

It is read anew when the picture has changed, and not for each call.
"""

import random
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ....mesh.errors import UsageError
from ....mesh.identity import PeerId
from ...config import did_you_mean
from ..deciding.rollout import shares
from ..records import HostedRecord, ServiceRecord
from ..spec import MethodBrief
from .balancer import Balancer, Replica


class Pictured(Protocol):
    """What is read of services (`deciding/view.py`)."""

    def services(self) -> dict[str, ServiceRecord]: ...
    def hosted(self) -> dict[str, dict[PeerId, HostedRecord]]: ...


@dataclass(slots=True)
class Known:
    """One service as this caller knows it."""

    name: str
    balancer: Balancer
    moved: trio.Event = field(default_factory=trio.Event)  # is set when a call of ours has ended
    record: ServiceRecord = field(default_factory=lambda: ServiceRecord(revision=0, releases=()))
    hosted: Mapping[PeerId, HostedRecord] = field(default_factory=dict)
    waiting: int = 0  # calls that nobody has taken yet
    woken_at: float = float("-inf")  # when it was last asked to be started
    turns: dict[str, trio.Lock] = field(default_factory=dict)  # by method

    def see(self, record: ServiceRecord, hosted: Mapping[PeerId, HostedRecord]) -> None:
        """Take what the picture says now."""
        if record == self.record and hosted == self.hosted:
            return
        self.record, self.hosted = record, hosted
        replicas = [replica for peer, said in hosted.items() for replica in _replicas(peer, said)]
        self.balancer.see(replicas, shares(record, hosted))

    def has_moved(self) -> None:
        """Wake whoever waits for a replica."""
        self.moved.set()
        self.moved = trio.Event()

    def turn(self, method: str) -> trio.Lock:
        """Hold this to look for a replica: of calls alike the first looks, else each end of a call would wake all."""
        return self.turns.setdefault(method, trio.Lock())

    def brief(self, method: str, version: str = "") -> MethodBrief:
        """Return what is known of a method: of this release, or of the newest that has it. Raises UsageError."""
        names = list[str]()
        for release in reversed(self.record.releases):
            for brief in release.methods if version in {"", release.version} else ():
                if brief.name == method:
                    return brief
                names.append(brief.name)
        if not names:
            here = ", ".join(release.version for release in self.record.releases)
            raise NoService(f"{self.name!r} has no release {version!r}; there is {here}.")
        has = ", ".join(sorted(set(names)))
        raise NoService(f"{self.name!r} has no method {method!r}.{did_you_mean(method, names)} It has {has}.")

    def stays(self, method: str) -> bool:
        """Whether a method is called on the caller's own device alone: if any release says so, for all."""
        briefs = (brief for release in self.record.releases for brief in release.methods)
        return any(brief.name == method and brief.where == "here" for brief in briefs)

    def without(self, method: str) -> list[Replica]:
        """Return the replicas of releases that have no such method."""
        lacking = {
            release.version
            for release in self.record.releases
            if not any(brief.name == method for brief in release.methods)
        }
        return [replica for replica in self.balancer.replicas if replica.version in lacking]

    def newest(self) -> str:
        """Return the newest version that is ready somewhere, else the newest."""
        ready = {replica.version for replica in self.balancer.replicas}
        versions = [release.version for release in reversed(self.record.releases)]
        return next((version for version in versions if version in ready), versions[0])

    def trouble(self) -> str:
        """Say why nobody is ready, as far as hosts have told."""
        said = [one.reason for host in self.hosted.values() for one in host.instances if one.reason]
        said += [why for host in self.hosted.values() for why in host.failed.values()]
        return f" ({said[-1]})" if said else ""


class Directory:
    """All services that this caller may call."""

    def __init__(self, view: Pictured, changed: Callable[[], trio.Event]) -> None:
        """``changed`` gives the event that is set at the next change of the picture."""
        self._view = view
        self._changed = changed
        self._seen: trio.Event | None = None
        self._known: dict[str, Known] = {}

    def known(self, name: str) -> Known:
        """Return one service. Raises UsageError that names the nearest one when there is none of this name."""
        found = self.all()
        if name not in found:
            raise NoService(f"No service {name!r} runs in this mesh.{did_you_mean(name, sorted(found))}")
        return found[name]

    def all(self) -> Mapping[str, Known]:
        """Return all services, by name."""
        if self._seen is None or self._seen.is_set():
            self._seen = self._changed()
            self._read()
        return self._known

    def _read(self) -> None:
        services, hosted = self._view.services(), self._view.hosted()
        self._forget(services)
        for name, record in services.items():
            if name not in self._known:
                self._known[name] = Known(name, Balancer(random.Random(secrets.randbits(64))))
            self._known[name].see(record, hosted.get(name, {}))

    def _forget(self, services: Collection[str]) -> None:
        for gone in [name for name in self._known if name not in services]:
            self._known.pop(gone).has_moved()  # whoever waits for it looks again, and finds that it is gone


class NoService(UsageError):
    """No service, release or method of this name is there."""


def _replicas(peer: PeerId, said: HostedRecord) -> list[Replica]:
    ready: dict[str, list[str]] = {}
    for one in said.instances:
        if one.state == "ready":
            ready.setdefault(one.version, []).append(one.id)
    return [Replica(peer, version, tuple(sorted(ids))) for version, ids in sorted(ready.items())]
