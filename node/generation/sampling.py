"""How the next token is drawn: settings that travel with a session, and equal draws wherever it is drawn."""

from typing import Annotated, Final

import msgspec

from ...mesh.messages import Message
from ..limits import SEED_MAX

STOPS_MAX: Final = 8  # OpenAI's API has 4
STOP_CHARACTERS_MAX: Final = 256

_Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]


class Sampling(Message, frozen=True, kw_only=True):
    """How the tokens of one session are drawn. ``temperature`` 0 is greedy; then the seed does not matter."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # 0: all
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0  # 1: none (Keskar et al. 2019)
    seed: Annotated[int, msgspec.Meta(ge=0, le=SEED_MAX)] = 0
    stop: Annotated[tuple[_Stop, ...], msgspec.Meta(max_length=STOPS_MAX)] = ()
    tokens_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256
