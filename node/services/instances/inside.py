"""The mesh inside an instance: what ``setup(self, mesh)`` is given. It asks the node, which asks the mesh."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import trio

from ....mesh import limits
from ....mesh.tensors import Array
from ..writing import values
from . import local
from .asker import Asker, Items
from .local import Outcome, ToMesh


@dataclass(frozen=True, slots=True)
class Current:
    """The call that is being answered."""

    request: str
    deadline: float


current: ContextVar[Current | None] = ContextVar("current", default=None)


class MeshInside:
    """Implements ``api.Mesh``. Also usable from a thread: ``trio.from_thread.run(mesh.call, name, x)``."""

    def __init__(self, asker: Asker, devices: Mapping[str, str]) -> None:
        self._asker: Final = asker
        self.devices: Mapping[str, str] = dict(devices)

    async def call(self, name: str, /, *positional: object, **named: object) -> Any:  # noqa: ANN401 - plain data
        return await self._ask(local.MESH_CALL, name, positional, named)

    async def predict(self, model: str, x: Any) -> Any:  # noqa: ANN401 - an array
        return await self._ask(local.MESH_PREDICT, model, (x,), {})

    @asynccontextmanager
    async def stream(self, name: str, /, *positional: object, **named: object) -> AsyncIterator[AsyncIterator[Any]]:
        async with self._items(local.MESH_STREAM, name, positional, named) as items:
            yield items

    @asynccontextmanager
    async def generate(self, model: str, prompt: str, **options: object) -> AsyncIterator[AsyncIterator[str]]:
        async with self._items(local.MESH_GENERATE, model, (prompt,), options) as items:
            yield items

    async def _ask(self, method: str, name: str, positional: tuple[object, ...], named: Mapping[str, object]) -> Any:  # noqa: ANN401
        asked, arrays, deadline = _to_mesh(name, positional, named)
        said, given = await self._asker.ask(method, asked, arrays, answers=Outcome, deadline=deadline)
        return values.decode(said.value, given)

    @asynccontextmanager
    async def _items(
        self, method: str, name: str, positional: tuple[object, ...], named: Mapping[str, object]
    ) -> AsyncIterator[AsyncIterator[Any]]:
        asked, arrays, deadline = _to_mesh(name, positional, named)
        async with (
            self._asker.stream(method, asked, arrays, items=Outcome, deadline=deadline) as items,
            aclosing(_decoded(items)) as found,
        ):
            yield found


async def _decoded(items: Items[Outcome]) -> AsyncGenerator[Any]:
    async for said, arrays in items:
        yield values.decode(said.value, arrays)


def _to_mesh(
    name: str, positional: tuple[object, ...], named: Mapping[str, object]
) -> tuple[ToMesh, list[Array], float]:
    value, arrays = values.encode([positional, dict(named)])
    asking = current.get()
    now = trio.current_time()
    if asking is None:  # setup, or a task of the service's own
        return ToMesh(name=name, value=value, request=secrets.token_hex(8)), arrays, now + limits.CALL_TIMEOUT_S_MAX
    return ToMesh(name=name, value=value, request=asking.request), arrays, asking.deadline
