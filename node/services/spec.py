"""What a service is, in data: its methods, what they take and give, and what it needs of a device."""

from typing import Annotated, Final, Literal

import msgspec

from ...mesh import limits
from ...mesh.messages import Message, Name, Natural, Text

METHODS_MAX: Final = 32
NEEDED_MAX: Final = 8  # models, or devices, that one service needs
SCHEMA_CHARACTERS_MAX: Final = 64 * 1024  # of one method: a dataclass with nested ones takes a page

# A Python name, so that a typed client can have it; no leading underscore: that is nobody else's business.
MethodName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
VersionText = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+){0,3}([-+.]?[a-z0-9]+){0,4}\Z", max_length=32)]
Entry = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,127}:[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]
Schema = Annotated[str, msgspec.Meta(max_length=SCHEMA_CHARACTERS_MAX)]  # JSON Schema 2020-12, as JSON
Kind = Literal["unary", "server_stream", "client_stream"]
Where = Literal["anywhere", "here"]  # who may answer: any device, or the caller's own alone


class MethodBrief(Message, frozen=True, kw_only=True):
    """What a caller has to know of a method to choose a replica."""

    name: MethodName
    kind: Kind = "unary"
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=limits.CALL_TIMEOUT_S_MAX)] = limits.CALL_TIMEOUT_S
    idempotent: bool = False  # a second run changes nothing: it may be asked of two replicas, and again after a death
    session: Annotated[str, msgspec.Meta(max_length=64)] = ""  # the parameter whose equal values stay on one replica
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1  # calls (or batches) that run at once in one instance
    batch_size_max: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    where: Where = "anywhere"


class MethodSpec(MethodBrief, frozen=True, kw_only=True):
    """A method as its author declared it; ``takes`` is an object's schema with a property for each parameter."""

    takes: Schema
    gives: Schema
    streams: Annotated[str, msgspec.Meta(max_length=64)] = ""  # of a client stream: the parameter that is the stream
    doc: Text = ""
    batch_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 0.0  # for others to fill a batch


class Needs(Message, frozen=True, kw_only=True):
    """What one instance takes of the device that hosts it, and what has to be there."""

    memory_bytes: Natural = 256 * 1024 * 1024  # an interpreter with numpy takes 40 MB, one with torch 300
    cores: Annotated[float, msgspec.Meta(gt=0, le=1024)] = 1.0
    models: Annotated[tuple[Name, ...], msgspec.Meta(max_length=NEEDED_MAX)] = ()  # served by the mesh
    devices: Annotated[tuple[Name, ...], msgspec.Meta(max_length=NEEDED_MAX)] = ()  # named in the node's configuration


class ServiceSpec(Message, frozen=True, kw_only=True):
    """A whole service; ``entry`` is ``module:Class`` inside its bundle."""

    name: Name
    version: VersionText
    entry: Entry
    methods: Annotated[tuple[MethodSpec, ...], msgspec.Meta(min_length=1, max_length=METHODS_MAX)]
    needs: Needs = Needs()
    doc: Text = ""

    def method(self, name: str) -> MethodSpec | None:
        return next((method for method in self.methods if method.name == name), None)
