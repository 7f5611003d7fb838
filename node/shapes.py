"""What a model is, in a few numbers that any node can check, and all that follows from them without building it.

The description (`ModelSpec`) may come from a stranger: `check_spec` says no before anything is allocated. Nothing here
needs torch, so a node that neither trains nor serves never loads it; `models.py` builds what is described.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..mesh.errors import UsageError
from ..mesh.limits import BODY_BYTES_MAX
from .limits import FACTORY_CHARS_MAX, SEED_MAX, WIDTH_MAX
from .objective import Objective, is_of_classes

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
    layers, _ = _layers(spec)
    if (count := sum(math.prod(shape) for layer in layers for shape in layer.values())) > PARAMETERS_MAX:
        raise UsageError(f"a model of {count:,} parameters is more than the {PARAMETERS_MAX:,} allowed; lower `hidden`")


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


# -- how it is done ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # a node works with a handful of specs; a stranger's must not pile up
def _plan(spec: ModelSpec) -> tuple[tuple[Schema, ...], tuple[Shape, ...]]:
    """Every layer's schema, and the shapes before, between and after the layers."""
    check_spec(spec)
    layers, outputs = _layers(spec)
    schemas = tuple({name: ("float32", shape) for name, shape in layer.items()} for layer in layers)
    return schemas, (spec.inputs, *outputs)


def _layers(spec: ModelSpec) -> tuple[tuple[dict[str, Shape], ...], tuple[Shape, ...]]:
    """Each layer's parameters as `models.py` builds them, in its order, and the shape that it leaves."""
    hidden, last = spec.hidden, (spec.classes,)
    if spec.architecture == "cnn":
        height, width = image_of(spec.inputs)
        channels = max(1, hidden // 4)
        features = hidden * (height // 4) * (width // 4)
        layers = _convolution(1, channels), _convolution(channels, hidden), _dense(features, spec.classes)
        return layers, ((channels, height // 2, width // 2), (hidden, height // 4, width // 4), last)
    if spec.architecture == "lstm":
        _, features = sequence_of(spec.inputs)
        recurrent = {"weight": (4 * hidden, features), "recurrent": (4 * hidden, hidden), "bias": (4 * hidden,)}
        return (recurrent, _dense(hidden, spec.classes)), ((hidden,), last)
    return (_dense(math.prod(spec.inputs), hidden), _dense(hidden, spec.classes)), ((hidden,), last)


def _dense(inputs: int, outputs: int) -> dict[str, Shape]:
    return {"weight": (outputs, inputs), "bias": (outputs,)}


def _convolution(channels: int, outputs: int) -> dict[str, Shape]:
    return {"weight": (outputs, channels, 3, 3), "bias": (outputs,)}


def image_of(inputs: Shape) -> tuple[int, int]:
    """Height and width of one-channel images of this sample shape; raises UsageError for any other."""
    if len(inputs) == 1 and (side := math.isqrt(inputs[0])) ** 2 == inputs[0]:
        return side, side
    if len(inputs) == 2 or (len(inputs) == 3 and inputs[0] == 1):
        return inputs[-2], inputs[-1]
    raise UsageError(f"a cnn takes (1, H, W), (H, W) or a square number of inputs, not ({text_of(inputs)}); use an mlp")


def _check_image(spec: ModelSpec) -> None:
    height, width = image_of(spec.inputs)
    if min(height, width) < 4:
        raise UsageError(f"a cnn halves its image twice, so {height} x {width} is too small; use an mlp")
    if spec.hidden * height * width // 4 > ACTIVATIONS_MAX:
        raise UsageError(f"a cnn with hidden={spec.hidden} on {height} x {width} unfolds too far; lower `hidden`")


def sequence_of(inputs: Shape) -> tuple[int, int]:
    """Steps and features of a sequence of this sample shape; raises UsageError for any other."""
    if len(inputs) == 2:
        return inputs[0], inputs[1]
    raise UsageError(
        f"an lstm takes samples (T, F), T steps of F features, not ({text_of(inputs)}); shape the data so, or use an "
        "mlp"
    )


def _check_sequence(spec: ModelSpec) -> None:
    steps, _ = sequence_of(spec.inputs)
    if _PER_STEP * spec.hidden * steps > ACTIVATIONS_MAX:
        raise UsageError(f"an lstm with hidden={spec.hidden} over {steps:,} steps unfolds too far; lower `hidden`")


def _at(items: tuple[_T, ...], index: int) -> _T:
    if not 0 <= index < len(items):
        raise UsageError(f"there is no layer {index} in a model of {len(items)} layers")
    return items[index]


def text_of(shape: Shape) -> str:
    """Return a shape as people write it."""
    return ", ".join(str(size) for size in shape)
