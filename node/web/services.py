"""The services of the mesh over HTTP: calls, lists, and what each method takes and gives.

``POST /v1/services/NAME/METHOD`` with a JSON object of the parameters (``in_json.py`` says how arrays look); answers
are JSON, of a server stream events. A client stream's items are a list. One parameter of bytes, or an array, may be the
raw body (``application/octet-stream``; an array's shape as ``X-Shape: 480,640,3``), and raw is the answer where it is
bytes or an array and the client says ``Accept: application/octet-stream``.
"""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import trio
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ...mesh import limits
from ...mesh.errors import LeptonError, UsageError
from ...mesh.tensors import DTYPES, Array, buffer_of
from ..services.calling.calling import Calling
from ..services.calling.client import Clients
from ..services.calling.directory import Known, NoService
from ..services.spec import MethodSpec, ServiceSpec, Where
from ..services.writing import in_json
from ..services.writing.array_types import ANY_DTYPE
from .attendance import Attendance, Attended, Json, Out
from .openapi import PAGE_POLICY, document, page
from .replies import DONE, Unfit

BODY_BYTES_MAX: Final = 32 * limits.MIB  # a frame of 4K is 24 MiB; 16 such requests take 512 MiB
REQUESTS_MAX: Final = 16
SPEC_WAIT_S: Final = 2.0  # for a host to say what its service is, when all are listed

_AT_ONCE_BYTES: Final = 64 * limits.KIB  # of a body, read in 20 ms; a longer one must not hold the node up
RAW: Final = "application/octet-stream"


class Services:
    """The routes of one node. ``mesh`` is the mesh's name."""

    def __init__(self, calling: Calling, *, mesh: str, attendance: Attendance | None = None) -> None:
        self._calling = calling
        self._clients = Clients(calling)
        self._mesh = mesh
        self._attendance = attendance or Attendance(requests_max=REQUESTS_MAX, body_bytes_max=BODY_BYTES_MAX)
        self.routes: Sequence[Route] = (
            Route("/v1/services", self._list, methods=["GET"]),
            Route("/v1/services/openapi.json", self._document, methods=["GET"]),
            Route("/v1/services/docs", self._page, methods=["GET"]),
            Route("/v1/services/{service}/{method}", self._post, methods=["POST"]),
        )

    def end(self) -> None:
        """Answer nothing more: whoever waits for an answer is told that the node stops."""
        self._attendance.end()

    # -- seeing -------------------------------------------------------------------------------------------------------

    async def _list(self, _request: Request) -> Response:
        known = self._calling.directory.all()
        return Json({"object": "list", "data": [_listed(one) for _, one in sorted(known.items())]})

    async def _document(self, _request: Request) -> Response:
        return Json(document(await self._specs(), mesh=self._mesh))

    async def _page(self, request: Request) -> Response:
        url = str(request.base_url) + "v1"
        shown = page(await self._specs(), mesh=self._mesh, url=url)
        return HTMLResponse(shown, headers={"content-security-policy": PAGE_POLICY})

    async def _specs(self) -> list[ServiceSpec]:
        """Return what all services are that are ready; one that sleeps is not woken for a list."""
        found: dict[str, ServiceSpec] = {}

        async def ask(name: str) -> None:
            try:
                found[name] = await self._calling.spec(name, timeout_s=SPEC_WAIT_S)
            except LeptonError:
                return  # it is listed once somebody says what it is

        async with trio.open_nursery() as nursery:
            for name, known in self._calling.directory.all().items():
                if known.balancer.replicas:
                    nursery.start_soon(ask, name)
        return [spec for _, spec in sorted(found.items())]

    # -- calling ------------------------------------------------------------------------------------------------------

    async def _post(self, request: Request) -> Response:
        service, method = request.path_params["service"], request.path_params["method"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = dict(request.query_params)

        async def work(body: bytes, out: Out) -> None:
            await self._answer(service, method, body, out, headers, query)

        return Attended(self._attendance, work)

    async def _answer(
        self, service: str, name: str, body: bytes, out: Out, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> None:
        self._calling.brief(service, name)  # so that what is not there is said before it is waited for
        method = (await self._calling.spec(service)).method(name)
        if method is None:
            raise NoService(f"{service!r} has no method {name!r} any more.")
        target = f"{service}.{name}"
        try:
            raw = headers.get("content-type", "").partition(";")[0].strip().lower() == RAW
            read = partial(_from_raw, method, body, headers, query) if raw else partial(_from_json, method, body)
            given = await trio.to_thread.run_sync(read) if len(body) > _AT_ONCE_BYTES else read()
            where: Any = headers.get("x-where", "anywhere").strip().lower()
            if method.kind == "server_stream":
                await self._stream(target, given, out, where)
                return
            result = await self._clients.call(target, (), given, where=where)
        except UsageError as error:
            raise error if isinstance(error, NoService) else Unfit(f"{target}: {error}") from error
        await _told(result, out, wants_raw=RAW in headers.get("accept", ""))

    async def _stream(self, target: str, given: Mapping[str, Any], out: Out, where: Where) -> None:
        async with aclosing(self._clients.stream(target, (), given, where=where)) as items:
            async for item in items:
                await out.events([b"data: " + in_json.write(item) + b"\n\n"])
        await out.events([DONE], last=True)


def _listed(known: Known) -> dict[str, Any]:
    """Return what a list says of one service."""
    ready: dict[str, int] = {}
    for replica in known.balancer.replicas:
        ready[replica.version] = ready.get(replica.version, 0) + len(replica.instances)
    newest = known.record.releases[-1]
    return {
        "id": known.name,
        "object": "service",
        "versions": [
            {"version": release.version, "share": release.share, "ready": ready.get(release.version, 0)}
            for release in known.record.releases
        ],
        "methods": [{"name": method.name, "kind": method.kind} for method in newest.methods],
    }


def _from_json(method: MethodSpec, body: bytes) -> dict[str, Any]:
    """Return the parameters, those with arrays and bytes as such, and a client stream as one."""
    found = in_json.read(body or b"{}", method.takes)
    if not isinstance(found, dict):
        raise UsageError("the body has to be a JSON object with the method's parameters.")
    if method.streams:
        items = found.get(method.streams)
        if not isinstance(items, list):
            raise UsageError(f"{method.streams} is a stream: give a list of its items.")
        found[method.streams] = _each(items)
    return found


async def _each(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        await trio.lowlevel.checkpoint()
        yield item


def _from_raw(method: MethodSpec, body: bytes, headers: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters: the one that is bytes or an array is the body, others are in the query."""
    properties = msgspec.json.decode(method.takes, type=dict[str, Any]).get("properties", {})
    able = [
        name
        for name, schema in properties.items()
        if ("x-dtype" in schema or schema.get("contentEncoding") == "base64") and name not in query
    ]
    if len(able) != 1 or method.streams:
        raise UsageError("a raw body stands for one parameter of bytes, or one array; this method wants JSON.")
    schema = properties[able[0]]
    value: object = body if "x-dtype" not in schema else _array(body, schema["x-dtype"], headers)
    others = {name: _queried(text, properties.get(name, {})) for name, text in query.items()}
    return {able[0]: value, **in_json.shaped(others, method.takes)}


def _queried(text: str, schema: Mapping[str, Any]) -> object:
    """Return a query's value: as it is where the parameter is a text, else as JSON."""
    if schema.get("type") == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _array(body: bytes, dtype: str, headers: Mapping[str, str]) -> Array:
    dtype = headers.get("x-dtype", "uint8" if dtype == ANY_DTYPE else dtype)
    said = headers.get("x-shape", "")
    try:
        shape = [int(size) for size in said.split(",")] if said else [-1]
        found = np.frombuffer(bytearray(body), dtype=DTYPES[dtype])
        if said and (min(shape) < 0 or math.prod(shape) != found.size):
            raise ValueError(f"{found.size} elements")
        return found.reshape(shape)
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"the body of {len(body)} B is no array of {dtype[:20]} with X-Shape: {said[:80]!r} ({error})."
        ) from error


async def _told(result: object, out: Out, *, wants_raw: bool) -> None:
    if wants_raw and isinstance(result, bytes):
        await out.raw(result)
    elif wants_raw and isinstance(result, np.ndarray):
        about = [(b"x-dtype", result.dtype.name.encode()), (b"x-shape", ",".join(map(str, result.shape)).encode())]
        await out.raw(bytes(buffer_of(result)), headers=about)
    else:
        await out.whole(msgspec.Raw(in_json.write(result)))
