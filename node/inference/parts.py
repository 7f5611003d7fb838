"""What a stage runs of a model that keeps nothing between requests, a chain or a program, and what it takes to ask."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...mesh import tensors
from ...mesh.errors import LeptonError, PeerError, UsageError
from ...mesh.tensors import Array
from ..blobs.layers import read_layer_blob
from ..models import Chain, build_layers, load_layer, run_layers
from ..programs.program import BATCH, Program, Value
from ..programs.program import values as values_of
from ..programs.run import Stage, batch_max, sizes_of
from ..shapes import ModelSpec, layer_input_shape, layer_schema
from .known import require_finite
from .messages import BATCH_MAX


class ChainPart:
    """Layers of a trained model of our own."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def check(self, arrays: Sequence[Array]) -> None:
        if len(arrays) != 1:
            raise PeerError(f"Work for a stage carries one tensor; this one carries {len(arrays)}.")
        if not 1 <= len(arrays[0]) <= BATCH_MAX:
            raise PeerError(f"A batch has 1 to {BATCH_MAX} samples.")
        shape = (None, *layer_input_shape(self._chain.spec, self._chain.first))
        tensors.require(arrays[0], dtype="float32", shape=shape, what="the input of a stage")

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        chain = self._chain
        with torch.inference_mode():
            y = run_layers(chain, chain.first, chain.end, torch.from_numpy(np.array(arrays[0])))
        return [np.asarray(y.numpy(), dtype=np.float32)]


def chain_part(spec: ModelSpec, first: int, blobs: Sequence[bytes]) -> ChainPart:
    """Build the layers from ``first`` on, one of each blob. Raises PeerError for a blob that is not that layer."""
    chain = build_layers(spec, first, first + len(blobs))
    for index, data in enumerate(blobs, start=first):
        load_layer(chain, index, read_layer_blob(data, layer_schema(spec, index)))
    return ChainPart(chain)


class ProgramPart:
    """Layers of a model that was traced."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._most: dict[tuple[tuple[str, int], ...], int] = {}
        self._bounded: set[tuple[tuple[tuple[int, ...], int], ...]] = set()  # sizes that were tried without numbers

    def check(self, arrays: Sequence[Array]) -> None:
        self._stage.check([torch.from_numpy(np.array(array)) for array in arrays])

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        given = [torch.from_numpy(np.array(array)) for array in arrays]
        sizes = self._stage.check(given)
        if (samples := sizes.pop(BATCH, 1)) > (most := self._batch_max(sizes)):
            raise UsageError(f"{samples} samples of this model came at once; at these sizes it takes {most}.")
        self._require_bounded(given)
        try:
            return [tensor.numpy() for tensor in self._stage.run(given)]
        except LeptonError:
            raise
        except Exception as error:
            # What a stranger's model does with its numbers (looks up a word that is not there) only shows here.
            reason = str(error).strip().partition("\n")[0][:200]
            raise UsageError(f"This model cannot be run on these inputs: {reason}") from error

    def _require_bounded(self, given: Sequence[torch.Tensor]) -> None:
        key = tuple((tuple(array.shape), int(array) if not array.dim() else 0) for array in given)
        if key not in self._bounded:
            self._stage.require_bounded(given)
            if len(self._bounded) >= _SIZES_KEPT:
                self._bounded.clear()
            self._bounded.add(key)

    def _batch_max(self, sizes: Mapping[str, int]) -> int:
        """How many samples at these sizes; those that a later stage does not see were seen by the first one."""
        key = tuple(sorted(sizes.items()))
        if len(key) + 1 < len(self._stage.program.symbols):
            return BATCH_MAX
        if key not in self._most:
            if len(self._most) >= _SIZES_KEPT:
                self._most.clear()
            self._most[key] = batch_max(self._stage.program, sizes)
        return self._most[key]


class KnownProgram:
    """A model that was traced: tensors in by its inputs, tensors out."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.layers = program.layers
        self._values = values_of(program)

    def batches(self, inputs: Sequence[Array]) -> list[list[Array]]:
        wanted = self.program.inputs
        if len(inputs) != len(wanted):
            raise UsageError(f"This model takes {len(wanted)} arrays ({', '.join(wanted)}), not {len(inputs)}.")
        arrays = [_as(array, name, value) for array, (name, value) in zip(inputs, wanted.items(), strict=True)]
        try:
            sizes = sizes_of(arrays, list(wanted.items()), _without_batch_bound(self.program))
        except PeerError as error:
            raise UsageError(str(error)) from error
        samples = sizes.pop(BATCH)
        most = batch_max(self.program, sizes)
        return [[array[start : start + most] for array in arrays] for start in range(0, samples, most)]

    def check(self, results: Sequence[Array], samples: int) -> list[Array]:
        known = [(name, self._values[name]) for name in self.program.outputs]
        if len(results) != len(known):
            raise PeerError(f"A result of this model has {len(known)} tensors; this one has {len(results)}.")
        for array, (name, value) in zip(results, known, strict=True):
            assert value is not None  # the program was checked
            shape = [samples if dim == BATCH else dim if isinstance(dim, int) else None for dim in value.shape or ()]
            tensors.require(array, dtype=value.dtype, shape=shape, what=f"the result {name!r} of a request")
        return list(results)


_SIZES_KEPT = 1024  # lengths of texts, mostly


def _as(array: Array, name: str, value: Value) -> Array:
    """Take what a user gave as the dtype that the model wants, where no number changes by it. Raises UsageError."""
    given = np.asarray(array)
    found = given.astype(value.dtype, copy=False)
    if given.dtype.kind not in "biuf" or (given.dtype.kind == "f") != (found.dtype.kind == "f"):
        raise UsageError(f"The input {name!r} of this model is {value.dtype}; this is {given.dtype}.")
    if found.dtype.kind != "f" and not np.array_equal(found, given):
        raise UsageError(f"The input {name!r} of this model is {value.dtype}, and these numbers do not fit into it.")
    require_finite(found)
    if not found.size:
        raise UsageError(f"The input {name!r} is empty; give at least one sample.")
    return found


def _without_batch_bound(program: Program) -> Mapping[str, tuple[int, int]]:
    return {**program.symbols, BATCH: (1, 2**31)}
