"""What others may ask a host about its instances: their logs, and to wake a service that has none."""

from typing import Annotated, Final

import msgspec
import numpy as np

from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.grants import DEPLOY
from ...mesh.messages import Message
from ...mesh.tensors import Array
from .hosting import Instances
from .shell import Hosting

LOGS: Final = "services.logs"  # scope: the service's name; who may deploy it may read what it prints
WAKE: Final = "services.wake"  # who may call it may have it started
LINES_MAX: Final = 1000
LOG_BYTES_MAX: Final = 256 * 1024


class LogsWanted(Message, frozen=True, kw_only=True):
    """Tell me the last lines that instances of this service printed; they come as bytes of UTF-8."""

    lines: Annotated[int, msgspec.Meta(ge=1, le=LINES_MAX)] = 100


class Reading:
    """Answers about what runs here."""

    def __init__(self, pool: Instances, hosting: Hosting) -> None:
        self._pool = pool
        self._hosting = hosting

    def methods(self) -> tuple[Method, ...]:
        return (
            Method(name=LOGS, needs=DEPLOY, takes=LogsWanted, handler=self._logs),
            Method(name=WAKE, needs="service", takes=Empty, handler=self._wake),
        )

    async def _logs(self, call: Incoming[LogsWanted]) -> Answer[Empty]:
        lines = self._pool.logs(call.scope, lines=call.message.lines) if call.scope else []
        return Answer(Empty(), [packed(lines)])

    async def _wake(self, call: Incoming[Empty]) -> Answer[Empty]:
        await self._hosting.wake(call.scope)
        return Answer(Empty())


def packed(lines: list[str]) -> Array:
    """Put lines into bytes, the last ones where not all fit."""
    data = "\n".join(lines).encode()[-LOG_BYTES_MAX:]
    return np.frombuffer(data, dtype=np.uint8)


def unpacked(array: Array) -> list[str]:
    """Return the lines; what a host sends that is no UTF-8 shows as such."""
    text = array.tobytes().decode(errors="replace")
    return text.split("\n") if text else []
