"""A model's manifest as the blob that it is: written, and read from a stranger."""

from collections.abc import Iterable, Sequence

import msgspec

from ...mesh.errors import PeerError, UsageError
from ...mesh.limits import LAYER_HEADER_BYTES_MAX, MANIFEST_BYTES_MAX
from ..deployments import Manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """Encode a manifest as the blob that it is. Raises UsageError when it is too large."""
    data = msgspec.json.encode(manifest, order="deterministic")
    if len(data) > MANIFEST_BYTES_MAX:
        raise UsageError(f"a manifest of {len(data):,} bytes is more than the {MANIFEST_BYTES_MAX:,} allowed")
    return data


def read_manifest(data: bytes) -> Manifest:
    """Read a stranger's manifest. Raises PeerError."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise PeerError(f"a manifest of {len(data):,} bytes is more than the {MANIFEST_BYTES_MAX:,} allowed")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a model's manifest is not valid: {str(error)[:200]}") from error


def require_sizes(manifest: Manifest, needs: Sequence[int], layers: Iterable[int]) -> None:
    """Raise PeerError where a layer's blobs are larger than what they may hold: nobody fetches what is no weight.

    ``needs`` are the bytes of each layer's tensors, at most. Whatever else a file holds beside them has its limit.
    """
    for layer in layers:
        size = sum(ref.size_bytes - LAYER_HEADER_BYTES_MAX for ref in manifest.layers[layer])
        if size > needs[layer]:
            raise PeerError(f"the blobs of layer {layer} of a model are larger than the layer is")
