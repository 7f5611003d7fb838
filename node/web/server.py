"""The endpoint's HTTP server: hypercorn's connections on trio, as many as may be, none of which can hold up the end.

hypercorn ships a whole worker too. We drive its connections ourselves, because there a client that does not read what
it is sent holds up the end of the node, and nothing bounds how many come.
"""

import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp

from ...mesh.errors import LeptonError
from .listen import Listen

CONNECTIONS_MAX: Final = 128  # a browser opens 6, the official client up to as many as there are requests
UNREAD_S: Final = 30.0  # a client that takes nothing for so long is gone
KEEP_ALIVE_S: Final = 30.0  # the official client keeps a connection for 5 s
FAREWELL_S: Final = 1.0  # to say at the end that it is one
_BACKLOG: Final = 100  # hypercorn's

log = logging.getLogger(__name__)


class _Stream:
    """A connection on which no write waits for ever: hypercorn shields its writes from cancellation."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.aclose = stream.aclose
        self.send_eof = stream.send_eof
        self.receive_some = stream.receive_some

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(UNREAD_S) as waiting:
            await self._stream.send_all(data)
        if waiting.cancelled_caught:
            raise trio.BrokenResourceError


class Server:
    """Serves one application on one address, once `open_server` has it."""

    def __init__(self, app: ASGIApp, listen: Listen, *, connections_max: int) -> None:
        self.listen = listen
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._config = _config()
        self._context = WorkerContext(None)
        self._connections_max = connections_max
        self._streams: set[trio.SocketStream] = set()
        self._empty = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        if len(self._streams) >= self._connections_max:
            await trio.aclose_forcefully(stream)
            return
        self._streams.add(stream)
        try:
            await TCPServer(self._app, self._config, self._context, ConnectionState({}), _Stream(stream))  # type: ignore[arg-type]
        except Exception:
            log.exception("a connection to the endpoint failed")
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._empty.set()

    async def close(self) -> None:
        """Close what is idle, and after a while everything."""
        self._empty = trio.Event()
        await self._context.terminated.set()
        with trio.move_on_after(FAREWELL_S):
            if self._streams:
                await self._empty.wait()
        for stream in list(self._streams):
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_server(
    app: ASGIApp, listen: Listen, *, or_any_port: bool = False, connections_max: int = CONNECTIONS_MAX
) -> AsyncIterator[Server]:
    """Serve until the block ends. With ``or_any_port`` a port that is taken is replaced by a free one.

    Raises LeptonError when the address cannot be used.
    """
    listener = await _listening(listen, or_any_port=or_any_port)
    port: int = listener.getsockname()[1]
    server = Server(app, replace(listen, port=port), connections_max=connections_max)
    async with trio.open_nursery() as nursery:
        accepting = await nursery.start(_accept, server, listener, nursery)
        try:
            yield server
        finally:
            accepting.cancel()
            with trio.CancelScope(shield=True):
                await server.close()
            nursery.cancel_scope.cancel()


async def _accept(
    server: Server,
    listener: trio.socket.SocketType,
    nursery: trio.Nursery,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope() as scope, listener:
        task_status.started(scope)
        await trio.serve_listeners(server.handle, [trio.SocketListener(listener)], handler_nursery=nursery)


async def _listening(listen: Listen, *, or_any_port: bool) -> trio.socket.SocketType:
    try:
        return await _bound(listen.host, listen.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and or_any_port:
            log.info("port %s is taken: the endpoint takes another", listen.port)
            return await _listening(replace(listen, port=0), or_any_port=False)
        where = f"{listen.name}:{listen.port}"
        raise LeptonError(
            f"The endpoint cannot listen on {where}: {error.strerror or error}. Choose another address with web.listen."
        ) from error


async def _bound(host: str, port: int) -> trio.socket.SocketType:
    listener = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as long as nobody listens, two may bind
        await listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _config() -> Config:
    config = Config()
    config.errorlog = log
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h2_max_concurrent_streams = CONNECTIONS_MAX
    return config
