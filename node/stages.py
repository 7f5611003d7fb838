"""How a stage of a language model comes to be on this node: its own layers' tensors fetched, checked and loaded."""

import math
from functools import partial
from typing import Final

import trio

from ..mesh.errors import PeerError
from .blobs.manifests import require_sizes
from .blobs.sharing import Blobs
from .blobs.store import BlobStore
from .deployments import DeploymentRecord, Manifest, Precision
from .generation.engine import Engine
from .language.config import LanguageConfig, parse_config
from .language.layout import layer_shapes, layers, sizes
from .placement import Run

_ELEMENT_BYTES_MAX: Final = 8  # of one number in a file: float64


class StageLoader:
    """Loads runs of layers for one node."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def load(self, name: str, record: DeploymentRecord, run: Run) -> Engine:
        """Load layers from ``run[0]`` up to, not including, ``run[1]``; nothing of the others is fetched.

        Raises LinkError when nobody has their weights, PeerError when the record and the model contradict each other,
        UsageError for a model that is not understood, LeptonError from the disk.
        """
        first, end = run
        manifest = await self._blobs.manifest(name, record.manifest)
        if (manifest.kind, len(manifest.layers)) != (record.kind, len(record.weights_bytes)):
            raise PeerError(f"The record of {name!r} does not describe the model that it names.")
        config = parse_config(manifest.config)
        require_true(name, record, manifest, config)
        await self._blobs.fetch_layers(name, manifest, range(first, end))
        return await trio.to_thread.run_sync(_load, self._blobs.store, manifest, run, record.precision)


def require_true(name: str, record: DeploymentRecord, manifest: Manifest, config: LanguageConfig) -> None:
    """Raise PeerError where a model takes more than its record says: by that it was placed, and memory set aside."""
    needs, count = sizes(config, record.precision), layers(config)
    told = (record.weights_bytes, record.cache_bytes)
    if any(len(said) != count for said in told) or any(
        need > said for need, said in zip((*needs.weights_bytes, *needs.cache_bytes), (*told[0], *told[1]), strict=True)
    ):
        raise PeerError(f"{name!r} takes more memory than the record says by which it was placed; deploy it again.")
    numbers = [sum(math.prod(shape) for shape in layer_shapes(config, layer).values()) for layer in range(count)]
    require_sizes(manifest, [number * _ELEMENT_BYTES_MAX for number in numbers], range(count))


def _load(store: BlobStore, manifest: Manifest, run: Run, precision: Precision) -> Engine:
    from .blobs.opening import stored_layer  # torch, in the thread that needs it
    from .language.engine import load_engine

    tensors = partial(stored_layer, store, manifest)
    return load_engine(parse_config(manifest.config), *run, tensors, precision)
