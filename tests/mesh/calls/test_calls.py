"""Calls over real loopback connections: what their users may rely on."""

import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import trio
from lepton.mesh import limits
from lepton.mesh.calls import PROTOCOL, Answer, Empty, FilePart, Incoming, Method
from lepton.mesh.errors import Busy, LinkError, PeerError, Refused, Uncertain, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import Message, pack, unpack
from lepton.mesh.rpc import headers
from lepton.mesh.rpc.asking import body_of
from trio.testing import wait_all_tasks_blocked

pytestmark = pytest.mark.trio
Pair = Callable[..., Any]
Until = Callable[[Callable[[], Any]], Any]


class Note(Message, frozen=True):
    """Some text."""

    text: str = ""


def method(handler: Any, **fields: Any) -> Method:
    return Method(**({"name": "m", "needs": "test", "takes": Note, "handler": handler} | fields))


async def echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(call.message, call.arrays)


async def forever(call: Incoming[Note]) -> Answer[Note]:
    return await trio.sleep_forever()


async def test_small_calls_share_one_stream(pair: Pair) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo))
        for text in ("one", "two"):
            answer = await a.calls.call(b.peer_id, "m", Note(text=text), Note)
            assert answer.message.text == text
        streams = a.connection_to(b.peer_id)._muxer._streams
        assert len(streams) == 1
        assert b.admitted == 1 + 2  # the stream, and each call
        assert a.calls.bytes_sent == b.calls.bytes_received > 0
        assert b.calls.bytes_sent == a.calls.bytes_received > 0


@pytest.mark.parametrize("size", [0, 10, limits.INLINE_BYTES_MAX // 4, limits.INLINE_BYTES_MAX // 4 + 1, 3_000_000])
async def test_tensors_arrive_as_they_were(pair: Pair, size: int) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo, body_bytes_max=limits.BODY_BYTES_MAX))
        sent: list[Any] = [
            np.arange(size, dtype=np.float32),
            np.ones((2, 3), dtype=np.int8),
            np.empty((0, 4), dtype=np.float16),
        ]
        for _ in range(2):
            answer = await a.calls.call(b.peer_id, "m", Note(text="x"), Note, arrays=sent)
            for was, now in zip(sent, answer.arrays, strict=True):
                assert now.dtype == was.dtype
                assert np.array_equal(now, was)
        await wait_all_tasks_blocked(0.01)
        assert len(a.connection_to(b.peer_id)._muxer._streams) == 1  # what was attached is gone


@pytest.mark.parametrize("error", [UsageError("u"), Refused("r"), LinkError("l"), Busy("b", 0.25)])
async def test_what_a_handler_raises_reaches_the_caller_in_kind(pair: Pair, error: Exception) -> None:
    async def fail(call: Incoming[Note]) -> Answer[Note]:
        async with trio.open_nursery():
            raise error

    async with pair() as (a, b):
        b.calls.serve(method(fail))
        with pytest.raises(type(error), match=str(error)) as caught:
            await a.calls.call(b.peer_id, "m", Note(), Note)
        assert getattr(caught.value, "retry_after_s", 0.25) == 0.25
        assert not b.offences


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "No Name"},
        {"scope": "../x"},
        {"scope": "x\n"},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"arrays": [np.zeros(0)] * (limits.BUFFERS_MAX + 1)},
        {"arrays": [np.zeros((1,) * (limits.TENSOR_DIMENSIONS_MAX + 1))]},
    ],
)
async def test_our_own_mistake_is_told_here_and_not_sent(pair: Pair, wrong: dict[str, Any]) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo))
        with pytest.raises(UsageError, match="cannot be called like this"):
            await a.calls.call(b.peer_id, wrong.pop("method", "m"), Note(), Note, **wrong)
        assert not b.offences


async def test_a_caller_does_not_pay_for_what_a_third_peer_did(pair: Pair) -> None:
    async def ask_another(call: Incoming[Note]) -> Answer[Note]:
        error = PeerError("It sent nonsense.")
        error.offender = "somebody else"
        raise error

    async with pair() as (a, b):
        b.calls.serve(method(ask_another))
        with pytest.raises(LinkError, match="sent nonsense"):
            await a.calls.call(b.peer_id, "m", Note(), Note)
        assert not b.offences


async def test_any_other_exception_is_logged_and_internal(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(call: Incoming[Note]) -> Answer[Note]:
        raise ZeroDivisionError

    async with pair() as (a, b):
        b.calls.serve(method(fail), method(echo, name="echo"))
        with pytest.raises(LinkError, match=r"'m' failed on .*ZeroDivisionError"):
            await a.calls.call(b.peer_id, "m", Note(), Note)
        assert "The handler of 'm' failed" in caplog.text
        await a.calls.call(b.peer_id, "echo", Note(), Note)


async def test_authorisation_comes_before_the_payload(pair: Pair) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo))
        b.may = ("test:x",)
        big = np.zeros(limits.MIB, dtype=np.int8)
        with pytest.raises(Refused, match="lacks the capability 'test'"):  # and neither parsed nor measured
            await a.calls.call(b.peer_id, "m", Empty(), Note, arrays=[big, big])
        assert (await a.calls.call(b.peer_id, "m", Note(), Note, scope="x")).message == Note()
        with pytest.raises(Refused, match="'test:y'"):
            await a.calls.call(b.peer_id, "m", Note(), Note, scope="y")
        with pytest.raises(UsageError, match="does not answer 'other'"):
            await a.calls.call(b.peer_id, "other", Note(), Note)
        b.calls.withdraw("m")
        with pytest.raises(UsageError, match="does not answer"):
            await a.calls.call(b.peer_id, "m", Note(), Note, scope="x")
        assert not b.offences


@pytest.mark.parametrize("arrays", [[np.zeros(limits.MIB, dtype=np.int8)], []])
async def test_a_bad_request_costs_the_connection(pair: Pair, until: Until, arrays: list[Any]) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo, takes=Empty if not arrays else Note, body_bytes_max=1000))
        with pytest.raises(LinkError, match="could not read our 'm'"):
            await a.calls.call(b.peer_id, "m", Note(text="x"), Note, arrays=arrays)
        assert len(b.offences) == 1
        await until(lambda: a.peer_id not in b.transport.connections)


async def test_a_bad_answer_costs_the_connection(pair: Pair) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo))
        with pytest.raises(PeerError, match="not a valid Empty"):
            await a.calls.call(b.peer_id, "m", Note(text="x"), Empty)
        with pytest.raises((PeerError, LinkError)):
            await a.calls.call(b.peer_id, "m", Note(text="x" * 100), Note, answer_bytes_max=50)
        assert a.offences


@pytest.mark.parametrize(
    "data",
    [
        headers.frame(headers.Control()) + b"\xff" * 8,
        headers.frame(headers.Control()) + headers.frame(headers.CancelHeader(call=3)),
        headers.frame(headers.Attach(call=1, to_caller=False), (b"x",)),
        b"\x00\x00\x00\x01\x00\x00\x00\x00\xc1",
    ],
)
async def test_frames_against_the_rules_cost_the_connection(pair: Pair, until: Until, data: bytes) -> None:
    async with pair() as (a, b):
        stream = await a.connection_to(b.peer_id).open_stream(PROTOCOL)
        await stream.send_all(data)
        await until(lambda: b.offences)
        await until(lambda: a.peer_id not in b.transport.connections)


async def test_a_second_control_stream_is_an_offence(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo))
        await a.calls.call(b.peer_id, "m", Note(), Note)
        stream = await a.connection_to(b.peer_id).open_stream(PROTOCOL)
        await stream.send_all(headers.frame(headers.Control()))
        await until(lambda: b.offences)


async def test_the_deadline_travels_and_stops_both_sides(pair: Pair, until: Until) -> None:
    stopped: list[str] = []

    async def stall(call: Incoming[Note]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.append("stopped")

    async with pair() as (a, b):
        b.calls.serve(method(stall), method(echo, name="echo"))
        with pytest.raises(LinkError, match=r"did not answer 'm' within|was not done within"):
            await a.calls.call(b.peer_id, "m", Note(), Note, timeout_s=0.05)
        await until(lambda: stopped)
        await a.calls.call(b.peer_id, "echo", Note(), Note)
        assert not a.offences + b.offences


async def test_a_cancelled_call_is_cancelled_on_the_other_side(pair: Pair, until: Until) -> None:
    events: list[str] = []

    async def stall(call: Incoming[Note]) -> None:
        events.append("begun")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            events.append("cancelled")
            raise

    async with pair() as (a, b):
        b.calls.serve(method(stall), method(echo, name="echo"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.calls.call, b.peer_id, "m", Note(), Note)
            await until(lambda: events)
            nursery.cancel_scope.cancel()
        await until(lambda: events == ["begun", "cancelled"])
        asking = a.calls._links[a.connection_to(b.peer_id)].asking
        await until(lambda: asking._machine.in_flight == 0)
        await a.calls.call(b.peer_id, "echo", Note(), Note)


async def test_a_lost_connection_fails_every_call_at_once(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(forever))
        errors: list[LinkError] = []

        async def ask() -> None:
            with pytest.raises(LinkError, match="broke") as caught:
                await a.calls.call(b.peer_id, "m", Note(), Note, timeout_s=600)
            errors.append(caught.value)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask)
                await until(lambda: len(a.calls._links) == 1 and b.calls._links)
                await wait_all_tasks_blocked(0.01)
                await b.transport.connections[a.peer_id].aclose()
        assert len(errors) == 5


async def test_who_calls_learns_whether_anything_was_sent(pair: Pair) -> None:
    left: list[float] = []

    async def note(call: Incoming[Note]) -> Answer[Note]:
        left.append(call.timeout_s)
        return await trio.sleep_forever()

    async with pair() as (a, b):
        b.calls.serve(method(note))
        with pytest.raises(LinkError) as lost:
            await a.calls.call(b.peer_id, "m", Note(), Note, timeout_s=0.05)
        assert not lost.value.unsent
        assert 0 < left[0] <= 0.05  # a handler knows how long its caller waits
        connection = a.connection_to(b.peer_id)
        await connection.aclose()
        await connection.closed.wait()
        with pytest.raises(LinkError) as unsent:
            await a.calls.call(b.peer_id, "m", Note(), Note)
        assert unsent.value.unsent
        with pytest.raises(LinkError) as unsent:
            async with a.calls.stream(b.peer_id, "m", Note(), items=Note):
                pass
        assert unsent.value.unsent


async def test_a_broken_control_stream_is_replaced(pair: Pair) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(echo, body_bytes_max=limits.BODY_BYTES_MAX))
        big = np.arange(100_000, dtype=np.int32)
        for _ in range(3):
            answer = await a.calls.call(b.peer_id, "m", Note(text="x"), Note, arrays=[big])
            assert np.array_equal(answer.arrays[0], big)
            a.calls._links[a.connection_to(b.peer_id)].asking._stream.reset()
            await wait_all_tasks_blocked(0.01)
        assert not a.offences + b.offences


async def test_a_new_control_stream_waits_for_the_old_one_s_handlers(pair: Pair, until: Until) -> None:
    let_go, running = trio.Event(), [0]

    async def stubborn(call: Incoming[Note]) -> Answer[Note]:
        running[0] += 1
        with trio.CancelScope(shield=True):
            await let_go.wait()
        running[0] -= 1
        return Answer(call.message)

    async with pair() as (a, b):
        b.calls.serve(method(stubborn), method(echo, name="echo"))
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.calls.call, b.peer_id, "m", Note(), Note)
                await wait_all_tasks_blocked(0.02)
                nursery.cancel_scope.cancel()
            a.calls._links[a.connection_to(b.peer_id)].asking._stream.reset()
        await wait_all_tasks_blocked(0.02)
        assert running == [1]
        let_go.set()
        assert (await a.calls.call(b.peer_id, "echo", Note(text="x"), Note)).message.text == "x"
        assert not a.offences + b.offences


async def test_a_peer_that_does_not_read_answers_is_not_read(pair: Pair, until: Until) -> None:
    asked = [0]

    async def big(call: Incoming[Note]) -> Answer[Note]:
        asked[0] += 1
        return Answer(Note(), [np.zeros(limits.INLINE_BYTES_MAX, dtype=np.int8)])

    async with pair() as (a, b):
        b.calls.serve(method(big))
        stream = await a.connection_to(b.peer_id).open_stream(PROTOCOL)
        await stream.send_all(headers.frame(headers.Control()))
        payload = Note()
        body = pack(payload)
        with trio.move_on_after(1.0):
            for call in range(1, 100_000):
                request = headers.RequestHeader(call=call, method="m", timeout_s=10.0, payload_bytes=len(body))
                await stream.send_all(headers.frame(request, (body,)))
                if call % limits.CALLS_PER_PEER_MAX == 0:
                    await wait_all_tasks_blocked(0.001)
        muxed = next(iter(b.transport.connections[a.peer_id]._muxer._streams.values()))
        most = limits.CONTROL_UNSENT_BYTES_MAX + (limits.CALLS_PER_PEER_MAX + 1) * (limits.INLINE_BYTES_MAX + 1000)
        assert muxed.unsent_bytes <= most
        assert asked[0] * limits.INLINE_BYTES_MAX <= 2 * 4 * limits.MIB + most  # the stream's window, and what waits


async def test_one_call_too_many_is_busy_with_a_hint(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.calls.serve(method(forever))
        async with trio.open_nursery() as nursery:
            for _ in range(limits.CALLS_PER_PEER_MAX):
                nursery.start_soon(a.calls.call, b.peer_id, "m", Note(), Note)
            await until(lambda: a.calls._links)
            await wait_all_tasks_blocked(0.01)
            with pytest.raises(Busy) as caught:
                await a.calls.call(b.peer_id, "m", Note(), Note)
            assert caught.value.retry_after_s > 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("room", [True, False])
async def test_large_answers_to_queued_calls_go_a_few_at_a_time_and_what_waits_is_accounted_for(
    pair: Pair, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, came, together, told = 10 * limits.MIB, 0, trio.Event(), list[object]()

    async def large(call: Incoming[Note]) -> Answer[Note]:
        nonlocal came
        came += 1
        if came == limits.CALLS_PER_PEER_MAX + 4:
            together.set()
        await together.wait()
        return Answer(call.message, [np.zeros(size, np.uint8)])

    async with pair() as (a, b):
        b.calls.serve(method(large, queued=True))

        async def ask() -> None:
            try:
                told.append((await a.calls.call(b.peer_id, "m", Note(), Note, timeout_s=60)).arrays[0].nbytes)
            except Uncertain as error:
                assert "ran, but there was no room to keep its answer" in str(error)  # noqa: PT017
                told.append("uncertain")

        held: list[int] = []
        reserve = b.transport.budget.reserve

        def full(peer: PeerId, size_bytes: int) -> None:
            if size_bytes >= size:
                held.append(size_bytes)
                raise Busy("It is full.", 0.1)
            reserve(peer, size_bytes)

        if not room:
            monkeypatch.setattr(b.transport.budget, "reserve", full)
        async with trio.open_nursery() as nursery:
            for _ in range(limits.CALLS_PER_PEER_MAX + 4):
                nursery.start_soon(ask)
        expected: list[object] = [size] * limits.CALLS_PER_PEER_MAX + [size if room else "uncertain"] * 4
        assert sorted(told, key=str) == sorted(expected, key=str)
        assert held == ([] if room else [size] * 4)


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_a_server_stream_brings_items_in_order(pair: Pair) -> None:
    async def count(call: Incoming[Note]) -> None:
        for n in range(100):
            size = 100_000 if n % 10 == 0 else n
            await call.send(Note(text=str(n)), [np.full(size, n % 100, dtype=np.int8)])

    async with pair() as (a, b):
        b.calls.serve(method(count, kind="server_stream"))
        found = []
        async with a.calls.stream(b.peer_id, "m", Note(), items=Note) as stream:
            async for item in stream:
                found.append(int(item.message.text))
                assert (item.arrays[0] == found[-1]).all()
        assert found == list(range(100))


async def test_a_slow_consumer_bounds_what_waits_and_leaving_stops_the_handler(pair: Pair, until: Until) -> None:
    sent, stopped = [0], trio.Event()

    async def pour(call: Incoming[Note]) -> None:
        try:
            while True:
                await call.send(Note(text="x"))
                sent[0] += 1
        finally:
            stopped.set()

    async with pair() as (a, b):
        b.calls.serve(method(pour, kind="server_stream"))
        async with a.calls.stream(b.peer_id, "m", Note(), items=Note) as stream:
            await until(lambda: sent[0] == limits.STREAM_ITEMS_MAX)
            await wait_all_tasks_blocked(0.01)
            assert sent[0] == limits.STREAM_ITEMS_MAX
            async for _ in stream:
                if sent[0] > 3 * limits.STREAM_ITEMS_MAX:
                    break
        with trio.fail_after(10):
            await stopped.wait()
        assert not a.offences + b.offences


async def test_a_stream_fails_behind_its_last_item(pair: Pair) -> None:
    async def two(call: Incoming[Note]) -> None:
        await call.send(Note(text="1"))
        await call.send(Note(text="2"))
        msg = "no more"
        raise Busy(msg, 2.0)

    async with pair() as (a, b):
        b.calls.serve(method(two, kind="server_stream"), method(forever, name="slow", kind="server_stream"))
        found = []
        with pytest.raises(Busy, match="no more"):  # noqa: PT012
            async with a.calls.stream(b.peer_id, "m", Note(), items=Note) as stream:
                async for item in stream:
                    found.append(item.message.text)  # noqa: PERF401  what came before the error counts
        assert found == ["1", "2"]
        with pytest.raises(LinkError, match="within"):
            async with a.calls.stream(b.peer_id, "slow", Note(), items=Note, timeout_s=0.05) as stream:
                await anext(stream)
        with pytest.raises(UsageError, match="server_stream method and was called as unary"):
            await a.calls.call(b.peer_id, "m", Note(), Note)


async def items(n: int, size: int = 0) -> AsyncIterator[Any]:
    for i in range(n):
        yield Answer(Note(text=str(i)), [np.full(size, i % 100, dtype=np.int8)]) if size else Note(text=str(i))


@pytest.mark.parametrize("size", [0, 100, 200_000])
async def test_a_client_stream_is_taken_in_order(pair: Pair, size: int) -> None:
    async def add(call: Incoming[Note]) -> Answer[Note]:
        texts = []
        async for item in call.items:
            texts.append(item.message.text)
            assert all((array == len(texts) - 1).all() for array in item.arrays)
        return Answer(Note(text=",".join(texts)))

    async with pair() as (a, b):
        known = method(add, kind="client_stream", items=Note)
        b.calls.serve(known)
        a.calls.serve(known)
        for peer in (b.peer_id, a.peer_id):
            answer = await a.calls.feed(peer, "m", Note(), items(50, size), Note)
            assert answer.message.text == ",".join(map(str, range(50)))


async def test_a_handler_that_does_not_read_holds_the_caller_back_and_may_end_early(pair: Pair, until: Until) -> None:
    given, enough = [0], trio.Event()

    async def endless() -> AsyncIterator[Note]:
        while True:
            given[0] += 1
            yield Note()

    async def lazy(call: Incoming[Note]) -> Answer[Note]:
        await enough.wait()
        return Answer(Note(text="enough"))

    async with pair() as (a, b), trio.open_nursery() as nursery:
        b.calls.serve(method(lazy, kind="client_stream", items=Note))
        got: list[Any] = []

        async def ask() -> None:
            got.append(await a.calls.feed(b.peer_id, "m", Note(), endless(), Note))

        nursery.start_soon(ask)
        await until(lambda: given[0] > limits.STREAM_ITEMS_MAX)
        await wait_all_tasks_blocked(0.01)
        assert given[0] == limits.STREAM_ITEMS_MAX + 1  # the last is in the caller's hand
        enough.set()
        await until(lambda: got)
        assert got[0].message.text == "enough"
        assert not a.offences + b.offences


async def test_who_feeds_a_call_and_who_waits_for_its_answer_are_both_woken(pair: Pair) -> None:
    async def count(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(text=str(len([item async for item in call.items]))))

    async with pair() as (a, b):
        b.calls.serve(method(count, kind="client_stream", items=Note))
        asking = await a.calls._asking(b.peer_id, "m", 5.0)
        pending = asking.begin("m", body_of(Note()), scope="", deadline=trio.current_time() + 5.0, kind="client_stream")
        n = 3 * limits.STREAM_ITEMS_MAX  # so that who feeds has to wait for room
        async with asking.outlet(pending) as outlet, trio.open_nursery() as nursery:
            nursery.start_soon(asking.feed, pending, items(n), outlet)
            last = await asking.answer(pending)
        asking.leave(pending)
        assert unpack(last.body, Note).text == str(n)


# -- transfers --------------------------------------------------------------------------------------------------------

SIZE = limits.BODY_BYTES_MAX + 12_345


async def test_a_transfer_past_a_frame_s_limit_goes_straight_to_its_place(pair: Pair) -> None:
    data = np.arange(SIZE // 8, dtype=np.int64)
    stored = np.zeros_like(data)

    async def give(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(text="here"), bulk=data)

    async def take(call: Incoming[Note]) -> Answer[Note]:
        assert call.bulk is not None
        await call.bulk.to(stored)
        return Answer(Note(text=str(call.bulk.size_bytes)))

    async with pair() as (a, b):
        b.calls.serve(method(give, name="give"), method(take, name="take", bulk_bytes_max=data.nbytes))
        found = np.zeros_like(data)
        answer = await a.calls.fetch(b.peer_id, "give", Note(), Note, found)
        assert answer.message.text == "here"
        assert np.array_equal(found, data)
        answer = await a.calls.send(b.peer_id, "take", Note(), data, Note)
        assert answer.message.text == str(data.nbytes)
        assert np.array_equal(stored, data)


async def test_files_are_sent_and_written_in_parts(pair: Pair) -> None:
    data = bytes(range(256)) * 20_000
    stored = io.BytesIO()

    async def give(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(), bulk=FilePart(io.BytesIO(data), len(data)))

    async def take(call: Incoming[Note]) -> Answer[Note]:
        assert call.bulk is not None
        await call.bulk.to(stored)
        return Answer(Note())

    async with pair() as (a, b):
        b.calls.serve(method(give, name="give"), method(take, name="take", bulk_bytes_max=2 * len(data)))
        found = io.BytesIO()
        await a.calls.fetch(b.peer_id, "give", Note(), Note, found)
        await a.calls.send(b.peer_id, "take", Note(), FilePart(io.BytesIO(data), len(data)), Note)
        assert found.getvalue() == stored.getvalue() == data
        short = FilePart(io.BytesIO(data), len(data) + 1)
        with pytest.raises(UsageError, match="1 B before"):
            await a.calls.send(b.peer_id, "take", Note(), short, Note)


async def test_transfers_have_a_bound_on_both_sides(pair: Pair) -> None:
    async def give(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(), bulk=bytes(1001))

    async with pair() as (a, b):
        b.calls.serve(method(give, name="give"), method(echo, name="take", bulk_bytes_max=1000))
        with pytest.raises(UsageError, match="do not fit"):
            await a.calls.fetch(b.peer_id, "give", Note(), Note, bytearray(1000))
        with pytest.raises(LinkError, match="1000 B at most, not 1001 B"):
            await a.calls.send(b.peer_id, "take", Note(), bytes(1001), Note)
    async with pair() as (a, b):
        b.calls.serve(method(give, name="give"))
        with pytest.raises(PeerError, match="1001 B; at most 1000 B"):
            await a.calls.fetch(b.peer_id, "give", Note(), Note, bytearray(1001), size_bytes_max=1000)


async def test_small_calls_pass_a_transfer(pair: Pair) -> None:
    data = bytearray(80_000_000)

    async def give(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(), bulk=data)

    async with pair() as (a, b), trio.open_nursery() as nursery:
        b.calls.serve(method(give, name="give"), method(echo))
        done: list[int] = []

        async def fetch() -> None:
            await a.calls.fetch(b.peer_id, "give", Note(), Note, bytearray(len(data)))
            done.append(1)

        nursery.start_soon(fetch)
        passed = 0
        while not done:
            await a.calls.call(b.peer_id, "m", Note(), Note)
            passed += not done
        assert passed >= 10


async def test_calls_to_oneself_need_no_connection(pair: Pair) -> None:
    async with pair() as (a, _):
        a.calls.serve(method(echo), method(forever, name="slow"))
        assert (await a.calls.call(a.peer_id, "m", Note(text="x"), Note)).message.text == "x"
        with pytest.raises(LinkError, match="its own 'slow'"):
            await a.calls.call(a.peer_id, "slow", Note(), Note, timeout_s=0.01)
        with pytest.raises(UsageError, match="other"):
            await a.calls.call(a.peer_id, "other", Note(), Note)


# -- cancellation at every step ---------------------------------------------------------------------------------------


class _StepCancel(trio.abc.Instrument):
    """Cancels a scope just before a task's n-th step."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.task: Any = None
        self.scope = trio.CancelScope()

    def after_task_step(self, task: Any) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("kind", ["small", "large", "items", "feed", "fetch"])
async def test_a_call_cancelled_at_any_step_leaves_the_connection_usable(  # noqa: C901  five kinds of calls
    pair: Pair, until: Until, kind: str
) -> None:
    big = np.arange(300_000, dtype=np.int32)

    async def pour(call: Incoming[Note]) -> None:
        for n in range(20):
            await call.send(Note(text=str(n)), [big] if n == 3 else [])

    async def drain(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(text=str(len([item async for item in call.items]))))

    async def give(call: Incoming[Note]) -> Answer[Note]:
        return Answer(Note(), bulk=big)

    async def one(a: Any, peer: Any) -> None:
        if kind in ("small", "large"):
            await a.calls.call(peer, "echo", Note(), Note, arrays=[big] if kind == "large" else [])
        elif kind == "items":
            async with a.calls.stream(peer, "pour", Note(), items=Note) as stream:
                assert len([item async for item in stream]) == 20
        elif kind == "feed":
            assert (await a.calls.feed(peer, "drain", Note(), _List(20, big), Note)).message.text == "20"
        else:
            await a.calls.fetch(peer, "give", Note(), Note, np.zeros_like(big))

    async with pair() as (a, b):
        b.calls.serve(
            method(echo, name="echo", body_bytes_max=limits.BODY_BYTES_MAX),
            method(pour, name="pour", kind="server_stream"),
            method(drain, name="drain", kind="client_stream", items=Note, body_bytes_max=limits.BODY_BYTES_MAX),
            method(give, name="give"),
        )
        connection = a.connection_to(b.peer_id)
        for step in range(1, 200):
            instrument = _StepCancel(step)
            finished = False
            with instrument.scope:
                instrument.task = trio.lowlevel.current_task()
                trio.lowlevel.add_instrument(instrument)
                try:
                    await one(a, b.peer_id)
                    finished = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            answer = await a.calls.call(b.peer_id, "echo", Note(text="still"), Note)
            assert answer.message.text == "still"
            if finished:
                break
        assert finished
        assert a.connection_to(b.peer_id) is connection
        assert not a.offences + b.offences
        asking = a.calls._links[connection].asking
        await until(lambda: asking._machine.in_flight == 0 and not asking._pending)
        await until(lambda: len(connection._muxer._streams) == 1)
        await until(lambda: not a.calls._links[connection].attached._slots)


class _List:
    """Items for a client stream, as an iterator that needs no closing."""

    def __init__(self, n: int, big: Any) -> None:
        self._left = n
        self._big = big

    def __aiter__(self) -> "_List":
        return self

    async def __anext__(self) -> Answer[Note]:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return Answer(Note(), [self._big] if self._left == 5 else [])
