"""What nodes say in their records, and how to read a picture out of them. Pure: records in, decisions' inputs out."""

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from ..mesh.messages import Message, Name, Natural, Sha256, Text
from ..mesh.records import Record
from .deployments import BlobRef
from .learning.settings import Budget, Copies, Distil, Members, Parts, Policy, Prune, Stop, TrainSettings, WaitSeconds
from .limits import FACTORY_CHARS_MAX
from .shapes import ModelSpec

PROFILE: Final = "profile"
MODEL: Final = "model"
STAGE: Final = "stage"
TASK: Final = "task"
TRAINER: Final = "trainer"
CIRCLE: Final = "circle"

T = TypeVar("T")
Factory = Annotated[str, msgspec.Meta(max_length=FACTORY_CHARS_MAX)]


class Profile(Message, frozen=True, kw_only=True):
    """What a device is and offers (record name: 'self')."""

    device: Text
    memory_bytes: Natural  # weights that it may hold for serving
    data: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()  # names only; nothing of what is in them
    models: Annotated[tuple[Factory, ...], msgspec.Meta(max_length=64)] = ()  # functions that may make models here


class ModelRecord(Message, frozen=True, kw_only=True):
    """A model that ought to be served (durable; record name: the model's). Equal names: the highest version counts."""

    spec: ModelSpec
    version: Natural
    layers: Annotated[tuple[BlobRef, ...], msgspec.Meta(min_length=1, max_length=256)]
    copies: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2


class StageRecord(Message, frozen=True, kw_only=True):
    """A run of layers that its owner has loaded and serves (record name: the model's)."""

    version: Natural
    first: Natural
    end: Natural
    arithmetic: Annotated[str, msgspec.Meta(max_length=128)] = ""  # of language models; equal ones round alike


class TaskRecord(Message, frozen=True, kw_only=True):
    """A training task (durable; record name: the task's, which is also that of the model it makes)."""

    spec: ModelSpec
    structure: Sha256 | None = None  # of a model of an owner's own: a hash of what its averaged numbers mean
    settings: TrainSettings
    data: Name
    budget: Budget = Budget()
    stop: Stop = Stop()
    distil: Distil | None = None  # who teaches
    prune: Prune | None = None  # numbers that become zeros
    parts: Parts = Parts()
    policy: Policy = "trusted"
    codec: Annotated[str, msgspec.Meta(max_length=32)] = "int8"
    peers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8  # models that a robust task pulls in a round
    group_size: Annotated[int, msgspec.Meta(ge=2, le=64)] = 8
    members_min: Members = 1  # round 0 begins when as many are ready, or
    start_wait_s: WaitSeconds = 30.0  # when this has passed
    baseline: bool = False  # each node also trains alone, to show what its own data could teach it
    copies: Copies = 2
    version: Natural

    @property
    def rounds(self) -> int:
        """How many there are at most."""
        return self.budget.rounds

    @property
    def is_served(self) -> bool:
        """Whether its model is served afterwards: not one with layers that never leave, nor an owner's own."""
        return not self.parts.local and self.spec.architecture != "own"


class TrainerRecord(Message, frozen=True, kw_only=True):
    """Where one node stands in a task (record name: the task's)."""

    state: Literal["preparing", "ready", "training", "done", "failed"]
    version: Natural  # of the task
    round: Natural = 0
    first_round: Natural = 0  # from which on it takes part: nobody waits for it before
    last: Natural | None = None  # rounds after which the task ends, where a rule of it says so: all follow the least
    samples: Natural = 0
    accuracy: float | None = None
    accuracy_alone: float | None = None
    r2: float | None = None  # in place of accuracy, where values are predicted
    r2_alone: float | None = None
    loss: float | None = None
    epsilon: float | None = None  # of its training records' privacy, spent so far; None: no differential privacy
    delta: float | None = None  # at which that holds
    bytes_sent: Natural = 0
    deadline_misses: Natural = 0
    reason: Text = ""

    @property
    def score(self) -> float | None:
        """What is the better the higher: accuracy or R2."""
        return self.accuracy if self.r2 is None else self.r2


class CircleRecord(Message, frozen=True, kw_only=True):
    """That a node averages a vector of its own program with whoever does so under this name (record name: the task's).

    ``model`` is a hash of what the vector's ``dimension`` numbers mean: only those with the same average.
    """

    model: Sha256
    dimension: Natural
    round: Natural = 0
    first_round: Natural = 0  # from which on it takes part


def newest(records: Iterable[tuple[Record, T]]) -> dict[str, tuple[Record, T]]:
    """Of records with equal names keep the one with the highest version, then owner: every node picks the same."""
    best: dict[str, tuple[Record, T]] = {}
    for record, value in records:
        known = best.get(record.name)
        if known is None or _rank(record, value) > _rank(*known):
            best[record.name] = (record, value)
    return best


def _rank(record: Record, value: object) -> tuple[int, str]:
    return (getattr(value, "version", 0), record.owner)
