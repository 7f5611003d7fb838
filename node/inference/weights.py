"""Weights of layers: kept by their hash, given to peers, fetched from whichever peer has them."""

from typing import TYPE_CHECKING

from ...mesh.mesh import Mesh
from ..blobs.layers import layer_blob
from ..blobs.rounded_layers import rounded_layer_blob
from ..blobs.sharing import Blobs
from ..deployments import BlobRef
from ..picture import MODEL, ModelRecord
from ..shapes import ModelSpec, layer_count
from .view import View

if TYPE_CHECKING:
    from ..models import Chain


class Weights:
    """One node's store of layers, and its way to those of others."""

    def __init__(self, mesh: Mesh, view: View, blobs: Blobs) -> None:
        self._blobs = blobs
        self._mesh = mesh
        self._view = view

    def publish(self, name: str, spec: ModelSpec, chain: "Chain", *, version: int, copies: int, bits: int = 0) -> None:
        """Make this model the one to serve under its name."""
        layers = self.keep(spec, chain, bits=bits)
        self._mesh.publish(
            MODEL, name, ModelRecord(spec=spec, version=version, layers=layers, copies=copies), durable=True
        )

    def keep(self, spec: ModelSpec, chain: "Chain", *, bits: int = 0) -> tuple[BlobRef, ...]:
        """Put every layer into the blob store, for peers to fetch; returns what they are called.

        With ``bits`` 8 or 4 matrices are stored as integers: a chain whose numbers those already are loses nothing.
        """
        self._blobs.refresh()
        put = self._blobs.store.put
        return tuple(put(_blob(chain, index, bits)) for index in range(layer_count(spec)))

    async def whole(self, name: str) -> tuple[ModelSpec, list[bytes]]:
        """Return a whole model: its description and each layer's safetensors bytes, fetched from whoever has them.

        Raises UsageError when there is no such model, LinkError when nobody has a layer.
        """
        model = self._view.model(name)
        return model.spec, [await self.fetch(name, model, index) for index in range(len(model.layers))]

    async def fetch(self, name: str, model: ModelRecord, index: int) -> bytes:
        """Return a layer from the store, or from whoever has it. Raises LinkError when nobody has."""
        return await self._blobs.data(name, model.layers[index])


def _blob(chain: "Chain", index: int, bits: int) -> bytes:
    from ..models import layer_tensors  # whoever has a chain has torch

    tensors = layer_tensors(chain, index)
    if not bits:
        return layer_blob(tensors)
    from ..kernels.rounded import rounded_arrays

    matrices = {name: rounded_arrays(tensor, bits) for name, tensor in tensors.items() if tensor.ndim > 1}
    return rounded_layer_blob({name: each for name, each in tensors.items() if name not in matrices}, matrices)
