"""One node's part in services: what it gives to them, what it runs of them, and what its owner does with all of them.

The shell. Nothing is loaded or started before a service ought to run here.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import trio

from ...mesh import limits
from ...mesh.calls import Empty
from ...mesh.errors import LeptonError, LinkError, UsageError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ..blobs.naming import Naming
from ..blobs.sharing import OF_SERVICES, Blobs
from ..blobs.store import BlobStore
from ..config import ServicesConfig
from ..seeing.measures import Measures
from .bundling.admitting import check_allow
from .bundling.bundles import Bundles, Environment
from .calling.answering import Answering
from .calling.calling import Calling
from .calling.client import Clients
from .deciding.rollout import shares
from .deciding.scaling import leader
from .deciding.view import ServiceView
from .hosting import Instances
from .naming import BundleNames
from .operating import Describe, Operating, Progress
from .reading import LINES_MAX, LOG_BYTES_MAX, LOGS, WAKE, LogsWanted, Reading, unpacked
from .records import OFFERING, Offering
from .shell import Hosting

OpenPool = Callable[[Path], AbstractAsyncContextManager[Instances]]  # takes a folder for logs

_LOGS_TIMEOUT_S: Final = 5.0  # for a host to say what it has in memory
_LOGS_BYTES_MAX: Final = LOG_BYTES_MAX + limits.KIB  # the lines, and the message that they come with


class Services:
    """What this node has to do with services."""

    def __init__(
        self,
        mesh: Mesh,
        config: ServicesConfig,
        folder: Path,
        store: BlobStore,
        naming: Naming,
        describe: Describe,
        *,
        pool: OpenPool | None = None,
        environment: Environment | None = None,
        measures: Measures | None = None,
    ) -> None:
        """``folder`` is for unpacked bundles and logs; ``pool`` opens what runs instances: without it none run here.

        Raises UsageError for a configuration that cannot be meant.
        """
        check_allow(config.allow)
        self.view = ServiceView(mesh)
        self.instances: Instances | None = None  # what runs here, while the node hosts
        self.hosting: Hosting | None = None
        self.operating = Operating(mesh, self.view, store, describe)
        self.answering: Answering | None = None  # while the node hosts
        self.calling = Calling(mesh, self.view, lambda: self.answering, wake=self.wake, measures=measures)
        self.clients = Clients(self.calling)
        self._mesh = mesh
        self._config = config
        self._folder = folder
        self._pool = pool if config.host else None
        self._names = BundleNames(self.view, naming.in_use)
        naming.others.append(self._names.digests)
        self._bundles = Bundles(Blobs(mesh, store, self._names, ways=OF_SERVICES), folder / "bundles", environment)

    async def run(self) -> None:
        """Say what this device gives to services, and host them, for as long as the node runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.operating.run)
            await self._host()

    async def _host(self) -> None:
        if self._pool is None:
            return
        await self._bundles.forget_others(self._names.digests())
        async with self._pool(self._folder / "logs") as instances:
            self.instances = instances
            self.hosting = Hosting(self._mesh, self.view, self._bundles, instances, self._config, self._offering())
            self._mesh.calls.serve(*Reading(instances, self.hosting).methods())
            self.answering = Answering(instances)
            self.answering.serve(self._mesh.calls)
            self._mesh.publish(OFFERING, "self", self._offering())
            await self.hosting.run()

    # -- the operator's side ------------------------------------------------------------------------------------------

    async def deploy(
        self,
        folder: str | Path,
        *,
        replicas: int | None = None,
        replicas_max: int | None = None,
        on: tuple[str, ...] | None = None,
        share: int = 100,
        queue_ms: float | None = None,
        idle_s: float | None = None,
    ) -> str:
        """Have the mesh run a folder's service, and return its name; `wait_deployed` waits until it does.

        What is not given stays as it was, or is one replica on any device. With ``replicas_max`` it scales by itself,
        down to ``replicas``. A version that runs already is replaced step by step; with a ``share`` below 100 (per cent
        of calls and replicas) it goes on beside the new one. Raises UsageError for a folder or values that cannot be,
        Refused without the grant deploy:NAME.
        """
        said: dict[str, Any] = {"replicas": replicas, "on": on, "queue_ms": queue_ms, "idle_s": idle_s}
        if replicas_max is not None:
            said["replicas_max"] = replicas_max
        return await self.operating.deploy(_path(folder), share=share, **said)

    async def update(self, folder: str | Path) -> str:
        """Replace what runs of a folder's service by its version there, step by step. Raises like `deploy`."""
        return await self.operating.deploy(_path(folder), update=True)

    async def wait_deployed(self, name: str, *, timeout_s: float = 60.0) -> None:
        """Wait until a service runs as it was stated last; also one of which this node has not heard yet.

        Raises RolledBack when an update failed, DoesNotStart when no device runs it, LinkError when it takes longer.
        """

        async def nothing(_progress: Progress) -> None: ...

        with trio.move_on_after(timeout_s):
            while name not in self.view.services():  # a node that has just started has heard of none
                await self._mesh.changed.wait()
            await self.operating.watch(name, nothing)
            return
        raise LinkError(f"{name!r} does not run as it ought to after {timeout_s:g} s: see `lepton-node service list`.")

    def scale(self, name: str, replicas: int, *, replicas_max: int | None = None) -> None:
        """Have so many replicas of a service. Raises UsageError, Refused."""
        self.operating.scale(name, replicas, replicas_max=replicas_max)

    def share(self, name: str, version: str, share: int) -> None:
        """Give one of two versions that run side by side so many per cent of the calls. Raises UsageError, Refused."""
        self.operating.share(name, version, share)

    def remove(self, name: str) -> None:
        """End a service everywhere. Raises UsageError when there is none of that name, Refused."""
        self.operating.remove(name)

    async def logs(self, name: str, *, lines: int = 100) -> dict[PeerId, list[str]]:
        """Return the last lines that a service's instances printed, from all its hosts; also those that ended lately.

        A host that does not answer gives one line that says so. Raises UsageError when there is no such service.
        """
        hosts = self.view.hosted().get(name, {})
        if not hosts and name not in self.view.services():
            raise UsageError(f"No service {name!r} is deployed in this mesh.")
        others = self.operating.picture().hosts(name)  # what is gone from them again may have left its last words
        found: dict[PeerId, list[str]] = {}

        async def ask(peer: PeerId) -> None:
            wanted = LogsWanted(lines=lines)
            try:
                answer = await self._mesh.calls.call(
                    peer, LOGS, wanted, Empty, scope=name, timeout_s=_LOGS_TIMEOUT_S, answer_bytes_max=_LOGS_BYTES_MAX
                )
                found[peer] = [line for array in answer.arrays[:1] for line in unpacked(array)][-LINES_MAX:]
            except LeptonError as error:
                found[peer] = [f"(its log cannot be had: {error})"] if peer in hosts else []

        async with trio.open_nursery() as nursery:
            for peer in {*hosts, *others}:
                nursery.start_soon(ask, peer)
        return {peer: lines for peer, lines in sorted(found.items()) if lines or peer in hosts}

    # -- for callers --------------------------------------------------------------------------------------------------

    def shares(self, name: str) -> dict[str, float]:
        """Return the share of calls of each version of a service, as things are now."""
        record = self.view.services().get(name)
        return {} if record is None else shares(record, self.view.hosted().get(name, {}))

    async def wake(self, name: str) -> None:
        """Have a service started that has scaled down to nothing. Raises LinkError when nobody can be asked."""
        first = leader(self.operating.picture().hosts(name))
        if first is not None:
            await self._mesh.calls.call(first, WAKE, Empty(), Empty, scope=name)

    def progress(self, name: str) -> Progress:
        """Say how far what was stated last of a service has come. Raises UsageError for no such service."""
        return self.operating.progress(name)

    def _offering(self) -> Offering:
        config = self._config
        return Offering(
            memory_bytes=config.memory_bytes,
            cores=config.cores_given,
            labels=tuple(sorted(set(config.labels))),
            devices=tuple(sorted(config.devices)),
        )


def _path(folder: str | Path) -> Path:
    return Path(folder).expanduser()
