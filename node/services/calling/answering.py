"""Answers calls of services at their host: finds the instance, hands the call over, and says what came of it.

An instance that drains gets no new call and ends its old ones. ``NotHere`` and ``Busy`` say that a call certainly did
not run; so while another instance of this host is ready it is tried, and then the caller asks another host.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import trio

from ....mesh import limits
from ....mesh.errors import Busy, LeptonError, LinkError, Refused, UsageError
from ....mesh.identity import PeerId
from ....mesh.rpc.methods import Answer, Empty, Incoming, Method
from ....mesh.tensors import Array
from ...config import did_you_mean
from ...seeing import request
from ..errors import NotHere, TooLate
from ..hosting import Instance, Instances
from ..messages import CALL, DESCRIBE, FEED, STREAM, Asked, Described, Given
from ..spec import Kind, MethodSpec, ServiceSpec
from .sticky import ranked
from .troubles import trouble_of

NEEDS: Final = "service"  # the capability, for the service's name

T = TypeVar("T")


class Serves(Protocol):
    """What answers calls are served by: the mesh's calls."""

    def serve(self, *methods: Method) -> None: ...


class Answering:
    """The calls of services that this node's instances answer, for peers and for itself."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._turn = 0

    def serve(self, calls: Serves) -> None:
        """Answer peers."""
        calls.serve(
            Method(
                name=CALL,
                needs=NEEDS,
                takes=Asked,
                handler=self._call,
                body_bytes_max=limits.BODY_BYTES_MAX,
                queued=True,  # at the instance's gate
            ),
            Method(
                name=STREAM,
                needs=NEEDS,
                takes=Asked,
                handler=self._stream,
                body_bytes_max=limits.BODY_BYTES_MAX,
                kind="server_stream",
            ),
            Method(
                name=FEED,
                needs=NEEDS,
                takes=Asked,
                handler=self._feed,
                body_bytes_max=limits.BODY_BYTES_MAX,
                kind="client_stream",
                items=Given,
            ),
            Method(name=DESCRIBE, needs=NEEDS, takes=Described, handler=self._describe),
        )

    # -- for peers ----------------------------------------------------------------------------------------------------

    async def _call(self, incoming: Incoming[Asked]) -> Answer[Given]:
        deadline, asked = trio.current_time() + incoming.timeout_s, incoming.message
        with request.following(asked.request, "call", service=incoming.scope, method=asked.method):
            self._require_open(incoming.scope, asked)
            return await _told(self.call(incoming.caller, incoming.scope, asked, incoming.arrays, deadline=deadline))

    async def _feed(self, incoming: Incoming[Asked]) -> Answer[Given]:
        deadline = trio.current_time() + incoming.timeout_s
        asked, arrays, items = incoming.message, incoming.arrays, incoming.items
        with request.following(asked.request, "client stream", service=incoming.scope, method=asked.method):
            self._require_open(incoming.scope, asked)
            return await _told(self.feed(incoming.caller, incoming.scope, asked, arrays, items, deadline=deadline))

    async def _stream(self, incoming: Incoming[Asked]) -> None:
        deadline = trio.current_time() + incoming.timeout_s
        asked = incoming.message
        with request.following(asked.request, "server stream", service=incoming.scope, method=asked.method):
            self._require_open(incoming.scope, asked)
            items = self.stream(incoming.caller, incoming.scope, asked, incoming.arrays, deadline=deadline)
            async with aclosing(items):
                try:
                    async for item in items:
                        await incoming.send(item.message, item.arrays)
                except LeptonError as error:
                    await incoming.send(Given(trouble=trouble_of(error)))

    async def _describe(self, incoming: Incoming[Described]) -> Answer[Empty]:
        text = msgspec.json.encode(self.spec(incoming.scope, incoming.message.version))
        return Answer(Empty(), [np.frombuffer(text, dtype=np.uint8)])

    def _require_open(self, service: str, asked: Asked) -> None:
        """Raise Refused for a method that answers its own device alone."""
        specs = [one.wanted.spec for one in self._instances.running.values() if one.wanted.spec.name == service]
        methods = [method for spec in specs if (method := spec.method(asked.method)) is not None]
        if any(method.where == "here" for method in methods):
            raise Refused(f"{service}.{asked.method} answers programs on its own device alone.")

    # -- for whomever -------------------------------------------------------------------------------------------------

    def spec(self, service: str, version: str = "") -> ServiceSpec:
        """Return all about a service of which an instance is ready here. Raises NotHere."""
        return max((one.wanted.spec for one in self._ready(service, version)), key=lambda spec: _rank(spec.version))

    async def call(
        self, caller: PeerId, service: str, asked: Asked, arrays: Sequence[Array], *, deadline: float
    ) -> Answer[Given]:
        """Have one call answered. Raises what the instance does, NotHere and Busy when none takes it, UsageError."""

        async def ask(instance: Instance, until: float) -> Answer[Given]:
            return await instance.call(caller, asked, arrays, deadline=until)

        return await self._first(service, asked, "unary", ask, deadline)

    async def feed(
        self,
        caller: PeerId,
        service: str,
        asked: Asked,
        arrays: Sequence[Array],
        items: AsyncIterator[Answer[Any]],
        *,
        deadline: float,
    ) -> Answer[Given]:
        """Have a client stream answered; otherwise like ``call``. Once an item was taken no other instance is tried."""
        watched = Once(items)

        async def ask(instance: Instance, until: float) -> Answer[Given]:
            if watched.begun:
                raise NotHere(f"{service!r} ended here while it was sent a stream, which cannot be sent again.")
            return await instance.feed(caller, asked, arrays, watched, deadline=until)

        return await self._first(service, asked, "client_stream", ask, deadline)

    async def stream(
        self, caller: PeerId, service: str, asked: Asked, arrays: Sequence[Array], *, deadline: float
    ) -> AsyncGenerator[Answer[Given], None]:
        """Iterate over what a method streams; otherwise like ``call``. After an item no other instance is tried."""
        begun = False
        last: LeptonError | None = None
        for instance in self._able(service, asked, "server_stream"):
            until = _until(instance, asked, deadline)
            try:
                async with instance.stream(caller, asked, arrays, deadline=until) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except (NotHere, Busy) as error:
                if begun:
                    raise
                last = error
            except LinkError as error:
                raise _late(service, asked, error, until) from error
        raise last or _nowhere(service)

    # -- choosing -----------------------------------------------------------------------------------------------------

    async def _first(
        self,
        service: str,
        asked: Asked,
        kind: Kind,
        ask: Callable[[Instance, float], Awaitable[T]],
        deadline: float,
    ) -> T:
        """Ask one instance after another until one takes the call."""
        last: LeptonError | None = None
        for instance in self._able(service, asked, kind):
            until = _until(instance, asked, deadline)
            try:
                return await ask(instance, until)
            except (NotHere, Busy) as error:
                last = error
            except LinkError as error:
                raise _late(service, asked, error, until) from error
        raise last or _nowhere(service)

    def _able(self, service: str, asked: Asked, kind: Kind) -> list[Instance]:
        """Return who may take a call, the first to be asked first. Raises NotHere, UsageError."""
        ready = self._ready(service, asked.version)
        found = [(one, one.wanted.spec.method(asked.method)) for one in ready]
        able = [(one, method) for one, method in found if method is not None and method.kind == kind]
        if not able:
            raise _no_method(service, asked.method, kind, [method for _, method in found if method is not None], ready)
        if asked.session:
            order = ranked(asked.session, [one.wanted.id for one, _ in able])
            return sorted((one for one, _ in able), key=lambda one: order.index(one.wanted.id))
        self._turn += 1
        turn = self._turn % len(able)
        return [one for one, _ in sorted(able[turn:] + able[:turn], key=_fullness)]  # of equals in turn

    def _ready(self, service: str, version: str) -> list[Instance]:
        of_service = [one for one in self._instances.running.values() if one.wanted.spec.name == service]
        ready = [one for one in of_service if one.state == "ready" and version in {"", one.wanted.spec.version}]
        if not ready:
            raise _nowhere(service, version)
        return ready


class Once:
    """Items of a client stream, which can be sent but once, and whether any was taken."""

    def __init__(self, items: AsyncIterator[Answer[Any]]) -> None:
        self._items = items
        self.begun = False

    def __aiter__(self) -> "Once":
        return self

    async def __anext__(self) -> Answer[Any]:
        self.begun = True
        return await anext(self._items)


async def _told(call: Awaitable[Answer[Given]]) -> Answer[Given]:
    try:
        return await call
    except LeptonError as error:
        return Answer(Given(trouble=trouble_of(error)))


def _rank(version: str) -> tuple[list[int], str]:
    """Return what orders versions by their numbers: 0.10 is behind 0.9."""
    return [int(number) for number in re.findall("[0-9]+", version)], version


def _fullness(able: tuple[Instance, MethodSpec]) -> float:
    instance, method = able
    return (instance.load.running + instance.load.waiting) / (method.concurrency * method.batch_size_max)


def _until(instance: Instance, asked: Asked, deadline: float) -> float:
    """Return when a call has to be done: by its caller's time, and by what the author gave it."""
    method = instance.wanted.spec.method(asked.method)
    return deadline if method is None else min(deadline, trio.current_time() + method.timeout_s)


def _late(service: str, asked: Asked, error: LinkError, until: float) -> LinkError:
    """Return the error itself, or that the time was over."""
    if trio.current_time() < until or isinstance(error, TooLate):
        return error
    return TooLate(f"{service}.{asked.method} was not done in the time that there was; it may have run.")


def _nowhere(service: str, version: str = "") -> NotHere:
    of = f" of version {version}" if version else ""
    return NotHere(f"No instance of {service!r}{of} is ready on this node.")


def _no_method(service: str, name: str, kind: Kind, found: list[MethodSpec], ready: list[Instance]) -> UsageError:
    if found:
        return UsageError(f"{service}.{name} is a {found[0].kind} method and was called as {kind}.")
    names = sorted({method.name for one in ready for method in one.wanted.spec.methods})
    return UsageError(f"{service!r} has no method {name!r}.{did_you_mean(name, names)} It has {', '.join(names)}.")
