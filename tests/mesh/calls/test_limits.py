"""What one peer may have at once, over real connections: one past each limit, and what others notice of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio
from lepton.mesh import limits
from lepton.mesh.calls import PROTOCOL, Answer, Empty, Incoming, Method
from lepton.mesh.errors import Busy, LinkError, PeerError
from lepton.mesh.messages import Message
from lepton.mesh.rpc import headers
from lepton.mesh.rpc.bulk import receive_exactly
from lepton.mesh.rpc.callee import Callee
from lepton.mesh.tensors import TensorSpec
from trio.testing import wait_all_tasks_blocked

Pair = Callable[..., Any]
Until = Callable[[Callable[[], Any]], Any]


class Note(Message, frozen=True):
    """Some text."""

    text: str = ""


async def echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(call.message, call.arrays)


def method(handler: Any, **fields: Any) -> Method:
    return Method(**({"name": "m", "needs": "test", "takes": Note, "handler": handler} | fields))


async def test_one_stream_too_many_is_busy_here_and_refused_there(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        there = a.connection_to(b.peer_id)
        streams = [there._muxer.open_stream() for _ in range(limits.STREAMS_PER_PEER_MAX)]
        with pytest.raises(Busy, match="wait for one to end") as caught:
            await there.open_stream(PROTOCOL)
        assert caught.value.retry_after_s == limits.BUSY_RETRY_S
        streams[0].reset()
        await until(lambda: len(b.connection_to(a.peer_id)._muxer._streams) == limits.STREAMS_PER_PEER_MAX - 1)
        there._muxer._yamux.config = type(there._muxer._yamux.config)(streams_max=1000)  # who does not count itself
        await there.open_stream(PROTOCOL)
        with pytest.raises(LinkError, match="reset"):
            await there.open_stream(PROTOCOL)


async def test_a_peer_with_one_connection_too_many_is_sent_away_until_one_is_closed(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.transport._alive[a.peer_id] += limits.CONNECTIONS_PER_PEER_MAX - 1
        old, before = a.connection_to(b.peer_id), b.connection_to(a.peer_id)
        new = await a.transport._attempt(lambda _peer: None, b.transport.addresses[0])
        a.transport._nursery.start_soon(new._muxer.run)
        with trio.fail_after(10):
            await new.closed.wait()
        assert not old.closed.is_set()
        b.transport._alive[a.peer_id] -= 1
        newer = await a.transport._attempt(lambda _peer: None, b.transport.addresses[0])
        a.transport._nursery.start_soon(newer._muxer.run)
        await until(lambda: b.transport.connections.get(a.peer_id) not in {None, before})


async def test_all_peers_together_have_so_many_connections(pair: Pair) -> None:
    async with pair() as (a, b):
        b.transport._alive["others"] = limits.CONNECTIONS_MAX - 2
        b.transport._make_room_for(b.connection_to(a.peer_id))
        with pytest.raises(Busy, match="all that it takes"):
            b.transport._make_room_for(b.connection_to(a.peer_id))


async def test_large_buffers_for_which_there_is_no_memory_are_not_read(pair: Pair) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo, body_bytes_max=limits.BODY_BYTES_MAX))
        big = np.zeros(limits.MIB, dtype=np.int8)
        taken = limits.MEMORY_BYTES_PER_PEER_MAX - b.transport.budget.of(a.peer_id) - limits.MIB // 2
        b.transport.budget.reserve(a.peer_id, taken)
        with pytest.raises(Busy, match="too much") as caught:
            await a.calls.call(b.peer_id, "m", Note(), Note, arrays=[big])
        assert caught.value.retry_after_s == limits.BUSY_RETRY_S
        assert (await a.calls.call(b.peer_id, "m", Note(text="x"), Note)).message.text == "x"  # small ones still go
        b.transport.budget.release(a.peer_id, taken)
        assert (await a.calls.call(b.peer_id, "m", Note(), Note, arrays=[big])).arrays[0].nbytes == limits.MIB


async def test_what_was_reserved_is_given_back_however_a_call_ends(pair: Pair, until: Until) -> None:
    async def fail(call: Incoming[Note]) -> None:
        raise LinkError("no")

    async with pair() as (a, b):
        b.calls.serve(method(fail, body_bytes_max=limits.BODY_BYTES_MAX), method(echo, name="echo"))
        big = np.zeros(limits.MIB, dtype=np.int8)
        await a.calls.call(b.peer_id, "echo", Note(), Note)
        await wait_all_tasks_blocked(0.01)
        before = [node.transport.budget.held_bytes for node in (a, b)]
        for _ in range(3):
            with pytest.raises(LinkError):
                await a.calls.call(b.peer_id, "m", Note(), Note, arrays=[big])
        with trio.move_on_after(0.01):
            await a.calls.call(b.peer_id, "m", Note(), Note, arrays=[big] * 40)
        await until(lambda: [node.transport.budget.held_bytes for node in (a, b)] == before)
        await a.connection_to(b.peer_id).aclose()
        await until(lambda: not a.transport.budget.held_bytes + b.transport.budget.held_bytes)


@pytest.mark.parametrize("over", [0, 1])
def test_the_large_buffers_of_one_peer_have_a_bound(over: int) -> None:
    callee = Callee()
    for call, size in ((1, limits.ASIDE_BYTES_PER_PEER_MAX - 10), (2, 10 + over)):
        spec = TensorSpec(dtype="int8", shape=(size,))
        data = headers.frame(headers.RequestHeader(call=call, method="m", timeout_s=9.0, tensors=(spec,), aside=True))
        callee.receive(data, 0.0)
    assert callee.in_flight == 2 - over
    assert bool(callee.take()) == bool(over)  # who was one too many is told


async def test_streams_that_wait_for_their_call_have_a_bound(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        there = a.connection_to(b.peer_id)
        there._muxer._yamux.config = b.connection_to(a.peer_id)._muxer._yamux.config = type(there._muxer._yamux.config)(
            streams_max=1000
        )
        opened = []
        for call in range(1, limits.ATTACHED_PER_PEER_MAX + 2):
            opened.append(await there.open_stream(PROTOCOL))
            await opened[-1].send_all(headers.frame(headers.Attach(call=call, to_caller=False)))
        await until(lambda: any(stream.broken for stream in opened))
        await wait_all_tasks_blocked(0.01)
        assert sum(bool(stream.broken) for stream in opened) == 1


async def test_who_sends_faster_than_the_rate_waits_and_nobody_else(
    pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RATE_BYTES_S", 1)
    monkeypatch.setattr(limits, "BURST_BYTES_MAX", limits.MIB)
    async with pair() as (fast, b):
        monkeypatch.undo()
        async with pair() as (_, other):
            await other.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
            b.calls.serve(method(echo), method(_swallow, name="take", bulk_bytes_max=limits.BULK_BYTES_MAX))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fast.calls.send, b.peer_id, "take", Empty(), bytes(8 * limits.MIB), Empty)
                connection = b.connection_to(fast.peer_id)
                await until(lambda: connection.bytes_received > limits.MIB)
                for _ in range(50):
                    await other.calls.call(b.peer_id, "m", Note(), Note)
                assert connection.bytes_received <= 2 * limits.MIB  # the burst, one read more, and no end in sight
                assert not connection.closed.is_set()
                nursery.cancel_scope.cancel()


async def _swallow(call: Incoming[Empty]) -> None:
    assert call.bulk is not None
    await call.bulk.to(bytearray(call.bulk.size_bytes))


class Dribble:
    """A stream that brings one byte a second."""

    peer_id = "slow"

    async def receive_into(self, into: memoryview) -> int:
        await trio.sleep(1.0)
        return 1


async def test_a_byte_a_second_is_not_enough(autojump_clock: Any) -> None:
    stream: Any = Dribble()
    few = memoryview(bytearray(int(limits.TRANSFER_STALL_S) - 1))
    await receive_exactly(stream, few)  # a few bytes may take their time
    with pytest.raises(LinkError, match="too slow"):
        await receive_exactly(stream, memoryview(bytearray(limits.PART_BYTES)))


async def test_a_transfer_larger_than_any_disk_is_refused(pair: Pair) -> None:
    async def give(call: Incoming[Empty]) -> Answer[Empty]:
        return Answer(Empty(), bulk=_Endless())

    async with pair() as (a, b):
        b.calls.serve(method(give, takes=Empty))
        with pytest.raises(PeerError, match=f"at most {limits.BULK_BYTES_MAX} B are wanted"):
            await a.calls.fetch(b.peer_id, "m", Empty(), Empty, bytearray(1))


class _Endless(bytes):
    """Says that it is one byte larger than may be."""

    def __len__(self) -> int:
        return limits.BULK_BYTES_MAX + 1


def test_a_reason_is_cut_to_its_length() -> None:
    header = headers.error_header(1, LinkError("x" * (limits.REASON_CHARACTERS_MAX + 1)))
    assert header.reason == "x" * limits.REASON_CHARACTERS_MAX
    assert headers.to_caller(headers.frame(header)[8:]) == header
    longer = headers.ErrorHeader(call=1, error="link", reason="x" * (limits.REASON_CHARACTERS_MAX + 1))
    with pytest.raises(PeerError, match="not valid"):
        headers.to_caller(headers.frame(longer)[8:])
