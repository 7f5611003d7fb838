"""Hosts of services on virtual time: their machines, records that arrive late and out of order, instances that start.

One seed, one history. Records of one owner replace each other as in the mesh: what is older than what is known of it is
passed over; records of different owners overtake each other freely.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lepton.mesh.identity import PeerId
from lepton.node.deployments import BlobRef
from lepton.node.services.deciding.host import Host
from lepton.node.services.deciding.outlook import Picture
from lepton.node.services.deciding.steps import (
    Effect,
    Event,
    Fetch,
    Fetched,
    Instances,
    Ran,
    Say,
    Seen,
    Start,
    Stop,
    Unfetched,
    Unsay,
    Woken,
)
from lepton.node.services.deciding.view import Deployed
from lepton.node.services.records import HostedRecord, Offering, Release, ServiceRecord
from lepton.node.services.spec import MethodBrief, Needs

MIB = 1024 * 1024
ROOMY = Offering(memory_bytes=2048 * MIB, cores=16.0)


def digest(version: int) -> str:
    return f"{version:064x}"


def release(version: int, share: int = 100, **needs: Any) -> Release:
    return Release(
        version=f"{version}.0",
        bundle=BlobRef(digest=digest(version), size_bytes=10),
        signer=PeerId("op"),
        signature=bytes(64),
        needs=Needs(**{"memory_bytes": 100 * MIB, **needs}),
        methods=(MethodBrief(name="see", timeout_s=5.0),),
        share=share,
    )


def wanted(revision: int, *releases: Release, replicas: int = 3, **changes: Any) -> ServiceRecord:
    return ServiceRecord(revision=revision, releases=releases, replicas=replicas, **changes)


def update(revision: int, old: int, new: int, **changes: Any) -> ServiceRecord:
    return wanted(revision, release(old, 0), release(new), replaces=revision - 1, **changes)


@dataclass
class Device:
    """One device: its machine, what runs there, and what it has heard."""

    name: PeerId
    machine: Host
    offering: Offering
    runs: dict[str, Ran] = field(default_factory=dict)
    of: dict[str, str] = field(default_factory=dict)  # instance to bundle
    heard: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)  # owner and kind/name to the newest
    broken: set[str] = field(default_factory=set)  # bundles that do not start here
    away: set[str] = field(default_factory=set)  # bundles that nobody gives it
    load: Callable[[str, float], dict[str, Any]] | None = None  # what an instance says of its calls


class Crowd:
    """All devices, and whoever deploys."""

    def __init__(self, seed: int, names: Iterable[str] = (), offering: Offering = ROOMY) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.devices: dict[str, Device] = {}
        self.least: dict[str, int] = {}  # by service: that many have to be ready, as long as it is here
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._sequence = itertools.count(1)
        self._words: dict[tuple[str, str], tuple[int, Any]] = {}
        for name in names:
            self.join(name, offering)

    # -- what happens -------------------------------------------------------------------------------------------------

    def join(self, name: str, offering: Offering = ROOMY) -> Device:
        device = Device(
            PeerId(name), Host(PeerId(name), offering, random.Random(f"{name}/{self.rng.random()}")), offering
        )
        self.devices[name] = device
        for key, word in self._words.items():
            self._carry(key, word, name)
        self._say(name, "offering/self", offering)
        device.heard[name, "offering/self"] = self._words[name, "offering/self"]
        self._see(device)
        self._tick(device)
        return device

    def leave(self, name: str) -> None:
        """Stop existing; the others notice, each in its own time."""
        del self.devices[name]
        for key in [key for key in self._words if key[0] == name and not key[1].startswith("service/")]:
            self._say(name, key[1], None)

    def claim(self, name: str, said: HostedRecord | None, service: str = "eyes") -> None:
        """Have a device that runs nothing offer all that it could, and say this of a service."""
        self._say(name, "offering/self", ROOMY)
        self._say(name, f"hosted/{service}", said)

    def deploy(self, record: ServiceRecord, *, by: str = "op", service: str = "eyes") -> None:
        self._say(by, f"service/{service}", record)

    def wake(self, name: str, service: str = "eyes") -> None:
        self._handle(self.devices[name], Woken(service))

    def crash(self, name: str, instance: str) -> None:
        """End a process; its pool starts it again."""
        device = self.devices[name]
        ran = device.runs[instance]
        device.runs[instance] = Ran(id=instance, state="starting", restarts=ran.restarts + 1, reason="It crashed.")
        self._instances(device)
        self._later(self.rng.uniform(0.2, 1.0), lambda: self._ready(device, instance))

    # -- time ---------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, work = heapq.heappop(self._queue)
            work()
            for service, least in self.least.items():
                assert self.ready(service) >= least, f"{self.ready(service)} of {least} ready at {self.now:.2f} s"
        self.now = end

    def ready(self, service: str = "eyes", version: int | None = None) -> int:
        """How many are ready in truth."""
        return sum(1 for device in self.devices.values() for _ in self.on(device.name, service, version))

    def on(self, name: str, service: str = "eyes", version: int | None = None) -> list[str]:
        del service  # one is enough here
        device = self.devices[name]
        return [
            instance
            for instance, ran in device.runs.items()
            if ran.state == "ready" and (version is None or device.of[instance] == digest(version))
        ]

    def word(self, name: str, service: str = "eyes") -> HostedRecord | None:
        found: HostedRecord | None = self._words.get((name, f"hosted/{service}"), (0, None))[1]
        return found

    # -- the wires ----------------------------------------------------------------------------------------------------

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), work))

    def _say(self, owner: str, key: str, value: Any) -> None:
        word = self._words[owner, key] = (next(self._sequence), value)
        for name in self.devices:
            if name != owner:
                self._carry((owner, key), word, name)

    def _carry(self, key: tuple[str, str], word: tuple[int, Any], to: str) -> None:
        def arrive() -> None:
            device = self.devices.get(to)
            if device is not None and device.heard.get(key, (0, None))[0] < word[0]:
                device.heard[key] = word
                self._see(device)

        slow = self.rng.random() < 0.1
        self._later(self.rng.uniform(0.01, 8.0 if slow else 0.6), arrive)

    def _see(self, device: Device) -> None:
        services: dict[str, Deployed] = {}
        hosted: dict[str, dict[PeerId, HostedRecord]] = {}
        offerings: dict[PeerId, Offering] = {}
        for (owner, key), (_, value) in device.heard.items():
            kind, _, name = key.partition("/")
            if value is None:
                continue
            if kind == "offering":
                offerings[PeerId(owner)] = value
            elif kind == "hosted":
                hosted.setdefault(name, {})[PeerId(owner)] = value
            elif name not in services or (value.revision, owner) > (
                services[name].record.revision,
                services[name].owner,
            ):
                services[name] = Deployed(value, PeerId(owner))
        kept = {name: service for name, service in services.items() if not service.record.removed}
        self._handle(device, Seen(picture=Picture(services=kept, hosted=hosted, offerings=offerings)))

    # -- one device ---------------------------------------------------------------------------------------------------

    def _handle(self, device: Device, event: Event) -> None:
        if self.devices.get(device.name) is not device:
            return
        for effect in device.machine.handle(event, self.now):
            self._do(device, effect)

    def _tick(self, device: Device) -> None:
        if self.devices.get(device.name) is device:
            if device.machine.deadline <= self.now:
                self._instances(device)
            self._later(0.5, lambda: self._tick(device))

    def _instances(self, device: Device) -> None:
        if device.load is not None:
            for name, ran in device.runs.items():
                if ran.state == "ready":
                    device.runs[name] = Ran(id=name, state="ready", **device.load(name, self.now))
        self._handle(device, Instances(tuple(device.runs.values())))

    def _do(self, device: Device, effect: Effect) -> None:
        match effect:
            case Fetch(_, found):
                which = found.bundle.digest
                came: Event = Unfetched(which, "nobody has it") if which in device.away else Fetched(which)
                self._later(self.rng.uniform(0.05, 1.0), lambda: self._handle(device, came))
            case Start(name, _, found):
                device.runs[name] = Ran(id=name, state="starting")
                device.of[name] = found.bundle.digest
                self._later(self.rng.uniform(0.1, 2.0), lambda: self._ready(device, name))
            case Stop(name, _):
                device.runs[name] = Ran(id=name, state="draining")
                self._later(self.rng.uniform(0.0, 2.0), lambda: self._gone(device, name))
            case Say(service, record):
                self._say(device.name, f"hosted/{service}", record)
            case Unsay(service):
                self._say(device.name, f"hosted/{service}", None)

    def _ready(self, device: Device, name: str) -> None:
        if name in device.runs and device.runs[name].state == "starting":
            fails = device.of[name] in device.broken
            restarts = device.runs[name].restarts
            device.runs[name] = Ran(
                id=name, state="failed" if fails else "ready", reason="no module" if fails else "", restarts=restarts
            )
            self._instances(device)

    def _gone(self, device: Device, name: str) -> None:
        device.runs.pop(name, None)
        self._instances(device)
