"""A service inside its instance: the author's object, made and set up, and answers to what the node asks of it."""

import importlib
import inspect
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import trio

from ....mesh.errors import LeptonError, UsageError
from ....mesh.rpc.headers import reason_of
from ....mesh.tensors import Array
from ..messages import Asked, Given
from ..writing import values
from ..writing.declaring import Declared, declared
from . import local
from .answerer import Job, Reply
from .inside import Current, MeshInside
from .lane import Failed, Lane, authors, told
from .local import Nothing, Outcome, Ready, Start

_END: Final = object()


class Hosted:
    """Answers the node. Nothing but ``start`` is answered before the service is set up."""

    def __init__(self, mesh: Callable[[Mapping[str, str]], MeshInside], nursery: trio.Nursery) -> None:
        self._mesh = mesh
        self._nursery = nursery
        self._service: Any = None
        self._lanes: dict[str, Lane] = {}
        self.handlers: Final = {
            local.START: self._start,
            local.CALL: self._call,
            local.STREAM: self._stream,
            local.FEED: self._feed,
            local.CLOSE: self._close,
        }

    # -- its life -----------------------------------------------------------------------------------------------------

    async def _start(self, job: Job) -> Reply:
        start, _ = job.read(Start)
        try:
            found = _import(start.entry)
            if not start.only_describe:
                await self._set_up(found, start)
        except LeptonError:
            raise
        except (Exception, SystemExit) as error:
            traceback.print_exception(type(error), error, authors(error.__traceback__))
            raise UsageError(f"{type(error).__name__}: {error}") from error
        return Ready(spec=found.spec), ()

    async def _set_up(self, found: Declared, start: Start) -> None:
        service = found.cls()
        if (setup := getattr(service, "setup", None)) is not None:
            await _either(setup, *([self._mesh(start.devices)] if found.setup_takes_mesh else []))
        self._service = service
        for name, method in found.methods.items():
            self._lanes[name] = Lane(method, getattr(service, name), self._nursery)

    async def _close(self, _: Job) -> Reply:
        if (close := getattr(self._service, "close", None)) is not None:
            try:
                await _either(close)
            except (Exception, SystemExit):  # noqa: BLE001 - the author's
                traceback.print_exc()
        return Nothing(), ()

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _call(self, job: Job) -> Reply:
        lane, arguments, asked = self._asked(job)
        try:
            return _outcome(await lane.run(arguments, asked), asked)
        except Failed as error:
            return Outcome(error=reason_of(error)), ()

    async def _stream(self, job: Job) -> Reply:
        lane, arguments, asked = self._asked(job)
        try:
            await lane.with_turn(partial(self._pour, job, lane, arguments, asked), asked)
        except Failed as error:
            return Outcome(error=reason_of(error)), ()
        return Outcome(), ()

    async def _pour(self, job: Job, lane: Lane, arguments: Mapping[str, Any], asked: Current) -> None:
        async with aclosing(_items(lane, arguments)) as items:
            while True:
                try:
                    item = await anext(items, _END)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - the author's
                    raise told(error, asked.request) from None
                if item is _END:
                    return
                await job.send(*_outcome(item, asked))

    async def _feed(self, job: Job) -> Reply:
        lane, arguments, asked = self._asked(job)
        stream = lane.method.parameter(lane.method.stream)
        assert stream is not None

        async def items() -> AsyncGenerator[Any]:
            while (came := await job.next_item(Given)) is not None:
                what = f"{lane.method.owner}: an item of {stream.name!r}"
                yield values.convert(values.decode(came[0].value, came[1]), stream.type, what=what)

        job.invite()
        try:
            async with aclosing(items()) as generator:
                return _outcome(await lane.run({**arguments, stream.name: generator}, asked), asked)
        except Failed as error:
            return Outcome(error=reason_of(error)), ()

    def _asked(self, job: Job) -> tuple[Lane, dict[str, Any], Current]:
        """Read what is asked. Raises UsageError that names the parameter which does not fit."""
        asked, arrays = job.read(Asked)
        lane = self._lanes.get(asked.method)
        if (
            lane is None
            or {"unary": local.CALL, "server_stream": local.STREAM}.get(lane.method.kind, local.FEED) != job.method
        ):
            raise UsageError(f"The service has no method {asked.method!r} that is called like this.")
        given = values.decode(asked.value, arrays) or {}
        if not isinstance(given, dict):
            raise UsageError(f"{lane.method.owner} takes its parameters by their names.")
        return lane, _arguments(lane, given), Current(asked.request, job.deadline)


def _arguments(lane: Lane, given: Mapping[str, Any]) -> dict[str, Any]:
    method, arguments = lane.method, {}
    for parameter in method.parameters:
        if parameter.name == method.stream:
            continue
        if parameter.name in given:
            what = f"{method.owner}: its parameter {parameter.name!r}"
            arguments[parameter.name] = values.convert(given[parameter.name], parameter.type, what=what)
        elif parameter.required:
            raise UsageError(f"{method.owner} needs its parameter {parameter.name!r}.")
    if len(arguments) < len(given):
        known = ", ".join(each.name for each in method.parameters) or "none"
        unknown = ", ".join(repr(name) for name in given if name not in arguments)
        raise UsageError(f"{method.owner} has no parameter {unknown}; it takes {known}.")
    return arguments


def _outcome(result: object, asked: Current) -> tuple[Outcome, list[Array]]:
    try:
        value, arrays = values.encode(result)
    except UsageError as error:
        raise told(error, asked.request) from None
    return Outcome(value=value), arrays


async def _items(lane: Lane, arguments: Mapping[str, Any]) -> AsyncGenerator[Any]:
    """What a method streams. A plain generator is advanced in a thread."""
    if lane.method.is_async:
        async with aclosing(lane.function(**arguments)) as items:
            async for item in items:
                yield item
        return
    generator = lane.function(**arguments)
    try:
        while (item := await lane.in_thread(next, generator, _END)) is not _END:
            yield item
    finally:
        with trio.CancelScope(shield=True):
            if hasattr(generator, "close"):
                await lane.in_thread(generator.close)


async def _either(function: Callable[..., Any], *args: object) -> None:
    """Run what may be plain code or not."""
    if inspect.iscoroutinefunction(function):
        await function(*args)
    else:
        await trio.to_thread.run_sync(function, *args)


def _import(entry: str) -> Declared:
    module, _, name = entry.partition(":")
    cls = getattr(importlib.import_module(module), name, None)
    if not isinstance(cls, type):
        raise UsageError(f"The module {module} has no class {name}; the entry in service.toml names both.")
    return declared(cls)
