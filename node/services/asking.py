"""`lepton-node call` at the running node: JSON and arrays in, JSON out."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from ...mesh.errors import UsageError
from ...mesh.tensors import Array
from .calling.client import split
from .spec import Where
from .writing import in_json

if TYPE_CHECKING:
    from ..node import Node

Tell = Callable[[object], Awaitable[None]]


async def perform(
    node: "Node",
    tell: Tell,
    *,
    target: str,
    given: str,
    named: Sequence[str] = (),
    arrays: Sequence[Array] = (),
    as_lists: bool = True,
    timeout_s: float | None = None,
    version: str = "",
    where: Where = "anywhere",
) -> object:
    """Call a method; what it streams is told item by item. ``named`` are the parameters that the arrays are."""
    service, name = split(target)
    brief = node.services.clients.brief(service, name, version)
    method = (await node.services.calling.spec(service, version)).method(name)
    value = in_json.read(given, method.takes if method else "{}")
    if not isinstance(value, dict):
        raise UsageError("--json takes an object with the method's parameters, as in '{\"x\": 1}'.")
    parameters: dict[str, Any] = {**value, **dict(zip(named, arrays, strict=True))}
    if brief.kind == "client_stream" and method is not None:
        parameters[method.streams] = _each(parameters.get(method.streams, ()))

    def said(result: object) -> msgspec.Raw:
        return msgspec.Raw(in_json.write(result, arrays="lists" if as_lists else "base64"))

    clients = node.services.clients
    how: Any = {"version": version, "timeout_s": timeout_s, "where": where}
    if brief.kind != "server_stream":
        return {"result": said(await clients.call(target, (), parameters, **how))}
    async with aclosing(clients.stream(target, (), parameters, **how)) as items:
        async for item in items:
            await tell({"item": said(item)})
    return {}


async def _each(items: Sequence[object]) -> Any:  # noqa: ANN401 - an asynchronous generator
    for item in items:
        yield item
