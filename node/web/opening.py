"""Opens a node's endpoint as its owner configured it, and keeps the token that others have to know."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from starlette.routing import Route

from ...mesh.errors import UsageError
from ..config import WebConfig
from ..files import write_whole
from ..home import Home
from ..seeing.measures import Measures
from .endpoint import Endpoint
from .guard import Guard
from .models import Models
from .server import open_server

TOKEN_FILE: Final = "web.token"  # noqa: S105 - the name of a file
_TOKEN_BYTES: Final = 32
_TOKEN_CHARACTERS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Web:
    """An endpoint that is open."""

    url: str
    remark: str = ""  # what its owner has to know, behind the address

    @property
    def page(self) -> str:
        """Where a browser finds the dashboard."""
        return self.url.removesuffix("v1")


@asynccontextmanager
async def open_web(
    models: Models,
    config: WebConfig,
    home: Home,
    *,
    owner: str,
    more: Sequence[Route] = (),
    measures: Measures | None = None,
    open_paths: frozenset[str] = frozenset(),
) -> AsyncIterator[Web | None]:
    """Answer OpenAI's interface, and ``more`` routes, until the block ends; None when it is turned off.

    ``open_paths`` and ``measures`` are those of `Entry`. Raises UsageError for a place or a token that cannot be,
    LeptonError when the address cannot be used.
    """
    listen = config.place
    if listen is None:
        yield None
        return
    path = home.path / TOKEN_FILE
    token, kept = config.token, False
    if not token and not listen.is_loopback:
        token, kept = await trio.to_thread.run_sync(kept_token, path), True
    endpoint = Endpoint(models, Guard(listen, token), owner=owner, more=more, measures=measures, open_paths=open_paths)
    async with open_server(endpoint.app, listen, or_any_port=not config.listen) as server:
        remark = ""
        if listen.port not in {0, server.listen.port}:
            remark += f" (port {listen.port} is taken)"
        if token:
            remark += f"; its API key is in {path}" if kept else "; its API key is web.token of node.toml"
        if not listen.is_loopback:
            remark += "; neither the key nor the text is encrypted"
        try:
            yield Web(server.listen.url, remark)
        finally:
            endpoint.end()


def kept_token(path: Path) -> str:
    """Return the token in a file, made on first use and readable by its owner alone. Raises UsageError."""
    try:
        path.chmod(0o600)  # it may have been restored from a backup with wider rights
        with path.open(encoding="ascii") as file:
            token = file.read(_TOKEN_CHARACTERS_MAX).strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        write_whole(path, f"{token}\n".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The token in {path} cannot be read: {error}. Remove the file, and a new one is made."
        ) from error
    return token
