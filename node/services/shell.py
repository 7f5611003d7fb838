"""The shell of `deciding/host.py`: tells the machine what happens, and does what it says. It decides nothing."""

import logging
import random
import secrets
from collections.abc import Mapping

import trio

from ...mesh.errors import LeptonError, PeerError, UsageError
from ...mesh.mesh import Mesh
from ..config import ServicesConfig
from .bundling.admitting import refusal
from .bundling.bundles import Bundles
from .deciding.host import Host
from .deciding.outlook import Picture, picture_of
from .deciding.steps import (
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
from .deciding.view import ServiceView
from .errors import DoesNotStart
from .hosting import Instances as Pool
from .hosting import Wanted
from .records import HOSTED, Offering, Release

_EVENTS_MAX = 64  # that wait for the machine; whoever brings more waits
_AGAIN_S = 60.0  # what nobody says: that a grant has ended

log = logging.getLogger(__name__)


class Hosting:
    """What runs on this device, and why not."""

    def __init__(
        self,
        mesh: Mesh,
        view: ServiceView,
        bundles: Bundles,
        pool: Pool,
        config: ServicesConfig,
        offering: Offering,
    ) -> None:
        self.machine = Host(mesh.me, offering, random.Random(secrets.randbits(64)))
        self._mesh = mesh
        self._view = view
        self._bundles = bundles
        self._pool = pool
        self._config = config
        # None: look at what runs. That is looked at when its turn comes: what was seen before an instance was started
        # would say that it is gone, and another would be started, which nobody ever ends.
        self._tell, self._events = trio.open_memory_channel[Event | None](_EVENTS_MAX)

    async def run(self) -> None:
        """Host for as long as the node runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_records)
            nursery.start_soon(self._watch_instances)
            while True:
                event: Event | None = None
                with trio.move_on_at(self.machine.deadline):
                    event = await self._events.receive()
                for effect in self.machine.handle(event or self._running(), trio.current_time()):
                    self._do(effect, nursery)

    async def wake(self, service: str) -> None:
        """Have the machine know that somebody wants to call a service."""
        await self._tell.send(Woken(service))

    async def _watch_records(self) -> None:
        known: Seen | None = None
        while True:
            changed = self._mesh.changed
            picture = picture_of(self._view)
            seen = Seen(picture=picture, refusals=self._refusals(picture))
            if seen != known:
                known = seen
                await self._tell.send(seen)
            with trio.move_on_after(_AGAIN_S):
                await changed.wait()

    def _refusals(self, picture: Picture) -> Mapping[tuple[str, str], str]:
        found = {}
        for name, service in picture.services.items():
            for release in service.record.releases:
                why = refusal(
                    name,
                    release,
                    mesh=self._mesh.root,
                    authority_of=self._view.authority,
                    allow=self._config.allow,
                )
                if why:
                    found[name, release.bundle.digest] = why
        return found

    async def _watch_instances(self) -> None:
        while True:
            changed = self._pool.changed
            await self._tell.send(None)
            await changed.wait()

    def _running(self) -> Instances:
        return Instances(
            tuple(
                Ran(
                    id=name,
                    state=its.state,
                    reason=its.reason,
                    restarts=its.restarts,
                    running=its.load.running,
                    queue_ms=its.queue_ms,
                    calls=its.calls,
                )
                for name, its in self._pool.running.items()
            )
        )

    def _do(self, effect: Effect, nursery: trio.Nursery) -> None:
        match effect:
            case Fetch(service, release):
                nursery.start_soon(self._fetch, service, release)
            case Start(name, service, release):
                log.info("starting an instance of %s %s: %s", service, release.version, name)
                self._pool.start(self._wanted(name, release))
            case Stop(name, drain_s):
                log.info("ending the instance %s within %.0f s", name, drain_s)
                self._pool.stop(name, drain_s=drain_s)
            case Say(service, record):
                try:
                    self._mesh.publish(HOSTED, service, record)
                except UsageError as error:  # of more services than a node can say something about
                    log.error("others do not hear what runs here of %s: %s", service, error)  # noqa: TRY400 - its text says all
            case Unsay(service):
                self._mesh.withdraw(HOSTED, service)

    async def _fetch(self, service: str, release: Release) -> None:
        digest = release.bundle.digest
        try:
            await self._bundles.make_ready(service, release)
            event: Event = Fetched(digest)
        except LeptonError as error:
            log.warning("the bundle of %s %s is not here: %s", service, release.version, error)
            event = Unfetched(digest, str(error).partition("\n")[0], final=isinstance(error, PeerError | DoesNotStart))
        await self._tell.send(event)

    def _wanted(self, name: str, release: Release) -> Wanted:
        unpacked = self._bundles[release.bundle.digest]
        devices = {needed: self._config.devices[needed] for needed in release.needs.devices}
        return Wanted(
            id=name,
            spec=unpacked.spec,
            bundle=release.bundle.digest,
            folder=unpacked.folder,
            python=unpacked.python,
            devices=devices,
        )
