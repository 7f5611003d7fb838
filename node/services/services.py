"""One node's part in services: what it gives to them, what it runs of them, and what it reads of all of them.

The shell. Nothing is loaded or started before a service ought to run here.
"""

from pathlib import Path

from ...mesh.mesh import Mesh
from ..blobs.naming import Naming
from ..blobs.sharing import OF_SERVICES, Blobs
from ..blobs.store import BlobStore
from ..config import ServicesConfig
from .admitting import check_allow
from .hosting import Instances
from .naming import Bundles
from .records import OFFERING, Offering
from .view import ServiceView


class Services:
    """What this node has to do with services."""

    def __init__(
        self,
        mesh: Mesh,
        config: ServicesConfig,
        folder: Path,
        store: BlobStore,
        naming: Naming,
        instances: Instances | None = None,
    ) -> None:
        """``folder`` is for unpacked bundles; without ``instances`` it hosts nothing, whatever the configuration.

        Raises UsageError for a configuration that cannot be meant.
        """
        check_allow(config.allow)
        self.view = ServiceView(mesh)
        self.instances = instances
        self._mesh = mesh
        bundles = Bundles(self.view, naming.in_use)
        naming.others.append(bundles.digests)
        self._blobs = Blobs(mesh, store, bundles, ways=OF_SERVICES)
        self._config = config
        self._folder = folder

    @property
    def hosts(self) -> bool:
        """Whether services may run here at all."""
        return self._config.host and self.instances is not None

    async def run(self) -> None:
        """Say what this device gives to services."""
        if self.hosts:
            self._mesh.publish(OFFERING, "self", self._offering())

    def _offering(self) -> Offering:
        config = self._config
        return Offering(
            memory_bytes=config.memory_bytes,
            cores=config.cores_given,
            labels=tuple(sorted(set(config.labels))),
            devices=tuple(sorted(config.devices)),
        )
