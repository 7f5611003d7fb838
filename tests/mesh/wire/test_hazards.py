"""Every way in which py-libp2p 0.8.1's own wire was seen to fail, held against ours. The docstrings name the hazards.

Two tests run a share of their full length; LEPTON_WIRE_FULL=1 runs all 10,000 connections and 1 GiB each way (some
minutes).
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from lepton.mesh.errors import LinkError, UsageError
from lepton.mesh.multistream import HEADER, REFUSED, encode
from lepton.mesh.tcp import Address, Listener, parse_address
from lepton.mesh.transport import Connection, Stream, Transport
from lepton.mesh.yamux import INITIAL_WINDOW, YamuxConfig

pytestmark = pytest.mark.trio
Pair = Callable[..., Any]
Node = Callable[..., Any]

FULL = "LEPTON_WIRE_FULL" in os.environ
IMPATIENT = YamuxConfig(ping_after_s=0.05, dead_after_s=0.25)


async def echoed(connection: Connection, data: bytes = b"still works") -> None:
    """Prove that a connection is usable."""
    with trio.fail_after(10):
        stream = await connection.open_stream("/echo")
        await stream.send_all(data)
        await stream.send_eof()
        got = b""
        while more := await stream.receive_some():
            got += more
        assert got == data


@asynccontextmanager
async def proxy(address: str, pass_on: Callable[[bytes], Any]) -> AsyncIterator[str]:
    """A link to ``address`` that hands every piece to ``pass_on`` and forwards the pieces that it returns."""
    port = int(address.rsplit("/", 1)[1])

    async def serve(near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(forward, near, far)
            nursery.start_soon(forward, far, near)

    async def forward(source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                for piece in await pass_on(bytes(data)):
                    await target.send_all(piece)
                    await trio.lowlevel.checkpoint()
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_handler_that_raises_costs_its_stream_only(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a stream handler ends the process."""

    async def fail(stream: Stream) -> None:
        await stream.receive_some()
        message = "a bug"
        raise ZeroDivisionError(message)

    async with pair(handlers={"/fail": fail}) as (ours, _, _, _):
        stream = await ours.open_stream("/fail")
        await stream.send_all(b"go")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError, match="reset"):
            await stream.receive_some()
        await echoed(ours)
    assert "a bug" in caplog.text


async def test_who_knocks_and_hangs_up_is_no_news(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A doctor's dial back, or a port scan, fills the log of every node that it looks at."""
    caplog.set_level("DEBUG", "lepton.mesh.transport")
    told = trio.Event()

    def hear(record: logging.LogRecord) -> bool:
        if "did not get in" in record.getMessage():
            told.set()
        return True

    log = logging.getLogger("lepton.mesh.transport")
    log.addFilter(hear)
    async with pair() as (_, _, _, b):
        place, _ = parse_address(b.addresses[0])
        stream = await trio.open_tcp_stream(place.host, place.port)
        await stream.aclose()
        with trio.fail_after(5):
            await told.wait()
    log.removeFilter(hear)
    said = [record for record in caplog.records if "did not get in" in record.message]
    assert [record.levelname for record in said] == ["DEBUG"]


async def test_a_handler_that_returns_ends_its_stream(pair: Pair) -> None:
    """A handler that returns without closing leaves the peer hanging."""

    async def answer(stream: Stream) -> None:
        await stream.send_all(b"done")

    async with pair(handlers={"/answer": answer}) as (ours, theirs, _, _):
        with trio.fail_after(5):
            stream = await ours.open_stream("/answer")
            assert await stream.receive_some() == b"done"
            assert await stream.receive_some() == b""
            await stream.aclose()
            await echoed(ours)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not theirs._muxer._yamux.streams


async def test_a_cancelled_write_harms_nothing_but_its_stream(pair: Pair) -> None:
    """A cancelled write corrupts the whole connection, sometimes into a zombie."""
    release = trio.Event()
    outcome: list[type[BaseException] | int] = []

    async def slow(stream: Stream) -> None:
        await release.wait()
        size = 0
        try:
            while data := await stream.receive_some():
                size += len(data)
            outcome.append(size)
        except trio.BrokenResourceError as error:
            outcome.append(type(error))

    async with pair(handlers={"/slow": slow}) as (ours, _, _, _):
        stream = await ours.open_stream("/slow")
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(bytes(20_000_000))
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"more")
        release.set()
        await echoed(ours, bytes(1_000_000))
        assert outcome == [trio.BrokenResourceError]  # a part never passes for the whole

        stream = await ours.open_stream("/slow")
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"")  # nothing had gone, so the stream lives on
        await stream.send_all(b"four")
        await stream.send_eof()
        assert await stream.receive_some() == b""
        assert outcome[1:] == [4]


async def test_bulk_both_ways_and_new_streams_do_not_deadlock(pair: Pair) -> None:
    """Bulk both ways plus one new stream deadlocks for ever."""
    size = (1 << 30) if FULL else 48 * 1024 * 1024
    calls = 200 if FULL else 60
    piece = bytes(1_000_000)
    finished = trio.Event()

    async def pour(stream: Stream) -> None:
        left = size
        while left:
            sent = min(left, len(piece))
            await stream.send_all(piece[:sent])
            left -= sent
        await stream.send_eof()

    async def swallow(stream: Stream) -> None:
        got = 0
        while data := await stream.receive_some():
            got += len(data)
        assert got == size

    async def both_ways(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, stream)
            nursery.start_soon(swallow, stream)

    async def call(connection: Connection, count: int) -> None:
        for _ in range(count):
            await echoed(connection, b"short")

    async with pair(handlers={"/bulk": both_ways}) as (ours, theirs, _, _):
        stream = await ours.open_stream("/bulk")
        with trio.fail_after(600 if FULL else 60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(both_ways, stream)
                nursery.start_soon(call, ours, calls // 2)
                nursery.start_soon(call, theirs, calls // 2)
        finished.set()


async def test_a_receiver_may_take_its_time(pair: Pair) -> None:
    """A receiver that computes for 5 s without reading resets the sender."""
    data = os.urandom(6_000_000)

    async def late(stream: Stream) -> None:
        await trio.sleep(4 * (IMPATIENT.ping_after_s + IMPATIENT.dead_after_s))
        size = 0
        while got := await stream.receive_some():
            size += len(got)
        await stream.send_all(str(size).encode())

    async with pair(handlers={"/late": late}, config=IMPATIENT) as (ours, _, _, _):
        stream = await ours.open_stream("/late")
        await stream.send_all(data)
        await stream.send_eof()
        assert await stream.receive_some() == b"6000000"


async def test_a_reader_that_stops_reading_bounds_our_memory(pair: Pair) -> None:
    """Nothing of what a peer sends to a stream that nobody reads is held beyond the windows that were granted."""

    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    config = YamuxConfig(window_bytes=4 * INITIAL_WINDOW, memory_bytes_max=40 * INITIAL_WINDOW, streams_max=15)
    async with pair(handlers={"/deaf": deaf}, config=config) as (ours, theirs, _, _), trio.open_nursery() as nursery:
        for _ in range(12):
            stream = await ours.open_stream("/deaf")
            nursery.start_soon(stream.send_all, bytes(5_000_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        held = [stream.unread_bytes for stream in theirs._muxer._yamux.streams.values()]
        assert 12 * INITIAL_WINDOW <= sum(held) <= config.memory_bytes_max
        nursery.cancel_scope.cancel()


async def test_a_remote_reset_is_not_an_end(pair: Pair) -> None:
    """A remote reset arrives as a clean EOF."""

    async def half(stream: Stream) -> None:
        await stream.send_all(b"half of")
        await stream.receive_some(1)
        stream.reset()

    async with pair(handlers={"/half": half}) as (ours, _, _, _):
        stream = await ours.open_stream("/half")
        assert await stream.receive_some() == b"half of"
        await stream.send_all(b"x")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"y")


async def test_a_lost_connection_breaks_its_streams(pair: Pair) -> None:
    """The end of a connection is not the end of a stream either."""
    async with pair() as (ours, theirs, a, b):
        stream = await ours.open_stream("/echo")
        theirs._muxer.abort("the test")
        with trio.fail_after(5):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await ours.closed.wait()
            await theirs.closed.wait()
        assert not a.connections
        assert not b.connections
        with pytest.raises(LinkError):
            await ours.open_stream("/echo")


async def test_no_limit_is_for_a_lifetime_and_nothing_leaks(node: Node) -> None:
    """Inbound connection number 251 of a lifetime is refused for ever, one task leaked per connection."""
    a, b = await node(), await node()

    async def once() -> None:
        connection = await a.dial(b.peer_id, b.addresses, timeout_s=10)
        await echoed(connection)
        await connection.aclose()

    async def settled() -> tuple[int, int]:
        while a._table or b._table:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.01)
        return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    await once()
    before = await settled()
    for _ in range(10_000 if FULL else 260):
        await once()
    assert await settled() == before


@asynccontextmanager
async def other_process() -> AsyncIterator[tuple[int, str, str]]:
    """An echoing peer that the system can stop: its process id, peer id and address."""
    script = Path(__file__).with_name("peer_process.py")
    process = await trio.to_thread.run_sync(
        lambda: subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert process.stdin
    assert process.stdout
    try:
        peer_id, address = (await trio.to_thread.run_sync(process.stdout.readline)).split()
        yield process.pid, peer_id, address
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        process.wait()
        process.stdout.close()


async def test_a_frozen_peer_is_noticed_and_its_connection_closes(node: Node) -> None:
    """A frozen peer is unnoticed after 75 s, and ``disconnect()`` from it hangs."""
    patient, impatient = await node(), await node(config=IMPATIENT)
    async with other_process() as (pid, peer_id, address):
        lasting = await patient.dial(peer_id, [address], timeout_s=10)
        watched = await impatient.dial(peer_id, [address], timeout_s=10)
        await echoed(lasting)
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(10):
            await watched.closed.wait()
        assert "silent" in watched.reason
        os.kill(pid, signal.SIGCONT)
        await echoed(lasting)  # a pause is no death
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(10):
            await lasting.aclose()


async def test_a_half_open_connection_is_noticed(node: Node) -> None:
    """A link that swallows everything without a FIN looks alive to TCP for hours."""
    a, b = await node(config=IMPATIENT), await node(config=IMPATIENT)
    open_ = True

    async def until_cut(data: bytes) -> list[bytes]:
        return [data] if open_ else []

    async with proxy(b.addresses[0], until_cut) as address:
        connection = await a.dial(b.peer_id, [address], timeout_s=10)
        await echoed(connection)
        open_ = False
        with trio.fail_after(10):
            await connection.closed.wait()


async def test_a_mute_server_costs_one_timeout(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial to a server that accepts and says nothing takes 120 s; and ``[dead, good]`` fails."""
    a, b = await node(), await node()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}"
        with pytest.raises(LinkError, match=r"tcp/\d+: no answer in 0.2 s"):
            await a.dial(b.peer_id, [address], timeout_s=0.2)
        connection = await a.dial(b.peer_id, ["/ip4/127.0.0.1/tcp/1", address, *b.addresses], timeout_s=10)
        await echoed(connection)


async def test_a_mute_client_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger that connects and says nothing is dropped."""
    monkeypatch.setattr("lepton.mesh.transport.HANDSHAKE_TIMEOUT_S", 0.1)
    b: Transport = await node()
    async with await trio.open_tcp_stream("127.0.0.1", int(b.addresses[0].rsplit("/", 1)[1])) as client:
        with trio.fail_after(10):
            assert await client.receive_some() == b""


async def test_whoever_comes_over_ipv6_is_seen(node: Node) -> None:
    """IPv6 inbound bypasses the deny list."""
    seen: list[str] = []

    async def note(connection: Connection) -> None:
        seen.append(connection.remote_address)

    b = await node(listen=["[::1]:0"], on_connection=note)
    a = await node()
    await echoed(await a.dial(b.peer_id, b.addresses, timeout_s=10))
    assert len(seen) == 1
    assert seen[0].startswith("/ip6/::1/tcp/")


async def test_any_free_port_is_the_same_for_every_address(node: Node) -> None:
    """mDNS tells one port for all addresses of a host."""
    both: Transport = await node(listen=["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"])
    assert len(both.addresses) == 2
    assert len({address.rsplit("/", 1)[1] for address in both.addresses}) == 1


async def test_another_port_is_tried_when_one_is_free_for_some_addresses_only(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()

    class Unlucky(Listener):
        def __init__(self, address: Address) -> None:
            if address.port and len(taken) < 3:
                taken.append(address.port)
                raise UsageError("taken")
            super().__init__(address)

    monkeypatch.setattr("lepton.mesh.transport.Listener", Unlucky)
    both: Transport = await node(listen=["127.0.0.1:0", "[::1]:0"])
    ports = {int(address.rsplit("/", 1)[1]) for address in both.addresses}
    assert len(taken) == 3
    assert len(ports) == 1


async def test_a_taken_port_is_named(node: Node) -> None:
    """Two processes bind the same port (SO_REUSEPORT)."""
    port = (await node()).addresses[0].rsplit("/", 1)[1]
    code = (
        "import trio; from lepton.mesh.tcp import Listener, parse_listen\n"
        f"try: Listener(parse_listen('127.0.0.1:{port}'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    found = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert found.stdout.decode().startswith(f"UsageError Port {port} on 127.0.0.1 is taken")
    with pytest.RaisesGroup(UsageError, flatten_subgroups=True, allow_unwrapped=True):
        await _open_at(f"127.0.0.1:{port}")


async def _open_at(text: str) -> None:
    from lepton.mesh.tcp import Listener, parse_listen

    Listener(parse_listen(text))


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/plaintext/1.0.0", "/secio/1.0.0"])
async def test_plaintext_is_refused_so_nobody_poses_as_another(node: Node, protocol: str) -> None:
    """Plaintext is accepted by default: a client without any key of the victim was served as the victim."""
    met: list[Connection] = []

    async def note(connection: Connection) -> None:
        met.append(connection)

    server, victim = await node(on_connection=note), await node()
    async with await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rsplit("/", 1)[1])) as attacker:
        await attacker.send_all(encode(HEADER) + encode(protocol))
        heard = b""
        while REFUSED.encode() not in heard:
            heard += await attacker.receive_some()
        assert heard == encode(HEADER) + encode(REFUSED)
        await attacker.send_all(victim.peer_id.encode() + encode(HEADER) + encode("/yamux/1.0.0"))
        with trio.fail_after(10):
            assert await attacker.receive_some() == b""
    assert met == []


async def test_simultaneous_dials_leave_one_connection(node: Node) -> None:
    """Simultaneous dials keep two connections; here the one dialled by the smaller id stays, on both sides."""
    for _ in range(10):
        a, b = await node(), await node()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_dial_and_echo, a, b)
            nursery.start_soon(_dial_and_echo, b, a)
        with trio.fail_after(10):
            while len(a._table) != 1 or len(b._table) != 1 or not (a.connections and b.connections):
                await trio.testing.wait_all_tasks_blocked(0.001)
        ours, theirs = a.connections[b.peer_id], b.connections[a.peer_id]
        assert ours.initiator != theirs.initiator
        await echoed(ours)
        await echoed(theirs)


async def _dial_and_echo(one: Transport, other: Transport) -> None:
    connection = await one.dial(other.peer_id, other.addresses, timeout_s=10)
    try:
        await echoed(connection)
    except (LinkError, trio.BrokenResourceError):
        await echoed(await one.dial(other.peer_id, other.addresses, timeout_s=10))  # it was the one that gave way


@pytest.mark.parametrize("security", ["/noise", "/tls/1.0.0"])
async def test_small_pieces_do_not_kill_a_connection(node: Node, security: str) -> None:
    """Links that deliver 500-byte pieces kill a connection."""
    a, b = await node(security=[security]), await node(security=[security])

    async def cut(data: bytes) -> list[bytes]:
        return [data[at : at + 500] for at in range(0, len(data), 500)]

    async with proxy(b.addresses[0], cut) as address:
        await echoed(await a.dial(b.peer_id, [address], timeout_s=10), os.urandom(300_000))


async def test_importing_it_leaves_logging_alone() -> None:
    """libp2p installs a handler on the root logger and writes to stderr."""
    code = (
        "import logging, lepton.mesh.transport; root = logging.getLogger()\n"
        "assert root.handlers == [] and root.level == logging.WARNING, (root.handlers, root.level)"
    )
    found = await trio.run_process([sys.executable, "-c", code], capture_stderr=True)
    assert found.stderr == b""


async def test_a_peer_that_breaks_the_protocol_is_dropped_and_nobody_else(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no frames cost the peer its connection; they never reach a handler or end a task."""
    caplog.set_level(logging.INFO)
    async with pair() as (ours, theirs, _, _):
        ours._muxer._yamux._answers.append(b"\x07" * 12)
        ours._muxer._kick()
        with trio.fail_after(5):
            await theirs.closed.wait()
            await ours.closed.wait()
        assert "not yamux" in theirs.reason
    assert "broke the protocol" in caplog.text


async def test_a_bug_of_ours_costs_one_connection(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong below a connection, the process lives on."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with pair() as (ours, theirs, a, b):
        monkeypatch.setattr(theirs._muxer._yamux, "receive", fail)
        with trio.fail_after(5), pytest.raises(LinkError):
            await ours.open_stream("/echo")
        with trio.fail_after(5):
            await ours.closed.wait()
        assert "bug of ours" in caplog.text
        await echoed(await a.dial(b.peer_id, b.addresses, timeout_s=5))


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when one task, or any that it started, takes its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None and ancestor is not self._task:
            ancestor = ancestor.parent_nursery.parent_task if ancestor.parent_nursery else None
        if ancestor:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def _at_every_step(run: Callable[[], Any], check: Callable[[], Any]) -> int:
    """Run it again and again, cancelled one step later each time, until it comes through. Returns the steps."""
    for step in range(1, 10_000):
        with trio.CancelScope() as scope:
            instrument = _CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await run()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check()
        if not scope.cancelled_caught:
            return step
    raise AssertionError


async def test_cancelling_a_stream_at_any_step_leaves_the_connection_usable(pair: Pair) -> None:
    """Cancellation at each checkpoint in turn leaves the connection usable, never in between."""
    data = bytes(700_000)
    async with pair() as (ours, theirs, _, _):

        async def use() -> None:
            stream = await ours.open_stream("/echo")
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, data)
                    await stream.receive_into(bytearray(len(data) // 2))
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            finally:
                await stream.aclose()

        async def check() -> None:
            await echoed(ours)
            await echoed(theirs)

        assert await _at_every_step(use, check) > 10
        with trio.fail_after(5):
            while ours._muxer._yamux.streams or theirs._muxer._yamux.streams:
                for side in (ours, theirs):
                    for state in list(side._muxer._yamux.streams.values()):
                        assert state.deaf or state.ending, state
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_cancelling_a_dial_at_any_step_leaves_nothing_behind(node: Node) -> None:
    """A cancelled dial leaks a slot in stock; here it leaks neither a socket nor a place in the table."""
    a, b = await node(), await node()

    async def dial() -> None:
        await a.dial(b.peer_id, b.addresses, timeout_s=10)

    async def check() -> None:
        if connection := a.connections.get(b.peer_id):
            await echoed(connection)
            await connection.aclose()
        with trio.fail_after(10):
            while a._table or b._table:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.005)

    await check()
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert await _at_every_step(dial, check) > 5
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    assert not a._dialling
