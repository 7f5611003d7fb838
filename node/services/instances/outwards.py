"""Answers what an instance asks of the mesh: from its socket to the node's ``Outward``, and back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from ....mesh.errors import Refused, UsageError
from ....mesh.tensors import Array
from ..hosting import Outward
from ..writing import values
from ..writing.values import as_array
from . import local
from .answerer import Handler, Job, Reply
from .local import Outcome, ToMesh


class Outwards:
    """The handlers of one pool; without an ``Outward`` services have no mesh."""

    def __init__(self, outward: Outward | None) -> None:
        self._outward = outward

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {
            local.MESH_CALL: self._call,
            local.MESH_STREAM: self._stream,
            local.MESH_PREDICT: self._predict,
            local.MESH_GENERATE: self._generate,
        }

    async def _call(self, job: Job) -> Reply:
        asked, positional, named = _read(job)
        outward = self._mesh()
        return _outcome(await outward.call(asked.name, positional, named, request=asked.request, deadline=job.deadline))

    async def _predict(self, job: Job) -> Reply:
        asked, positional, _ = _read(job)
        array = as_array(positional[0]) if len(positional) == 1 else None
        if array is None:
            raise UsageError("A model is asked with one array, a batch of its inputs.")
        outward = self._mesh()
        return _outcome(await outward.predict(asked.name, array, request=asked.request, deadline=job.deadline))

    async def _stream(self, job: Job) -> Reply:
        asked, positional, named = _read(job)
        outward = self._mesh()
        items = outward.stream(asked.name, positional, named, request=asked.request, deadline=job.deadline)
        return await _pour(job, items)

    async def _generate(self, job: Job) -> Reply:
        asked, positional, options = _read(job)
        match positional:
            case [str(prompt)]:
                pieces = self._mesh().generate(
                    asked.name, prompt, options, request=asked.request, deadline=job.deadline
                )
                return await _pour(job, pieces)
        raise UsageError("A language model is asked with a prompt, a text.")

    def _mesh(self) -> Outward:
        if self._outward is None:
            raise Refused("There is no mesh here: this service runs by itself.")
        return self._outward


async def _pour(job: Job, items: AbstractAsyncContextManager[AsyncIterator[Any]]) -> Reply:
    async with items as found:
        async for item in found:
            await job.send(*_outcome(item))
    return Outcome(), ()


def _read(job: Job) -> tuple[ToMesh, list[Any], dict[str, Any]]:
    asked, arrays = job.read(ToMesh)
    match values.decode(asked.value, arrays):
        case [list(positional), dict(named)] if all(isinstance(name, str) for name in named):
            return asked, positional, named
    raise UsageError("The mesh is asked with positional and named values.")


def _outcome(value: object) -> tuple[Outcome, list[Array]]:
    tree, arrays = values.encode(value)
    return Outcome(value=tree), arrays
