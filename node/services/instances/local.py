"""What a node and its instances say to each other, beside calls themselves: starting, closing, asking the mesh.

Over one socket the node asks (start, call, stream, feed, close), over another the instance (the names of ``Outward``).
The messages are decoded by msgspec straight into these types, as headers are: no field is of a free type.
"""

from typing import Annotated, Final

import msgspec

from ....mesh import limits
from ....mesh.messages import Message, Name, Text
from ..messages import RequestId, Value
from ..spec import Entry, ServiceSpec

START: Final = "start"
CLOSE: Final = "close"
CALL: Final = "call"
STREAM: Final = "stream"
FEED: Final = "feed"
MESH_CALL: Final = "mesh.call"
MESH_STREAM: Final = "mesh.stream"
MESH_PREDICT: Final = "mesh.predict"
MESH_GENERATE: Final = "mesh.generate"

CALLS_MAX: Final = 8192  # of one instance at once: 32 methods with all the concurrency that they may have
ASKED_MAX: Final = 64  # of the mesh by one instance at once
Reason = Annotated[str, msgspec.Meta(max_length=limits.REASON_CHARACTERS_MAX)]


class Start(Message, frozen=True, kw_only=True):
    """Import the class, and unless only its description is wanted make one and set it up."""

    entry: Entry
    devices: dict[Name, Text] = msgspec.field(default_factory=dict)
    only_describe: bool = False


class Ready(Message, frozen=True, kw_only=True):
    """The service is set up; this is what the class says of itself."""

    spec: ServiceSpec


class Outcome(Message, frozen=True, kw_only=True):
    """What a method gave, or one item of it, or what the author's code raised."""

    value: Value = Value()
    error: Reason = ""


class ToMesh(Message, frozen=True, kw_only=True):
    """What a service wants of the mesh: the value is ``[positional, named]``."""

    name: Text
    value: Value
    request: RequestId


class Nothing(Message, frozen=True, kw_only=True):
    """Nothing to say."""
