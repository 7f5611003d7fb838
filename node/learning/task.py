"""A task as its owner says it: a TOML file, a command's options or a program's arguments, checked once, at the edge.

Free of torch, like `settings`: a misspelt key is told before anything is loaded.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from ...mesh.errors import UsageError
from ...mesh.messages import Name
from ..config import check_keys, check_values, merged, parse_size, require_name, sentence
from ..limits import FACTORY_CHARS_MAX, FACTORY_PATTERN, SEED_MAX, WIDTH_MAX
from ..objective import Objective, is_of_classes, is_of_values
from .settings import (
    Budget,
    Copies,
    Distil,
    Members,
    Parts,
    Policy,
    Prune,
    Stop,
    TrainSettings,
    WaitSeconds,
    check_optimiser,
    check_prune,
    require_no_baseline,
)

CodecName = Literal["float32", "float16", "bfloat16", "int8", "int4"]
FILE_BYTES_MAX: Final = 64 * 1024  # a task's file is a page of text


class ModelPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[model]`: what is trained; its inputs follow from the data."""

    architecture: Literal["mlp", "cnn", "lstm", "own"] = "mlp"  # "package.module:factory" is `own` with that factory
    factory: Annotated[str, msgspec.Meta(max_length=FACTORY_CHARS_MAX)] = ""
    hidden: Annotated[int, msgspec.Meta(ge=1, le=WIDTH_MAX)] = 64  # units (mlp, lstm) or channels (cnn)
    hidden_activation: Literal["sigmoid", "relu"] = "sigmoid"  # of an mlp
    classes: Annotated[int, msgspec.Meta(ge=2, le=WIDTH_MAX)] | None = None  # if this device's part has not all


class Averaging(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[averaging]`: how nodes exchange what they learned."""

    codec: CodecName | None = None  # int8; `private` has none
    group_size: Annotated[int, msgspec.Meta(ge=2, le=64)] | None = None  # 8; `private`: 8 or 16; `robust` has no groups
    peers: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None  # `robust` only: models pulled in a round, 8
    members: Members | None = None  # begin when as many are ready; all that have the data
    start_wait_s: WaitSeconds = 30.0  # or when this has passed


class Serve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[serve]`: what becomes of the model."""

    copies: Copies = 2  # of each layer


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One task. `train` holds keys of `TrainSettings`; what it does not say is chosen to suit the model."""

    name: str
    data: Name
    objective: Objective = "cross_entropy"
    policy: Policy = "trusted"
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] = 0  # of the model's first values and of the batches
    baseline: bool = False  # each node also trains alone, to compare
    model: ModelPart = ModelPart()
    train: dict[str, Any] = {}
    averaging: Averaging = Averaging()
    budget: Budget = Budget()
    stop: Stop = Stop()
    distil: Distil | None = None
    prune: Prune | None = None
    parts: Parts = Parts()
    serve: Serve = Serve()

    def settings(self, suited: TrainSettings) -> TrainSettings:
        """Return how to train: what the task says, and for the rest what suits the model."""
        said = msgspec.to_builtins(suited) | {"seed": self.seed} | self.train
        return msgspec.convert(said, TrainSettings)


def load_task(path: Path, overrides: Mapping[str, Any] | None = None) -> Task:
    """Read a task's file; ``overrides`` (from the command line) win. Raises UsageError that names what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise UsageError(f"{path} has more than {FILE_BYTES_MAX} bytes: it is no task's file.")
        found = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a readable TOML file: {error}.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}; name a task's file.") from error
    return task_from(merged(found, overrides or {}), str(path))


def task_from(found: Mapping[str, Any], where: str) -> Task:
    """Check a task in plain data, which came from ``where``. Raises UsageError that names what is wrong."""
    found = _with_factory(found)
    check_keys(where, found, Task)
    train = found.get("train", {})
    if isinstance(train, Mapping):
        check_keys(where, train, TrainSettings, "train.")
    for key in ("name", "data"):
        if key not in found:
            raise UsageError(f"{where}: the key {key!r} is missing: every task has a name and the name of its data.")
    require_name(str(found["name"]), "task")
    check_values(where, found, Task)
    try:
        task = msgspec.convert(_with_size(found), Task)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {sentence(error)}.") from error
    _check_train(where, task)
    _check_factory(where, task.model)
    _check_objective(where, task)
    check_words(where, task.policy, task.averaging)
    return task


def check_words(where: str, policy: Policy, said: Averaging) -> None:
    """Raise UsageError for options of averaging that this policy does not have."""
    if policy == "private" and said.codec is not None:
        raise UsageError(
            f"{where}: averaging.codec: a private task has none: sums under masks travel as 32-bit words. Leave it out."
        )
    if policy == "robust" and said.group_size is not None:
        raise UsageError(
            f"{where}: averaging.group_size: a robust task has no groups: each node pulls from averaging.peers others."
        )
    if policy != "robust" and said.peers is not None:
        raise UsageError(
            f"{where}: averaging.peers is for the policy 'robust'; this one is {policy!r}, which excludes it."
        )


def _check_objective(where: str, task: Task) -> None:
    """Raise UsageError for what this objective does not have."""
    if task.model.classes is not None and not is_of_classes(task.objective):
        raise UsageError(
            f"{where}: model.classes is for the objective 'cross_entropy'; with {task.objective!r} the data say how "
            "many numbers are predicted. Leave it out."
        )
    if task.stop.accuracy is not None and is_of_values(task.objective):
        raise UsageError(f"{where}: stop.accuracy: of values none is right or wrong. Did you mean 'stop.r2'?")
    if task.stop.r2 is not None and not is_of_values(task.objective):
        raise UsageError(
            f"{where}: stop.r2 is for values; this objective is {task.objective!r}. Did you mean 'stop.accuracy'?"
        )


def _with_factory(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let a model of an owner's own be said as its architecture."""
    model = found.get("model")
    if isinstance(model, Mapping) and isinstance(said := model.get("architecture"), str) and ":" in said:
        return {**found, "model": {**model, "architecture": "own", "factory": said}}
    return found


def _check_factory(where: str, model: ModelPart) -> None:
    own = model.architecture == "own"
    if own and not re.fullmatch(FACTORY_PATTERN, model.factory):
        raise UsageError(f"{where}: model.architecture: {model.factory!r} is no package.module:factory.")
    if model.factory and not own:
        raise UsageError(f"{where}: model.factory: {model.architecture!r} has none; give one of the two.")


def _with_size(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the budget of bytes be said as in "2 MB"."""
    budget = found.get("budget")
    if isinstance(budget, Mapping) and isinstance(budget.get("bytes"), str):
        return {**found, "budget": {**budget, "bytes": parse_size(budget["bytes"])}}
    return found


def _check_train(where: str, task: Task) -> None:
    check_values(where, task.train, TrainSettings, "train.")
    try:
        settings = task.settings(TrainSettings())
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {sentence(error, 'train.')}.") from error
    try:
        check_optimiser(settings.optimiser, task.train)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if task.baseline:
        require_no_baseline(settings)
    if task.prune is not None:
        try:
            check_prune(task.prune, task.policy, task.budget.rounds)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    if task.distil is not None and settings.dp is not None:
        raise UsageError(f"{where}: train.dp: records that a teacher is shown have no such privacy: leave one out.")
