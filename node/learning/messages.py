"""What learners say to each other outside the rounds, and how a round's message travels."""

from typing import Annotated

import msgspec

from ...mesh import limits
from ...mesh.messages import Message, Natural


class RoundMessage(Message, frozen=True, kw_only=True):
    """A message of the averaging machines; its payload is the uint8 tensor beside it."""

    header: Annotated[bytes, msgspec.Meta(max_length=limits.BIN_BYTES_MAX)]


class StateWanted(Message, frozen=True, kw_only=True):
    """Send me the model that this task has reached."""

    version: Natural


class State(Message, frozen=True, kw_only=True):
    """The next round that the sender enters; its parameters, float32 (D,), are the transfer beside it.

    `reference` is their name, if they are those that a round agreed on: `Averager.refer_to`.
    """

    round: Natural
    reference: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
