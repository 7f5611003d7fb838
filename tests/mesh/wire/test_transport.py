"""The seam as its users see it: dial, admission, streams, ends."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
from lepton.mesh import limits
from lepton.mesh.errors import LinkError, Refused, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.tcp import parse_address
from lepton.mesh.transport import NOISE, TLS, Connection, Stream
from trio.testing import check_half_closeable_stream

pytestmark = pytest.mark.trio
Pair = Callable[..., Any]
Node = Callable[..., Any]


@pytest.mark.parametrize("security", [(NOISE,), (TLS,), (NOISE, TLS)])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "/ip4/127.0.0.1/tcp/0"])
async def test_an_echo_comes_back(pair: Pair, security: tuple[str, ...], listen: str) -> None:
    async with pair(security=security, listen=[listen]) as (ours, theirs, a, b):
        assert ours.peer_id == b.peer_id
        assert theirs.peer_id == a.peer_id
        assert ours.initiator
        assert not theirs.initiator
        assert ours.security == security[0]
        assert theirs.remote_address.startswith("/ip6/::1/" if "::1" in listen else "/ip4/127.0.0.1/")
        stream = await ours.open_stream("/echo")
        assert (stream.peer_id, stream.protocol) == (b.peer_id, "/echo")
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await stream.receive_some() == b"hello"
        assert await stream.receive_some() == b""
        assert ours.bytes_sent == theirs.bytes_received > 5


async def test_a_stream_keeps_what_trio_promises_of_streams(pair: Pair) -> None:
    accepted: dict[str, trio.MemorySendChannel[Stream]] = {}

    async def hand_over(stream: Stream) -> None:
        done = trio.Event()
        await accepted["to"].send(stream)
        await done.wait()

    async with pair(handlers={"/hand": hand_over}) as (ours, _, _, _):

        async def make() -> tuple[Stream, Stream]:
            accepted["to"], got = trio.open_memory_channel[Stream](1)
            return await ours.open_stream("/hand"), await got.receive()

        async def make_clogged() -> tuple[Stream, Stream]:
            left, right = await make()
            await _clog(left)
            await _clog(right)
            return left, right

        await check_half_closeable_stream(make, make_clogged)


async def _clog(stream: Stream) -> None:
    while stream._muxed._state.send_window:
        await stream.send_all(bytes(stream._muxed._state.send_window))
        await trio.testing.wait_all_tasks_blocked(0.01)  # more of the window may be on its way


async def test_bulk_arrives_whole_and_straight_at_its_place(pair: Pair) -> None:
    data = os.urandom(9_000_001)
    async with pair() as (ours, _, _, _), trio.open_nursery() as nursery:
        stream = await ours.open_stream("/echo")

        async def send() -> None:
            await stream.send_parts([data[:5], data[5:1000], memoryview(data)[1000:]])
            await stream.send_eof()

        nursery.start_soon(send)
        into = bytearray(len(data))
        at = 0
        while size := await stream.receive_into(memoryview(into)[at:]):
            at += size
        assert at == len(data)
        assert into == data


async def test_an_unknown_protocol_is_refused_by_name(pair: Pair) -> None:
    async with pair() as (ours, _, _, _):
        with pytest.raises(LinkError, match="does not speak /nothing"):
            await ours.open_stream("/nothing")
        assert await (await ours.open_stream("/echo")).send_all(b"still there") is None


async def test_nothing_is_served_before_admission(node: Node) -> None:
    order: list[str] = []

    async def look_twice(connection: Connection) -> None:
        order.append("asked")
        stream = await connection.accept_stream("/hello")
        assert await stream.receive_some() == b"grant"
        await stream.send_all(b"welcome")
        await stream.aclose()
        order.append("admitted")

    async def introduce(connection: Connection) -> None:
        if not connection.initiator:
            return
        stream = await connection.open_stream("/hello")
        await stream.send_all(b"grant")
        assert await stream.receive_some() == b"welcome"

    async def note(stream: Stream) -> None:
        order.append("served")

    a = await node(on_connection=introduce)
    b = await node(on_connection=look_twice, handlers={"/note": note})
    connection = await a.dial(b.peer_id, b.addresses, timeout_s=5)
    assert await (await connection.open_stream("/note")).receive_some() == b""
    assert order == ["asked", "admitted", "served"]


async def test_a_stranger_is_turned_away_by_either_side(node: Node) -> None:
    async def refuse(connection: Connection) -> None:
        message = "no grant"
        raise Refused(message)

    polite, strict = await node(), await node(on_connection=refuse)
    with pytest.raises(Refused, match="no grant"):
        await strict.dial(polite.peer_id, polite.addresses, timeout_s=5)
    connection = await polite.dial(strict.peer_id, strict.addresses, timeout_s=5)
    with trio.fail_after(5):
        await connection.closed.wait()
    assert not strict.connections
    with pytest.raises(LinkError, match="closed"):
        await connection.open_stream("/echo")


async def test_the_wrong_peer_at_an_address_is_not_taken(node: Node) -> None:
    a, b, c = await node(), await node(), await node()
    with pytest.raises(LinkError, match=f"{c.peer_id} lives there now"):
        await a.dial(b.peer_id, c.addresses, timeout_s=5)
    with pytest.raises(UsageError, match="this node itself"):
        await a.dial(a.peer_id, a.addresses, timeout_s=5)


async def test_a_second_dial_returns_the_same_connection(node: Node) -> None:
    a, b = await node(), await node()
    found: list[Connection] = []

    async def dial() -> None:
        found.append(await a.dial(b.peer_id, b.addresses, timeout_s=5))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(dial)
    assert len(set(map(id, found))) == 1


async def test_an_old_connection_gives_way_when_the_peer_comes_back(node: Node, me: Callable[[], Any]) -> None:
    identity = me()
    a, b = await node(identity=identity), await node()
    again = await node(identity=identity)
    first = await a.dial(b.peer_id, b.addresses, timeout_s=5)
    second = await again.dial(b.peer_id, b.addresses, timeout_s=5)
    with trio.fail_after(5):
        await first.closed.wait()
    assert not second.closed.is_set()


@pytest.mark.parametrize("text", ["here", "/ip4/1.2.3.4/udp/5", "/ip4/::1/tcp/5", "/ip4/1.2.3.4/tcp/99999", "/x", ""])
async def test_addresses_that_are_none_are_named(node: Node, text: str) -> None:
    a, b = await node(), await node()
    with pytest.raises(LinkError, match="not an address"):
        await a.dial(b.peer_id, [text], timeout_s=5)


async def test_strangers_on_their_way_in_are_few(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there are places for pushes out who came first."""
    monkeypatch.setattr("lepton.mesh.transport.HANDSHAKES_MAX", 1)
    asked, answer = trio.Event(), trio.Event()

    async def ponder(connection: Connection) -> None:
        asked.set()
        await answer.wait()

    a, b, strict = await node(), await node(), await node(on_connection=ponder)
    first = await a.dial(strict.peer_id, strict.addresses, timeout_s=5)
    await asked.wait()
    second = await b.dial(strict.peer_id, strict.addresses, timeout_s=5)
    with trio.fail_after(10):
        await first.closed.wait()
    answer.set()
    await second.open_stream("/echo")


async def test_whom_one_favours_is_not_pushed_out_on_its_way_in(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton.mesh.transport.HANDSHAKES_MAX", 1)
    asked, answer = trio.Event(), trio.Event()

    async def ponder(connection: Connection) -> None:
        asked.set()
        await answer.wait()

    a, b, strict = await node(), await node(), await node(on_connection=ponder)
    strict._arrivals._favours = lambda peer: peer == a.peer_id
    connection = await a.dial(strict.peer_id, strict.addresses, timeout_s=5)
    await asked.wait()
    with pytest.raises(LinkError, match=r"closed|reset|broke"):
        await b.dial(strict.peer_id, strict.addresses, timeout_s=5)
    answer.set()
    await connection.open_stream("/echo")


async def test_strangers_in_silence_do_not_shut_the_door(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton.mesh.transport.HANDSHAKES_MAX", 4)
    a, b = await node(), await node()
    address, _ = parse_address(b.addresses[0])
    async with AsyncExitStack() as silent:
        for _ in range(12):
            stream = await trio.open_tcp_stream(address.host, address.port)
            await silent.enter_async_context(stream)
        connection = await a.dial(b.peer_id, b.addresses, timeout_s=5)
        await connection.open_stream("/echo")
        assert len(b._arrivals) <= 4


async def test_a_peer_has_few_connections_at_once_and_a_node_has_them_too(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One past each: of one peer, of members, and of strangers, who make room for members and for each other."""
    held = trio.Event()

    async def hold(connection: Connection) -> None:
        if connection.peer_id in strangers:
            await held.wait()

    strangers = set[PeerId]()
    server = await node(on_connection=hold)
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 3)
    members = [await node() for _ in range(3)]
    first, second, late = members
    await first.dial(server.peer_id, server.addresses, timeout_s=5)
    await second.dial(server.peer_id, server.addresses, timeout_s=5)
    stranger, other = await node(), await node()
    strangers |= {stranger.peer_id, other.peer_id}
    waiting = await stranger.dial(server.peer_id, server.addresses, timeout_s=5)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert server._alive.total() == 3
    newer = await other.dial(server.peer_id, server.addresses, timeout_s=5)
    with trio.fail_after(10):
        await waiting.closed.wait()  # a stranger makes room for a stranger
    connection = await late.dial(server.peer_id, server.addresses, timeout_s=5)
    await connection.open_stream("/echo")
    with trio.fail_after(10):
        await newer.closed.wait()  # and for a member
    assert set(server.connections) == {each.peer_id for each in members}
    with pytest.raises(LinkError):  # members make room for nobody
        await (await stranger.dial(server.peer_id, server.addresses, timeout_s=5)).open_stream("/echo")
    assert set(server.connections) == {each.peer_id for each in members}


async def test_an_owner_that_fails_turns_away(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(connection: Connection) -> None:
        message = "a bug"
        raise ZeroDivisionError(message)

    a, b = await node(on_connection=fail), await node()
    with pytest.raises(Refused, match="a bug"):
        await a.dial(b.peer_id, b.addresses, timeout_s=5)
    connection = await b.dial(a.peer_id, a.addresses, timeout_s=5)
    with trio.fail_after(5):
        await connection.closed.wait()
    assert "on_connection failed" in caplog.text
