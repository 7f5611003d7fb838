"""Weights of layers: kept by their hash, given to peers, fetched from whichever peer has them."""

import logging
import random
import secrets

import numpy as np

from ...mesh import tensors
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import LeptonError, LinkError, UsageError
from ...mesh.identity import short
from ...mesh.mesh import Mesh
from ..blobs.hashing import ref_of_bytes
from ..blobs.layers import layer_blob
from ..blobs.store import BlobStore
from ..deployments import BlobRef
from ..models import Chain, ModelSpec, layer_count, layer_sizes_bytes, layer_tensors
from ..picture import MODEL, ModelRecord
from .messages import BlobWanted
from .view import View

# A layer that does not come at a megabyte a second, poor Wi-Fi, is asked of another peer, after this long at least.
_FETCH_TIMEOUT_S = 5.0
_FETCH_BYTES_PER_S = 1e6

log = logging.getLogger(__name__)


class Weights:
    """One node's store of layers, and its way to those of others."""

    def __init__(self, mesh: Mesh, view: View, blobs: BlobStore) -> None:
        self.blobs = blobs
        self._mesh = mesh
        self._view = view
        self._rng = random.Random(secrets.randbits(64))
        mesh.calls.serve(Method(name="blob.get", needs="infer", takes=BlobWanted, handler=self._give_blob))

    def publish(self, name: str, spec: ModelSpec, chain: Chain, *, version: int, copies: int) -> None:
        """Make this model the one to serve under its name."""
        layers = self.keep(spec, chain)
        self._mesh.publish(
            MODEL, name, ModelRecord(spec=spec, version=version, layers=layers, copies=copies), durable=True
        )

    def keep(self, spec: ModelSpec, chain: Chain) -> tuple[BlobRef, ...]:
        """Put every layer into the blob store, for peers to fetch; returns what they are called."""
        return tuple(self.blobs.put(layer_blob(layer_tensors(chain, index))) for index in range(layer_count(spec)))

    async def whole(self, name: str) -> tuple[ModelSpec, list[bytes]]:
        """Return a whole model: its description and each layer's safetensors bytes, fetched from whoever has them.

        Raises UsageError when there is no such model, LinkError when nobody has a layer.
        """
        model = self._view.model(name)
        return model.spec, [await self.fetch(name, model, index) for index in range(len(model.layers))]

    async def fetch(self, name: str, model: ModelRecord, index: int) -> bytes:
        """Return a layer from the store, or from whichever peer has it. Raises LinkError when nobody has."""
        ref = model.layers[index]
        if self.blobs.has(ref):
            try:
                return self.blobs.get(ref)
            except LeptonError as error:  # damaged, and removed for that
                log.warning("%s", error)
        timeout_s = _FETCH_TIMEOUT_S + layer_sizes_bytes(model.spec)[index] / _FETCH_BYTES_PER_S
        for peer in self._rng.sample(sorted(self._mesh.present), len(self._mesh.present)):
            try:
                answer = await self._mesh.calls.call(
                    peer, "blob.get", BlobWanted(ref=ref), Empty, scope=name, timeout_s=timeout_s
                )
            except LeptonError as error:
                log.debug("%s gives no blob %s: %s", short(peer), ref.digest[:8], error)
                continue
            data = tensors.buffer_of(answer.arrays[0]).tobytes() if len(answer.arrays) == 1 else b""
            if ref_of_bytes(data) == ref:
                self.blobs.put(data)
                return data
            log.warning("%s sent something else for the blob %s", short(peer), ref.digest[:8])
        msg = f"Nobody who is here has the weights {ref.digest[:8]}… of {name!r}, layer {index}."
        raise LinkError(msg)

    async def _give_blob(self, call: Incoming[BlobWanted]) -> Answer[Empty]:
        model = self._view.models().get(call.scope)
        if model is None or call.message.ref not in model.layers or not self.blobs.has(call.message.ref):
            msg = f"This node has no blob {call.message.ref.digest[:8]}… of {call.scope!r}."
            raise UsageError(msg)
        return Answer(Empty(), [np.frombuffer(self.blobs.get(call.message.ref), dtype=np.uint8)])
