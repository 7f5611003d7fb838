"""What simulated devices say in their records: as real nodes do, of a toy model and a toy task."""

from typing import Annotated, Final, Literal

import msgspec

from ..mesh.messages import Message, Natural

PROFILE: Final = "profile"
MODEL: Final = "model"
STAGE: Final = "stage"
TRAINER: Final = "trainer"

MODEL_NAME: Final = "chain"
TASK_NAME: Final = "optimum"
# Layer k computes x -> (a_k x + b_k) mod this: exact, and no two layers commute, so a skipped one always shows.
MODULUS: Final = 2**31 - 1  # a Mersenne prime: what is multiplied stays under 2^63


class Profile(Message, frozen=True, kw_only=True):
    """What a device offers: bytes of weights that it may hold (record name: 'self')."""

    memory_bytes: Natural


class ModelRecord(Message, frozen=True, kw_only=True):
    """The model that ought to be served (durable)."""

    version: Natural
    layer_bytes: Annotated[tuple[Natural, ...], msgspec.Meta(min_length=1, max_length=256)]
    copies: Annotated[int, msgspec.Meta(ge=1, le=16)]


class StageRecord(Message, frozen=True, kw_only=True):
    """A run of layers that its owner has loaded."""

    version: Natural
    first: Natural
    end: Natural


class TrainerRecord(Message, frozen=True, kw_only=True):
    """Where one device stands in the task."""

    state: Literal["preparing", "ready", "training", "done"]
    round: Natural
    first_round: Natural = 0  # from which on it takes part: nobody waits for it before


def run_layers(first: int, end: int, x: int) -> int:
    """Compute layers [first, end) of the toy model."""
    for layer in range(first, end):
        x = ((2 * layer + 3) * x + layer + 1) % MODULUS
    return x
