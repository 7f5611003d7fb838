"""A call of a service on its way: from a caller to a host, and from a host to the instance in its own process.

The same messages go both ways, so that a host passes on what it does not have to understand. Values are a msgpack tree
and arrays beside it (`values.py`).
"""

from typing import Annotated, Final, Literal

import msgspec

from ...mesh import limits
from ...mesh.messages import Message, Natural, Text
from .records import InstanceId
from .spec import MethodName, VersionText

CALL: Final = "services.call"  # the mesh's methods, scope: the service's name
STREAM: Final = "services.stream"
FEED: Final = "services.feed"
DESCRIBE: Final = "services.describe"  # takes Described, gives a ServiceSpec as the JSON in an array of bytes

TroubleKind = Literal["service", "not_here", "lost", "busy", "usage", "late", "link"]
RequestId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16,32}\Z")]  # one for all that a user's request causes


class Value(Message, frozen=True, kw_only=True):
    """A value without its arrays; a tree that is too large for a message is the last array, as bytes."""

    tree: Annotated[bytes, msgspec.Meta(max_length=limits.BIN_BYTES_MAX)] = b""


class Asked(Message, frozen=True, kw_only=True):
    """What a caller wants; the value has an item for each parameter by its name."""

    method: MethodName
    value: Value = Value()
    version: VersionText | str = ""  # a release that the caller insists on
    session: Text = ""  # equal ones stay on one instance
    request: RequestId


class Load(Message, frozen=True, kw_only=True):
    """How busy an instance is: comes with each answer, so that callers choose well without asking."""

    instance: InstanceId
    running: Natural = 0
    waiting: Natural = 0
    service_ms: float = 0.0  # a call's work, smoothed


class Trouble(Message, frozen=True, kw_only=True):
    """Why there is no value. It travels as an answer does, so that a caller is told the kind, and the load with it."""

    kind: TroubleKind
    text: Annotated[str, msgspec.Meta(max_length=limits.REASON_CHARACTERS_MAX)] = ""
    retry_after_s: Annotated[float, msgspec.Meta(ge=0, le=limits.CALL_TIMEOUT_S_MAX)] = 0.0


class Given(Message, frozen=True, kw_only=True):
    """An answer, or an item of one; with ``trouble`` it is the last, and the value means nothing."""

    value: Value = Value()
    load: Load | None = None
    trouble: Trouble | None = None


class Described(Message, frozen=True, kw_only=True):
    """Which release somebody wants to know all about; empty: the newest that runs at the callee."""

    version: VersionText | Literal[""] = ""
