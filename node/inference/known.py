"""What serving and asking need of a model that keeps nothing between requests; and all that a chain's asker knows."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...mesh import tensors
from ...mesh.errors import PeerError, UsageError
from ...mesh.tensors import Array
from ..shapes import ModelSpec, layer_count, layer_input_shape, layer_output_shape
from .messages import BATCH_MAX


class Part(Protocol):
    """A run of layers, loaded."""

    def check(self, arrays: Sequence[Array]) -> None:
        """Raise PeerError when a stranger's arrays are not what it takes."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Compute what goes out of what came in and was checked, in a thread. Raises LeptonError when it cannot."""


class Known(Protocol):
    """What an asker has to know of a whole model."""

    layers: int

    def batches(self, inputs: Sequence[Array]) -> list[list[Array]]:
        """Check a user's inputs and cut them into what may travel together. Raises UsageError."""

    def check(self, results: Sequence[Array], samples: int) -> list[Array]:
        """Check what a stranger sent as the result for so many samples. Raises PeerError."""


class KnownChain:
    """A trained model of our own: one tensor in, one out."""

    def __init__(self, spec: ModelSpec) -> None:
        self.layers = layer_count(spec)
        self._inputs = layer_input_shape(spec, 0)
        self._outputs = layer_output_shape(spec, self.layers - 1)

    def batches(self, inputs: Sequence[Array]) -> list[list[Array]]:
        if len(inputs) != 1:
            raise UsageError(f"This model takes one array of samples, not {len(inputs)}.")
        samples = np.asarray(inputs[0], dtype=np.float32)
        if samples.size == 0 or samples.shape[1:] != self._inputs:
            expected = " x ".join(str(size) for size in self._inputs)
            raise UsageError(
                f"Samples of this model have the shape ({expected}); these are {samples.shape[1:]}, "
                f"{len(samples)} of them."
            )
        require_finite(samples)
        return [[samples[start : start + BATCH_MAX]] for start in range(0, len(samples), BATCH_MAX)]

    def check(self, results: Sequence[Array], samples: int) -> list[Array]:
        if len(results) != 1:
            raise PeerError(f"A result carries one tensor; this one carries {len(results)}.")
        shape = (samples, *self._outputs)
        return [tensors.require(results[0], dtype="float32", shape=shape, what="the result of a request")]


def require_finite(samples: Array) -> None:
    """Raise UsageError for a user's NaN or infinity."""
    if not np.isfinite(samples).all():
        raise UsageError("The samples hold values that are not finite numbers (NaN or infinite); clean them first.")
