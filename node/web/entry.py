"""Where requests over HTTP come in: each is checked, gets its id, and is counted and logged when it is over."""

import logging
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...mesh.errors import LeptonError
from ..seeing import request
from ..seeing.measures import OTHER, Measures
from .attendance import failure
from .guard import Guard

REQUEST_ID: Final = "x-request-id"

_PATH_MAX: Final = 200  # characters in the log
# No other site's page reads, frames or guesses the kind of an answer, and none learns from where it was reached.
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}

# What figures call a path: what a stranger writes behind these makes no series of its own.
_ROUTES: Final = (
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/services"),
    *("/ui/events", "/ui/do", "/ui", "/metrics", "/healthz"),
)


def route_of(path: str) -> str:
    """Return which of the known routes a path belongs to."""
    if path == "/":
        return path
    return next((route for route in _ROUTES if path == route or path.startswith(f"{route}/")), OTHER)


class Entry:
    """Lets through what the guard lets through. ``open_paths`` are those whose answers say nothing of the mesh."""

    def __init__(
        self, app: ASGIApp, guard: Guard, measures: Measures | None = None, open_paths: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._guard = guard
        self._measures = measures or Measures()
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # hypercorn refuses a websocket that nobody accepts
        path, headers, began = str(scope["path"]), Headers(scope=scope), time.monotonic()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID] = id_
                answered.update(_HEADERS)
            await send(message)

        with request.entering(f"{scope['method']} {route_of(path)}", headers.get(REQUEST_ID, "")) as id_:
            try:
                self._guard.check(scope["method"], headers, is_open=path in self._open_paths)
            except LeptonError as error:
                await failure(error)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
            finally:
                self._note(scope["method"], path, status, time.monotonic() - began)

    def _note(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request that is over; 0 is the status of one whose client left before it was answered."""
        route = route_of(path)
        self._measures.web.add(route, str(status))
        self._measures.web_seconds.observe(seconds, route)
        level = logging.INFO if route.startswith("/v1") else logging.DEBUG
        about = {"path": path[:_PATH_MAX], "status": status, "seconds": round(seconds, 4)}
        request.log.log(level, "%s %s", method, route, extra=about)
