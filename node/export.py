"""A whole model in one safetensors file: tensors named LAYER.TENSOR, the description in the metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..mesh.errors import UsageError
from .blobs.layers import read_layer_blob
from .files import write_whole
from .models import Chain, build, load_layer
from .shapes import ModelSpec, layer_schema

_SPEC = "lepton.spec"


def save_model(path: Path, spec: Mapping[str, Any], layers: Sequence[bytes]) -> None:
    """Write the layers (each a safetensors blob) of a model. Raises PeerError for one that does not fit ``spec``."""
    known = msgspec.convert(dict(spec), ModelSpec)
    tensors = {
        f"{index}.{name}": tensor
        for index, blob in enumerate(layers)
        for name, tensor in read_layer_blob(blob, layer_schema(known, index)).items()
    }
    write_whole(path, save(tensors, metadata={_SPEC: msgspec.json.encode(known).decode()}))


def load_model(path: Path) -> Chain:
    """Read what ``save_model`` wrote. Raises UsageError when the file is not such a model."""
    try:
        with safe_open(path, framework="pt") as file:
            spec = msgspec.json.decode((file.metadata() or {}).get(_SPEC, ""), type=ModelSpec)
            chain = build(spec)
            for index in range(len(chain.layers)):
                names = layer_schema(spec, index)
                load_layer(chain, index, {name: file.get_tensor(f"{index}.{name}") for name in names})
    except (OSError, SafetensorError, msgspec.MsgspecError) as error:
        msg = f"{path}: is not a model that `lepton-node export` wrote ({error})."
        raise UsageError(msg) from error
    return chain
