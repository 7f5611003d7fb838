"""What the tests of the wire share: a stand-in identity, two transports that know each other, a bare yamux pair."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
import trio
from lepton.mesh.stock import ID, Ed25519PrivateKey
from lepton.mesh.transport import Connection, Stream, Transport, open_transport


class Me:
    """The part of an identity that the transport needs."""

    def __init__(self, seed: bytes | None = None) -> None:
        self.seed = seed or os.urandom(32)
        self.peer_id = ID.from_pubkey(Ed25519PrivateKey.from_bytes(self.seed).get_public_key()).to_base58()


async def admit(connection: Connection) -> None:
    """Let everybody in."""


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


class OpenNode(Protocol):
    def __call__(self, **settings: Any) -> Awaitable[Transport]: ...


@pytest.fixture
def me() -> Callable[[], Me]:
    return Me


@pytest.fixture
async def node() -> AsyncIterator[OpenNode]:
    """Open transports that serve ``/echo`` and close with the test."""
    done = trio.Event()
    async with trio.open_nursery() as nursery:

        async def keep(
            identity: Me,
            settings: dict[str, Any],
            *,
            task_status: trio.TaskStatus[Transport] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            async with open_transport(identity, **settings) as transport:
                task_status.started(transport)
                await done.wait()

        async def open_one(**settings: Any) -> Transport:
            identity = settings.pop("identity", None) or Me()
            settings = {"on_connection": admit} | settings
            settings["handlers"] = {"/echo": echo} | settings.get("handlers", {})
            transport: Transport = await nursery.start(keep, identity, settings)
            return transport

        yield open_one
        done.set()


@pytest.fixture
def pair(node: OpenNode) -> Callable[..., Any]:
    """Two transports, the first connected to the second; settings are for both."""

    @asynccontextmanager
    async def connect(**settings: Any) -> AsyncIterator[tuple[Connection, Connection, Transport, Transport]]:
        a, b = await node(**settings), await node(**settings)
        ours = await a.dial(b.peer_id, b.addresses, timeout_s=10)
        await (await ours.open_stream("/echo")).aclose()  # is answered once the other side is admitted, too
        yield ours, b.connections[a.peer_id], a, b

    return connect
