"""What stages and askers say to each other."""

from typing import Annotated

import msgspec

from ...mesh.identity import PeerId
from ...mesh.messages import Message, Natural, Text

_STAGES_MAX = 64
BATCH_MAX = 256  # samples of one request that travel together

Token = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]


class StageWork(Message, frozen=True, kw_only=True):
    """Run your layers on the tensor beside this and pass it on along the route; ``position`` is yours in it."""

    session: Token
    attempt: Natural
    version: Natural
    route: Annotated[tuple[PeerId, ...], msgspec.Meta(min_length=1, max_length=_STAGES_MAX)]
    stages: Annotated[tuple[tuple[Natural, Natural], ...], msgspec.Meta(min_length=1, max_length=_STAGES_MAX)]
    position: Natural
    asker: PeerId


class StageResult(Message, frozen=True, kw_only=True):
    """The tensor beside this is the result of your request."""

    session: Token
    attempt: Natural


class StageBroke(Message, frozen=True, kw_only=True):
    """I could not pass your request on to this peer."""

    session: Token
    attempt: Natural
    peer: PeerId
    reason: Text
