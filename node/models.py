"""A model is a chain of layers, described by a few numbers that any node can check and build, whole or in part.

The description is a `ModelSpec`, and what follows from it alone is in `shapes.py`; here are the layers themselves.

A layer is its weights, a bias and the function behind them; so a cut between layers is where a shard may end, and the
layers of a shard are built without the others. Initial values follow from the seed and the layer's place alone: a
layer built alone equals the same layer of the whole, on every node.

The network of the mission: z1 = W1 x + b1, a1 = f(z1), z2 = W2 a1 + b2, y = g(z2). Training wants z2 (cross-entropy
takes logits), serving wants y: `Chain.forward` ends at z2, `Chain.probabilities` and `run_layers` apply g = softmax, or
what else the objective asks for.
"""

import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..mesh.errors import UsageError
from .objective import Objective, is_of_classes, is_of_values
from .recurrent import Recurrent
from .shapes import (
    ModelSpec,
    Vector,
    image_of,
    layer_count,
    layer_input_shape,
    layer_schema,
    sequence_of,
    text_of,
)  # fmt: skip


class Dense(nn.Linear):
    """a = f(W x + b) on flattened samples."""

    def __init__(self, inputs: int, outputs: int, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(inputs, outputs, device="meta")
        self._activation = activation

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        z = super().forward(input.flatten(1))  # (B, outputs)
        return z if self._activation is None else self._activation(z)


class ConvPool(nn.Conv2d):
    """a = pool(relu(W * x + b)), 3x3 and 2x2: half the height, half the width, floor of an odd one."""

    def __init__(self, image: tuple[int, int, int], channels: int) -> None:
        super().__init__(image[0], channels, kernel_size=3, padding=1, device="meta")
        self.image = image

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Conv2d's own name for it
        z = super().forward(input.reshape(-1, *self.image))  # (B, channels, H, W)
        return nn.functional.max_pool2d(torch.relu(z), 2)  # (B, channels, H // 2, W // 2)


class Chain(nn.Module):
    """The layers ``first`` up to, not including, ``end`` of a spec's model: the whole of it, or a shard."""

    def __init__(self, spec: ModelSpec, first: int, layers: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.first = first
        self.end = first + len(layers)
        self.layers = nn.ModuleList(layers)

    def layer(self, index: int) -> nn.Module:
        """Layer ``index``, counted in the whole model; raises UsageError when this chain does not hold it."""
        if not self.first <= index < self.end:
            raise UsageError(f"layer {index} is not among the layers {self.first} to {self.end - 1} loaded here")
        return self.layers[index - self.first]

    def forward(self, x: Tensor) -> Tensor:
        """(B, *input shape of the first layer) to the last layer's output: z2, the logits, for a whole model."""
        for layer in self.layers:
            x = layer(x)
        return x

    def probabilities(self, x: Tensor) -> Tensor:
        """y = g(z2): (B, *inputs) to (B, classes), each row summing to 1 where it is of classes."""
        return run_layers(self, self.first, self.end, x)


def build(spec: ModelSpec) -> Chain:
    """The whole model with its initial values; raises UsageError for a spec out of bounds."""
    return build_layers(spec, 0, layer_count(spec))


def build_layers(spec: ModelSpec, first: int, end: int) -> Chain:
    """Only the layers ``first`` up to, not including, ``end``; the others are never allocated."""
    if not 0 <= first < end <= layer_count(spec):
        raise UsageError(f"there is no run of layers {first}:{end} in a model of {layer_count(spec)} layers")
    layers = _blueprint(spec)[first:end]
    for index, layer in enumerate(layers, start=first):
        for name, parameter in list(layer.named_parameters()):  # `to_empty` would import half a second of sympy
            layer.register_parameter(name, nn.Parameter(torch.empty(parameter.shape)))
        _initialise(layer, spec.seed, index)
    return Chain(spec, first, layers)


def run_layers(chain: Chain, first: int, end: int, x: Tensor) -> Tensor:
    """What a stage answers: layers ``first`` up to, not including, ``end`` on a batch, without gradients.

    ``x`` is float32 (B, *layer_input_shape(spec, first)); the answer is (B, *layer_output_shape(spec, end - 1)), and
    where the run reaches the model's end it is y, probabilities or values. Raises UsageError for any other shape or
    dtype and for layers that ``chain`` does not hold.
    """
    if not chain.first <= first < end <= chain.end:
        raise UsageError(f"layers {first}:{end} were asked for, {chain.first}:{chain.end} are loaded here")
    wanted = layer_input_shape(chain.spec, first)
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != wanted:
        raise UsageError(f"layer {first} takes float32 (batch, {text_of(wanted)}), got {x.dtype} ({text_of(x.shape)})")
    with torch.inference_mode():
        for index in range(first, end):
            x = chain.layer(index)(x)
        return answered(chain.spec.objective, x) if end == layer_count(chain.spec) else x


def answered(objective: Objective, outputs: Tensor) -> Tensor:
    """Return y of z2: probabilities that sum to 1, probabilities on their own, or the values themselves."""
    if is_of_classes(objective):
        return torch.softmax(outputs, dim=1)
    return outputs if is_of_values(objective) else torch.sigmoid(outputs)


# -- parameters in and out ---------------------------------------------------------------------------------------------


def parameter_vector(module: nn.Module) -> Vector:
    """A copy of all parameters, in the order of the layers: float32 (D,)."""
    parts = [parameter.detach().cpu().numpy().ravel() for parameter in module.parameters()]
    return np.concatenate(parts).astype(np.float32, copy=False)


def load_vector(module: nn.Module, vector: Vector) -> None:
    """Put a parameter vector in; raises UsageError, changing nothing, unless it is finite float32 (D,)."""
    parameters = list(module.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise UsageError(f"this model takes float32 ({size},), got {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise UsageError("these parameters hold NaN or infinity, so the model keeps the ones it has")
    parts = torch.from_numpy(vector.copy()).split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def layer_tensors(chain: Chain, index: int) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of layer ``index``'s tensors by name."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in chain.layer(index).named_parameters()}


def load_layer(chain: Chain, index: int, tensors: Mapping[str, Tensor | npt.NDArray[np.float32]]) -> None:
    """Put layer ``index``'s tensors in; raises UsageError, changing nothing, when they do not fit the schema."""
    parameters = dict(chain.layer(index).named_parameters())
    incoming = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
    found = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in incoming.items()}
    if found != (wanted := layer_schema(chain.spec, index)):
        raise UsageError(f"layer {index} is made of {wanted}, got {found}")
    with torch.no_grad():
        for name, tensor in incoming.items():
            parameters[name].copy_(tensor)


# -- how it is done ----------------------------------------------------------------------------------------------------


def _blueprint(spec: ModelSpec) -> tuple[Dense | ConvPool | Recurrent, ...]:
    if spec.architecture == "cnn":
        height, width = image_of(spec.inputs)
        channels = max(1, spec.hidden // 4)
        return (
            ConvPool((1, height, width), channels),
            ConvPool((channels, height // 2, width // 2), spec.hidden),
            Dense(spec.hidden * (height // 4) * (width // 4), spec.classes, None),
        )
    if spec.architecture == "lstm":
        steps, features = sequence_of(spec.inputs)
        return Recurrent(steps, features, spec.hidden), Dense(spec.hidden, spec.classes, None)
    activation = torch.sigmoid if spec.hidden_activation == "sigmoid" else torch.relu
    return Dense(math.prod(spec.inputs), spec.hidden, activation), Dense(spec.hidden, spec.classes, None)


def _initialise(layer: nn.Module, seed: int, index: int) -> None:
    """Uniform in +-1/sqrt(fan-in), as torch's own layers start (LeCun 1998, section 4.6), from a private generator."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    parameters = dict(layer.named_parameters())
    bound = 1 / math.sqrt(parameters.get("recurrent", parameters["weight"])[0].numel())
    with torch.no_grad():
        for name in sorted(parameters):
            parameters[name].uniform_(-bound, bound, generator=generator)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
