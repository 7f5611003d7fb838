"""What a model that somebody deployed is made of, in data: blobs by their hash, and the record that asks for it."""

from typing import Annotated, Final, Literal

import msgspec

from ..mesh.messages import Message, Natural, Sha256

DEPLOYMENT: Final = "deployment"
LAYERS_MAX: Final = 256  # Llama 405B has 126 blocks
FILES_MAX: Final = 32  # a tokenizer's and a configuration's
CONFIG_CHARACTERS_MAX: Final = 256 * 1024  # a config.json has 1 to 20 KiB

Kind = Literal["causal_lm", "program"]
Precision = Literal["float32", "bfloat16", "int8", "int4"]
Objective = Literal["latency", "throughput"]
Activations = Literal["float32", "bfloat16", "int8"]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # no folder, so no path


class BlobRef(Message, frozen=True, kw_only=True):
    """Content-addressed bytes: whoever has the digest can check every part of what a stranger sends for it."""

    digest: Sha256
    size_bytes: Natural


class Manifest(Message, frozen=True, kw_only=True):
    """What a model is made of: itself a blob, so that a record of 16 KiB can stand for any model.

    ``layers`` names for each layer the safetensors blobs that hold its tensors, under their names in the model; a
    tensor that two layers need (tied embeddings) is in a blob of its own, which both name.
    """

    kind: Kind
    config: Annotated[str, msgspec.Meta(max_length=CONFIG_CHARACTERS_MAX)]  # JSON, as the model's folder has it
    files: Annotated[dict[FileName, BlobRef], msgspec.Meta(max_length=FILES_MAX)]  # tokenizer.json and the like
    layers: Annotated[
        tuple[Annotated[tuple[BlobRef, ...], msgspec.Meta(max_length=64)], ...],
        msgspec.Meta(min_length=1, max_length=LAYERS_MAX),
    ]


class DeploymentRecord(Message, frozen=True, kw_only=True):
    """A model that ought to be served (durable; record name: the model's). Equal names: the highest version counts.

    Everything that placement needs is here, so that a node plans without having fetched the manifest. ``weights_bytes``
    are those in memory at ``precision``, of each layer; ``cache_bytes`` are of one position, of each layer.
    """

    version: Natural
    kind: Kind
    manifest: BlobRef
    precision: Precision = "float32"
    weights_bytes: Annotated[tuple[Natural, ...], msgspec.Meta(min_length=1, max_length=LAYERS_MAX)]
    tied_bytes: Natural = 0  # which the first and the last layer have in common: in memory once where both are
    cache_bytes: Annotated[tuple[Natural, ...], msgspec.Meta(max_length=LAYERS_MAX)] = ()
    width_bytes: Natural = 0  # of what travels between stages, for one position (or one sample of a program)
    replicas: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    sessions: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4  # at once, for which caches are promised
    positions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2048  # of each of them
    objective: Objective = "latency"
    activations: Activations = "float32"  # as they travel between stages; only float32 is the same at any placement

    def run_bytes(self, run: tuple[int, int]) -> int:
        """Return what the weights of a run of layers take in the memory of one node."""
        tied = min(self.tied_bytes, self.weights_bytes[-1])
        return sum(self.weights_bytes[slice(*run)]) - tied * (run == (0, len(self.weights_bytes)))
