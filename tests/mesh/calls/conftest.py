"""Two nodes with calls between them, over the real transport on loopback."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from lepton.mesh.calls import PROTOCOL, Calls
from lepton.mesh.errors import LinkError
from lepton.mesh.grants import Authority
from lepton.mesh.identity import PeerId
from lepton.mesh.stock import ID, Ed25519PrivateKey
from lepton.mesh.transport import Connection, open_transport


class Me:
    """The part of an identity that the transport needs."""

    def __init__(self) -> None:
        self.seed = os.urandom(32)
        self.peer_id = PeerId(ID.from_pubkey(Ed25519PrivateKey.from_bytes(self.seed).get_public_key()).to_base58())


async def _let_in(connection: Connection) -> None:
    """Take any connection."""


class Node:
    """A transport, and calls on it. ``may`` is what this node lets its peers do."""

    def __init__(self, me: Me) -> None:
        self.peer_id = me.peer_id
        self.may: tuple[str, ...] = ("test", "test:*")
        self.offences: list[str] = []
        self.admitted = 0
        self.transport: Any = None
        self.calls = Calls(
            Authority(me.peer_id, ("test", "test:*"), 2**53),
            admit=self._admit,
            connection_to=self.connection_to,
            offend=self._offend,
        )

    async def _admit(self, peer: PeerId) -> Authority:
        self.admitted += 1
        return Authority(peer, self.may, 2**53)

    def connection_to(self, peer: PeerId) -> Connection:
        connection: Connection | None = self.transport.connections.get(peer)
        if connection is None:
            msg = "it is not connected."
            raise LinkError(msg)
        return connection

    def _offend(self, peer: PeerId, why: str) -> None:
        self.offences.append(why)
        if (connection := self.transport.connections.get(peer)) is not None:
            self.transport._nursery.start_soon(connection.aclose)


Pair = Callable[..., Any]


@pytest.fixture
def pair() -> Pair:
    """Two nodes that are connected: the first dialled."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[tuple[Node, Node]]:
        async with _node() as a, _node() as b:
            await a.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
            while a.peer_id not in b.transport.connections:
                await b.transport._changed.wait()
            yield a, b

    return connect


@asynccontextmanager
async def _node() -> AsyncIterator[Node]:
    me = Me()
    node = Node(me)
    async with open_transport(me, on_connection=_let_in, handlers={PROTOCOL: node.calls.answer}) as node.transport:
        yield node


async def until(check: Callable[[], Any]) -> None:
    """Wait for what other tasks and the loopback are about to make true."""
    with trio.fail_after(60):
        while not check():  # noqa: ASYNC110  what is waited for belongs to the code under test
            await trio.sleep(0.001)


@pytest.fixture(name="until")
def until_() -> Any:
    return until
