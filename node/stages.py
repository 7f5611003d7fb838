"""How a stage of a language model comes to be on this node: its own layers' tensors fetched, checked and loaded."""

from functools import partial

import trio

from ..mesh.errors import PeerError
from .blobs.opening import stored_layer
from .blobs.sharing import Blobs
from .deployments import DeploymentRecord
from .generation.engine import Engine
from .language.config import parse_config
from .language.engine import load_engine
from .placement import Run


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
        await self._blobs.fetch_layers(name, manifest, range(first, end))
        config = parse_config(manifest.config)
        tensors = partial(stored_layer, self._blobs.store, manifest)
        return await trio.to_thread.run_sync(
            lambda: load_engine(config, first, end, tensors, record.precision), abandon_on_cancel=False
        )
