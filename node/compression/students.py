"""Students by name: our own architectures, a language model with fewer layers, or a function that the owner allows.

``mlp:hidden=32``, ``cnn:hidden=16``, ``lstm:hidden=24`` are made anew. ``layers=2,inner=96`` is the teacher, a
`Decoder`, with so many of its layers (at even distances, first and last among them, as in DistilBERT, Sanh et al. 2019)
and of each layer's inner units those that weigh most. ``package.module:factory`` is looked up among what this device's
owner wrote down (`learning/allowed.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec
from torch import Tensor, nn

from ...mesh.errors import UsageError
from ..language.config import LanguageConfig
from ..learning.allowed import Factories
from ..limits import FACTORY_PATTERN
from ..models import Chain, build
from ..objective import Objective
from ..shapes import ModelSpec, check_spec
from .decoder import Decoder

OWN: Final = ("mlp", "cnn", "lstm")
_WORDS: Final = ("hidden", "hidden_activation", "seed")  # of `ModelSpec`, that a name may say
_OF_LAYERS: Final = ("layers", "inner")
_KINDS: Final = '"mlp:hidden=32", "cnn:hidden=16", "lstm:hidden=24", "layers=2,inner=96", or package.module:factory'


class Shape(NamedTuple):
    """What a student must take and give."""

    inputs: tuple[int, ...]  # one sample
    classes: int  # numbers that it answers to one
    objective: Objective = "cross_entropy"


def is_new(said: str) -> bool:
    """Whether a student of this name begins with values that nobody has trained."""
    return not _is_shorter(said)


def student_of(
    said: str, shape: Shape | None = None, *, teacher: nn.Module | None = None, factories: Factories | None = None
) -> nn.Module:
    """Make a student. ``shape`` may be left out where the teacher is a chain or a decoder.

    Raises UsageError for a name that is not understood, does not fit the teacher, or is not allowed here.
    """
    if _is_shorter(said):
        if not isinstance(teacher, Decoder):
            raise UsageError(f"The student {said!r} is made of a language model's layers; this teacher is none.")
        return shorter(teacher, **numbers_of(said))
    if isinstance(teacher, Chain) and shape is None:
        shape = Shape(teacher.spec.inputs, teacher.spec.classes, teacher.spec.objective)
    if shape is None:
        raise UsageError(f"What the student {said!r} takes and gives does not follow from its teacher: say its shape.")
    spec = _spec(said, shape)
    return (factories or Factories(())).make(spec) if spec.architecture == "own" else build(spec)


def shorter(teacher: Decoder, *, layers: int | None = None, inner: int | None = None) -> Decoder:
    """Return a decoder of some of the teacher's layers and inner units. Raises UsageError for more than it has."""
    return made_of(teacher.config, teacher.state_dict(), layers=layers, inner=inner)


def made_of(
    config: LanguageConfig, state: Mapping[str, Tensor], *, layers: int | None = None, inner: int | None = None
) -> Decoder:
    """Do as `shorter`, with no more of the teacher than what `kept_blocks` says and what is around the blocks."""
    kept = kept_blocks(config, layers)
    inner = config.inner if inner is None else inner
    if not 1 <= inner <= config.inner:
        raise UsageError(f"The teacher has {config.inner} inner units in a layer; a student of {inner} needs others.")
    smaller = replace(config, blocks=len(kept), inner=inner, windows=tuple(config.windows[block] for block in kept))
    own: dict[str, Tensor] = {}
    places = {block: place for place, block in enumerate(kept)}
    for name, tensor in state.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if found is None:
            own[name] = tensor
        elif int(found[1]) in places:
            own[f"model.layers.{places[int(found[1])]}.{found[2]}"] = tensor
    if inner < config.inner:
        _narrow(own, len(kept), inner)
    student = Decoder(smaller)
    student.load_state_dict(own)
    return student


def kept_blocks(config: LanguageConfig, layers: int | None) -> list[int]:
    """Choose so many of a teacher's blocks at even distances, both ends among them. Raises UsageError."""
    count = config.blocks if layers is None else layers
    if not 1 <= count <= config.blocks:
        raise UsageError(f"The teacher has {config.blocks} layers; a student of {count} is not made of those.")
    return [round(place * (config.blocks - 1) / max(count - 1, 1)) for place in range(count)]


def _narrow(state: dict[str, Tensor], layers: int, inner: int) -> None:
    """Keep each layer's heaviest inner units: by the product of the norms of what goes into them and comes out."""
    for layer in range(layers):
        names = {part: f"model.layers.{layer}.mlp.{part}_proj" for part in ("gate", "up", "down")}
        gate, up, down = (state[f"{name}.weight"] for name in names.values())
        weights = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
        kept = weights.topk(inner).indices.sort().values
        for name in (names["gate"], names["up"]):
            state[f"{name}.weight"] = state[f"{name}.weight"][kept]
            if f"{name}.bias" in state:
                state[f"{name}.bias"] = state[f"{name}.bias"][kept]
        state[f"{names['down']}.weight"] = down[:, kept]


def _is_shorter(said: str) -> bool:
    return said.partition("=")[0].strip() in _OF_LAYERS


def _spec(said: str, shape: Shape) -> ModelSpec:
    name, _, rest = said.partition(":")
    known = {"inputs": shape.inputs, "classes": shape.classes, "objective": shape.objective}
    if name in OWN:
        spec = _converted(said, {"architecture": name, **_words(said, rest, _WORDS), **known})
        check_spec(spec)
        return spec
    if re.fullmatch(FACTORY_PATTERN, said):
        return _converted(said, {"architecture": "own", "factory": said, **known})
    raise UsageError(f"{said!r} names no student; give {_KINDS}.")


def _converted(said: str, fields: Mapping[str, object]) -> ModelSpec:
    try:
        return msgspec.convert(fields, ModelSpec, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"The student {said!r} cannot be: {error}.") from error


def numbers_of(said: str) -> dict[str, int]:
    """Return what a name like "layers=2,inner=96" says. Raises UsageError."""
    words = _words(said, said, _OF_LAYERS)
    if wrong := [word for word in words.values() if not word.isdecimal()]:
        raise UsageError(f"The student {said!r}: {wrong[0]!r} is no whole number.")
    return {key: int(word) for key, word in words.items()}


def _words(said: str, rest: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in known:
            raise UsageError(f"The student {said!r}: {part!r} is not understood; it has {', '.join(known)}.")
        found[key] = value
    return found
