"""Work for a client, for as long as the client is there: a turn, the body, the answer or its events, and an end.

Whoever closes the connection ends the work; the end of the node is told to whoever still waits.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...mesh.errors import Busy, LeptonError, LinkError
from .replies import error_body, error_shape, event
from .requests import TooLarge

BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # a million tokens, the longest session, are about as much text
BODY_WAIT_S: Final = 30.0  # 4 MiB at 140 kB/s
REQUESTS_MAX: Final = 32  # worked on at once; the mesh has its own bounds on sessions
WAITING_MAX: Final = 64  # that wait for their turn
TURN_WAIT_S: Final = 60.0  # a tenth of the official client's patience

_STOPPING: Final = "The node is stopping; ask another node of the mesh."
_EVENT_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects pieces would undo the streaming
]

log = logging.getLogger(__name__)


class Out:
    """What a client is sent: one whole answer, or events; an error is an answer, or the last event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = trio.Lock()  # the choices of one answer come from several tasks
        self._is_begun = False

    async def whole(self, value: object, *, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        await self.raw(msgspec.json.encode(value), kind=b"application/json", status=status, headers=headers)

    async def raw(
        self,
        said: bytes,
        *,
        kind: bytes = b"application/octet-stream",
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._is_begun = True
        about = [(b"content-type", kind), (b"content-length", str(len(said)).encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": about})
        await self._send({"type": "http.response.body", "body": said})

    async def events(self, events: Sequence[bytes], *, last: bool = False) -> None:
        async with self._turn:
            if not self._is_begun:
                self._is_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
            if events or last:
                await self._send({"type": "http.response.body", "body": b"".join(events), "more_body": not last})

    async def error(self, error: BaseException) -> None:
        status, said = told(error)
        if self._is_begun:
            await self.events([event(said)], last=True)
        else:
            later = [(b"retry-after", b"%d" % math.ceil(error.retry_after_s))] if isinstance(error, Busy) else []
            await self.whole(said, status=status, headers=later)


Work = Callable[[bytes, Out], Awaitable[None]]


def told(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return what a client is told of an error. Of our own mistakes the log says more."""
    if isinstance(error, LeptonError):
        return error_body(error)
    log.error("a request failed", exc_info=error)
    return 500, error_shape("The node could not do this; its log says more.", "server_error")


class Json(Response):
    """A whole answer."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


def failure(error: Exception) -> Response:
    """Return the answer that tells of an error."""
    status, said = told(error)
    return Json(said, status)


class Attendance:
    """The work under way for all clients of an endpoint."""

    def __init__(
        self,
        *,
        requests_max: int = REQUESTS_MAX,
        waiting_max: int = WAITING_MAX,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self._turns = trio.Semaphore(requests_max)
        self._waiting_max = waiting_max
        self._body_bytes_max = body_bytes_max
        self._running: set[trio.CancelScope] = set()
        self._ended = False

    def end(self) -> None:
        """Do nothing more: whoever waits for an answer is told that the node stops."""
        self._ended = True
        for scope in self._running:
            scope.cancel()

    async def attend(self, work: Work, receive: Receive, send: Send) -> None:
        """Do work for one client, and tell it what went wrong."""
        out = Out(send)
        try:
            async with self._running_until_end(), self._turn():
                body = await _body(receive, self._body_bytes_max)
                if body is not None:
                    await _while_there(receive, work, body, out)
        except Exception as error:  # noqa: BLE001 - the client is told, the log says more
            await out.error(_cause(error))

    @asynccontextmanager
    async def _running_until_end(self) -> AsyncIterator[None]:
        with trio.CancelScope() as scope:
            self._running.add(scope)
            if self._ended:
                scope.cancel()
            try:
                yield
            finally:
                self._running.discard(scope)
        if scope.cancelled_caught:
            raise LinkError(_STOPPING)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until there is room for one more. Raises Busy when too many wait, or for too long."""
        if not self._turns.value and self._turns.statistics().tasks_waiting >= self._waiting_max:
            raise Busy("Too many requests wait already; ask again in a few seconds.", retry_after_s=5)
        with trio.move_on_after(TURN_WAIT_S) as waiting:
            await self._turns.acquire()
        if waiting.cancelled_caught:
            raise Busy(f"No turn came within {TURN_WAIT_S:g} s; ask again in a few seconds.", retry_after_s=5)
        try:
            yield
        finally:
            self._turns.release()


class Attended(Response):
    """A response that is made while its client is there."""

    def __init__(self, attendance: Attendance, work: Work) -> None:
        super().__init__()
        self._attendance = attendance
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await self._attendance.attend(self._work, receive, send)


async def _body(receive: Receive, bytes_max: int) -> bytes | None:
    """Return the request's body; None when the client left. Raises TooLarge, LinkError when it takes too long."""
    pieces = bytearray()
    with trio.move_on_after(BODY_WAIT_S):
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces += message.get("body", b"")
            if len(pieces) > bytes_max:
                raise TooLarge(f"A request has at most {bytes_max:,} bytes.")
            if not message.get("more_body", False):
                return bytes(pieces)
    raise LinkError(f"The request did not come whole within {BODY_WAIT_S:g} s.")


async def _while_there(receive: Receive, work: Work, body: bytes, out: Out) -> None:
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(leave)
        await work(body, out)
        nursery.cancel_scope.cancel()


def _cause(error: BaseException) -> BaseException:
    """Return the first of what went wrong; a mistake of ours before what is told to clients."""
    leaves = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [
            inner for leaf in leaves for inner in (leaf.exceptions if isinstance(leaf, BaseExceptionGroup) else [leaf])
        ]
    return min(leaves, key=lambda leaf: isinstance(leaf, LeptonError))
