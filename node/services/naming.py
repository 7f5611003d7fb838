"""Which bundles the services in the picture are made of: what peers may ask for, and what must not be removed."""

from collections.abc import Callable

from ..deployments import BlobRef
from .deciding.view import ServiceView


class BundleNames:
    """Reads them out of the records; ``others`` says which blobs the store has to keep for anything else."""

    def __init__(self, view: ServiceView, others: Callable[[], frozenset[str]]) -> None:
        self._view = view
        self._others = others

    def names(self, model: str, ref: BlobRef) -> bool:
        """Whether a service of that name has a release with this bundle."""
        service = self._view.services().get(model)
        return service is not None and any(release.bundle == ref for release in service.releases)

    def in_use(self) -> frozenset[str]:
        """Return the digests of all blobs that are needed here."""
        return self._others()

    def digests(self) -> frozenset[str]:
        """Return those of all bundles that ought to run somewhere."""
        services = self._view.services().values()
        return frozenset(release.bundle.digest for service in services for release in service.releases)
