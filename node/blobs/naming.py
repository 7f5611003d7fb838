"""Which blobs the models in the picture are made of: what peers may ask for, and what must not be removed."""

import logging
from collections.abc import Callable

from ...mesh.errors import LeptonError, PeerError
from ...mesh.limits import MANIFEST_BYTES_MAX
from ..deployments import BlobRef, Manifest
from ..inference.view import View
from .manifests import read_manifest
from .store import BlobStore

log = logging.getLogger(__name__)


def refs_of(manifest: Manifest) -> frozenset[BlobRef]:
    """Every blob that a manifest names."""
    return frozenset({*manifest.files.values(), *(ref for layer in manifest.layers for ref in layer)})


class Naming:
    """Reads the names out of the records and of the manifests that are here."""

    def __init__(self, view: View, store: BlobStore) -> None:
        self._view = view
        self._store = store
        self.others: list[Callable[[], frozenset[str]]] = []  # digests that the store has to keep for something else
        self._named: dict[str, frozenset[BlobRef]] = {}  # manifest to what it names

    def names(self, model: str, ref: BlobRef) -> bool:
        """Whether a model of that name is made of this blob, as far as can be known here."""
        chain = self._view.models().get(model)
        if chain is not None and ref in chain.layers:
            return True
        manifest = self._manifests().get(model)
        return manifest is not None and (ref == manifest or ref in self._in(manifest))

    def in_use(self) -> frozenset[str]:
        """Return the digests of all blobs that a model is made of."""
        found = {ref.digest for model in self._view.models().values() for ref in model.layers}
        manifests = set(self._manifests().values())
        for manifest in manifests:
            found |= {manifest.digest, *(ref.digest for ref in self._in(manifest))}
        for digest in self._named.keys() - {manifest.digest for manifest in manifests}:
            del self._named[digest]
        return frozenset(found).union(*(other() for other in self.others))

    def _manifests(self) -> dict[str, BlobRef]:
        return {name: deployment.manifest for name, deployment in self._view.deployments().items()}

    def _in(self, manifest: BlobRef) -> frozenset[BlobRef]:
        if manifest.digest not in self._named:
            if manifest.size_bytes > MANIFEST_BYTES_MAX or not self._store.has(manifest):
                return frozenset()
            self._named[manifest.digest] = frozenset()
            try:
                read = read_manifest(self._store.get(manifest))  # once, and small: not worth a thread
            except PeerError as error:  # it will never be one
                log.warning("the manifest %s cannot be read: %s", manifest.digest[:8], error)
            except LeptonError as error:
                log.warning("the manifest %s cannot be read: %s", manifest.digest[:8], error)
                return self._named.pop(manifest.digest)
            else:
                self._named[manifest.digest] = refs_of(read)
        return self._named[manifest.digest]
