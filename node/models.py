"""A model is a chain of layers, described by a few numbers that any node can check and build, whole or in part.

The description (`ModelSpec`) may come from a stranger: `check_spec` says no before anything is allocated. What
depends on sizes alone is worked out from layers on torch's meta device, which hold shapes and no numbers.

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
from functools import lru_cache
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..mesh.errors import UsageError
from ..mesh.limits import BODY_BYTES_MAX
from .limits import FACTORY_CHARS_MAX, SEED_MAX, WIDTH_MAX
from .objective import Objective, is_of_classes, is_of_values
from .recurrent import Recurrent

# A model that is served from its layers: `export` writes all of it out of one frame.
PARAMETERS_MAX: Final = BODY_BYTES_MAX // 4
FEATURES_MAX: Final = 65_536  # numbers in one sample: a 256 x 256 image
# Numbers that one sample may become inside a layer, 16 MiB of them: a few weights can unfold into gigabytes.
ACTIVATIONS_MAX: Final = 4 * 1024 * 1024
_PER_STEP: Final = 12  # numbers that one unit of an LSTM keeps of each step for the way back: gates, cell, products

Vector = npt.NDArray[np.float32]
_T = TypeVar("_T")
Shape = tuple[int, ...]
Schema = Mapping[str, tuple[str, Shape]]  # a tensor's name to its dtype and shape

_Dimension = Annotated[int, msgspec.Meta(ge=1, le=FEATURES_MAX)]
_Width = Annotated[int, msgspec.Meta(ge=1, le=WIDTH_MAX)]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model is, in data: equal specs give equal initial models on every node.

    ``mlp``: one hidden layer of ``hidden`` units with ``hidden_activation``, then ``classes`` outputs.
    ``cnn``: two of 3x3 convolution, ReLU, 2x2 max-pooling (``hidden // 4`` and ``hidden`` channels), then ``classes``
    outputs; takes one-channel images, and its activation is ReLU whatever ``hidden_activation`` says.
    ``lstm``: one LSTM layer of ``hidden`` units over a sequence, and from its last state ``classes`` outputs;
    ``hidden_activation`` is not asked either.
    ``own``: what ``factory`` makes, on the nodes whose owners allow it (`learning/factories.py`). It is trained as a
    whole and not served: nobody can build its layers from this description.
    """

    architecture: Literal["mlp", "cnn", "lstm", "own"]
    factory: Annotated[str, msgspec.Meta(max_length=FACTORY_CHARS_MAX)] = ""  # of ``own``: package.module:factory
    # The shape of one sample. For ``cnn`` (1, H, W), (H, W), or (n,) where n is a square; for ``lstm`` (T, F): T steps
    # of F features.
    inputs: Annotated[tuple[_Dimension, ...], msgspec.Meta(min_length=1, max_length=3)]
    # How many numbers it answers to a sample: one for each class, or those that are to be predicted.
    classes: _Width  # 2 at least where it is of classes
    objective: Objective = "cross_entropy"  # which also says what the last layer's outputs become in an answer
    hidden: _Width = 64
    hidden_activation: Literal["sigmoid", "relu"] = "sigmoid"  # sigmoid is what the mission's text derives
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] = 0


class Dense(nn.Linear):
    """a = f(W x + b) on flattened samples."""

    def __init__(self, inputs: int, outputs: int, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(inputs, outputs, device="meta")
        self.output_shape: Shape = (outputs,)
        self._activation = activation

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        z = super().forward(input.flatten(1))  # (B, outputs)
        return z if self._activation is None else self._activation(z)


class ConvPool(nn.Conv2d):
    """a = pool(relu(W * x + b)), 3x3 and 2x2: half the height, half the width, floor of an odd one."""

    def __init__(self, image: tuple[int, int, int], channels: int) -> None:
        super().__init__(image[0], channels, kernel_size=3, padding=1, device="meta")
        self.output_shape: Shape = (channels, image[1] // 2, image[2] // 2)
        self._image = image

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Conv2d's own name for it
        z = super().forward(input.reshape(-1, *self._image))  # (B, channels, H, W)
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


def check_sizes(spec: ModelSpec) -> None:
    """Raise UsageError unless each number of ``spec`` keeps its bound, whatever it makes of them."""
    try:
        msgspec.convert(msgspec.to_builtins(spec), ModelSpec)
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(f"this model description is not valid: {error}") from error
    if spec.classes < 2 and is_of_classes(spec.objective):
        raise UsageError("a model of classes has 2 of them at least; for yes or no take 'binary_cross_entropy'")
    if (features := math.prod(spec.inputs)) > FEATURES_MAX:
        raise UsageError(f"a sample of {features:,} numbers is more than the {FEATURES_MAX:,} that a model may take")


def check_spec(spec: ModelSpec) -> None:
    """Raise UsageError unless ``spec`` can be built and keeps every bound; allocates nothing, whoever wrote it."""
    check_sizes(spec)
    if spec.architecture == "own":
        raise UsageError(f"{spec.factory or 'a model of an owner'}: its layers cannot be built from a description")
    if spec.architecture == "cnn":
        _check_image(spec)
    if spec.architecture == "lstm":
        _check_sequence(spec)
    if (count := sum(layer.numel() for part in _blueprint(spec) for layer in part.parameters())) > PARAMETERS_MAX:
        raise UsageError(f"a model of {count:,} parameters is more than the {PARAMETERS_MAX:,} allowed; lower `hidden`")


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
        raise UsageError(f"layer {first} takes float32 (batch, {_text(wanted)}), got {x.dtype} ({_text(x.shape)})")
    with torch.inference_mode():
        for index in range(first, end):
            x = chain.layer(index)(x)
        return _answer(chain.spec.objective, x) if end == layer_count(chain.spec) else x


def _answer(objective: Objective, outputs: Tensor) -> Tensor:
    """Return y of z2: probabilities that sum to 1, probabilities on their own, or the values themselves."""
    if is_of_classes(objective):
        return torch.softmax(outputs, dim=1)
    return outputs if is_of_values(objective) else torch.sigmoid(outputs)


# -- what follows from the description alone ---------------------------------------------------------------------------


def layer_count(spec: ModelSpec) -> int:
    """How many layers the whole model has."""
    return len(_plan(spec)[0])


def parameter_count(spec: ModelSpec) -> int:
    """D, the length of the whole model's parameter vector."""
    return sum(layer_sizes_bytes(spec)) // 4


def layer_sizes_bytes(spec: ModelSpec) -> tuple[int, ...]:
    """Bytes of each layer's parameters."""
    return tuple(sum(4 * math.prod(shape) for _, shape in schema.values()) for schema in _plan(spec)[0])


def layer_schema(spec: ModelSpec, index: int) -> dict[str, tuple[str, Shape]]:
    """What layer ``index`` is made of: each tensor's name with its dtype and shape."""
    return dict(_at(_plan(spec)[0], index))


def layer_input_shape(spec: ModelSpec, index: int) -> Shape:
    """The shape of one sample as layer ``index`` takes it."""
    return _at(_plan(spec)[1][:-1], index)


def layer_output_shape(spec: ModelSpec, index: int) -> Shape:
    """The shape of one sample as layer ``index`` leaves it."""
    return _at(_plan(spec)[1][1:], index)


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


@lru_cache(maxsize=64)  # a node works with a handful of specs; a stranger's must not pile up
def _plan(spec: ModelSpec) -> tuple[tuple[Schema, ...], tuple[Shape, ...]]:
    """Every layer's schema, and the shapes before, between and after the layers, without allocating a number.

    Shapes are worked out here: running the layers on the meta device makes torch 2.13 import its compiler, 1.3 s.
    """
    check_spec(spec)
    layers = _blueprint(spec)
    shapes = [spec.inputs, *(layer.output_shape for layer in layers)]
    schemas = [{name: (_dtype(p), tuple(p.shape)) for name, p in layer.named_parameters()} for layer in layers]
    return tuple(schemas), tuple(shapes)


def _blueprint(spec: ModelSpec) -> tuple[Dense | ConvPool | Recurrent, ...]:
    if spec.architecture == "cnn":
        height, width = _image(spec.inputs)
        channels = max(1, spec.hidden // 4)
        return (
            ConvPool((1, height, width), channels),
            ConvPool((channels, height // 2, width // 2), spec.hidden),
            Dense(spec.hidden * (height // 4) * (width // 4), spec.classes, None),
        )
    if spec.architecture == "lstm":
        steps, features = _sequence(spec.inputs)
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


def _image(inputs: Shape) -> tuple[int, int]:
    """Height and width of one-channel images of this sample shape; raises UsageError for any other."""
    if len(inputs) == 1 and (side := math.isqrt(inputs[0])) ** 2 == inputs[0]:
        return side, side
    if len(inputs) == 2 or (len(inputs) == 3 and inputs[0] == 1):
        return inputs[-2], inputs[-1]
    raise UsageError(f"a cnn takes (1, H, W), (H, W) or a square number of inputs, not ({_text(inputs)}); use an mlp")


def _check_image(spec: ModelSpec) -> None:
    height, width = _image(spec.inputs)
    if min(height, width) < 4:
        raise UsageError(f"a cnn halves its image twice, so {height} x {width} is too small; use an mlp")
    if spec.hidden * height * width // 4 > ACTIVATIONS_MAX:
        raise UsageError(f"a cnn with hidden={spec.hidden} on {height} x {width} unfolds too far; lower `hidden`")


def _sequence(inputs: Shape) -> tuple[int, int]:
    """Steps and features of a sequence of this sample shape; raises UsageError for any other."""
    if len(inputs) == 2:
        return inputs[0], inputs[1]
    raise UsageError(
        f"an lstm takes samples (T, F), T steps of F features, not ({_text(inputs)}); shape the data so, or use an mlp"
    )


def _check_sequence(spec: ModelSpec) -> None:
    steps, _ = _sequence(spec.inputs)
    if _PER_STEP * spec.hidden * steps > ACTIVATIONS_MAX:
        raise UsageError(f"an lstm with hidden={spec.hidden} over {steps:,} steps unfolds too far; lower `hidden`")


def _at(items: tuple[_T, ...], index: int) -> _T:
    if not 0 <= index < len(items):
        raise UsageError(f"there is no layer {index} in a model of {len(items)} layers")
    return items[index]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _text(shape: Shape) -> str:
    return ", ".join(str(size) for size in shape)
