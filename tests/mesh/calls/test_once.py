"""A call with a key runs at most once: repeated, joined, lost with its connection, or with the node that ran it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.calls import Answer, IdempotencyKey, Incoming, Method
from lepton.mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, Uncertain, UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.messages import Message
from lepton.mesh.rpc import headers
from lepton.mesh.rpc.callee import Callee
from lepton.mesh.rpc.once import OnlyOnce
from lepton.mesh.rpc.remembered import FRESH, RUNNING, Ended, Remembered

Pair = Callable[..., Any]
Until = Callable[[Callable[[], Any]], Any]
EPOCH = b"epoch  1"
ANN, BEN = PeerId("ann"), PeerId("ben")


class Note(Message, frozen=True):
    """Some text."""

    text: str = ""


class Counter:
    """A method that changes something."""

    def __init__(self, *, stalls: bool = False) -> None:
        self.runs = 0
        self.go_on = trio.Event()
        self.stalls = stalls

    async def __call__(self, call: Incoming[Note]) -> Answer[Note]:
        self.runs += 1
        run = self.runs
        if self.stalls:
            await self.go_on.wait()
        if call.message.text == "refuse":
            raise Refused("not this")
        return Answer(Note(text=f"run {run}"), call.arrays)

    def method(self) -> Method:
        return Method(name="m", needs="test", takes=Note, handler=self, body_bytes_max=limits.BODY_BYTES_MAX)


def outlive(node: Any) -> None:
    """Give a node tasks that outlive its callers' connections, as a member has them."""
    node.calls._only_once._spawn = node.transport._nursery.start_soon


async def test_a_repetition_gets_the_same_answer_and_runs_nothing(pair: Pair) -> None:
    async with pair() as (a, b):
        counter = Counter()
        b.calls.serve(counter.method())
        key = IdempotencyKey()
        sent = [np.arange(3, dtype=np.int8)]
        for _ in range(3):
            answer = await a.calls.call(b.peer_id, "m", Note(), Note, arrays=sent, idempotency_key=key)
            assert answer.message.text == "run 1"
            assert np.array_equal(answer.arrays[0], sent[0])
        assert (await a.calls.call(b.peer_id, "m", Note(), Note)).message.text == "run 2"  # without a key it runs
        with pytest.raises(Refused, match="not this"):
            await a.calls.call(b.peer_id, "m", Note(text="refuse"), Note, idempotency_key=(other := IdempotencyKey()))
        with pytest.raises(Refused, match="not this"):
            await a.calls.call(b.peer_id, "m", Note(text="refuse"), Note, idempotency_key=other)
        assert counter.runs == 3


@pytest.mark.parametrize("change", [{"message": Note(text="other")}, {"arrays": [np.ones(3)]}, {"scope": "x"}])
async def test_a_key_stands_for_one_request(pair: Pair, change: dict[str, Any]) -> None:
    async with pair() as (a, b):
        b.calls.serve(Counter().method())
        key = IdempotencyKey()
        await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)
        with pytest.raises(UsageError, match="used for another request"):
            await a.calls.call(b.peer_id, "m", change.pop("message", Note()), Note, idempotency_key=key, **change)
        assert not b.offences


@pytest.mark.parametrize("detached", [False, True])
async def test_a_repetition_joins_the_one_that_runs(pair: Pair, until: Until, detached: bool) -> None:
    async with pair() as (a, b):
        if detached:
            outlive(b)
        counter = Counter(stalls=True)
        b.calls.serve(counter.method())
        key, heard = IdempotencyKey(), list[str]()

        async def ask() -> None:
            heard.append((await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)).message.text)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await until(lambda: counter.runs)
            counter.go_on.set()
        assert heard == ["run 1"] * 3
        assert counter.runs == 1


async def test_a_call_whose_connection_breaks_goes_on_and_its_repetition_gets_the_answer(
    pair: Pair, until: Until
) -> None:
    async with pair() as (a, b):
        outlive(b)
        counter, heard = Counter(stalls=True), list[str]()
        b.calls.serve(counter.method())

        async def ask() -> None:
            heard.append((await a.calls.call_once(b.peer_id, "m", Note(), Note)).message.text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: counter.runs)
            await a.connection_to(b.peer_id).aclose()
            counter.go_on.set()
            await a.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
        assert heard == ["run 1"]
        assert counter.runs == 1


async def test_without_a_key_a_broken_call_is_not_sent_again(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        counter = Counter(stalls=True)
        b.calls.serve(counter.method())
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(LinkError):
                    await a.calls.call(b.peer_id, "m", Note(), Note)

            nursery.start_soon(ask)
            await until(lambda: counter.runs)
            await a.connection_to(b.peer_id).aclose()
        await a.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
        assert counter.runs == 1


async def test_a_restarted_callee_does_not_run_it_again_and_says_so(pair: Pair) -> None:
    async with pair() as (a, b):
        counter = Counter()
        b.calls.serve(counter.method())
        key = IdempotencyKey()
        await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)
        b.calls._only_once = OnlyOnce(Remembered(EPOCH), None)  # all that a restart changes
        await a.connection_to(b.peer_id).aclose()
        await a.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
        with pytest.raises(Uncertain, match="restarted since"):
            await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)
        assert counter.runs == 1
        await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=IdempotencyKey())


async def test_what_nobody_answers_in_time_is_uncertain(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        counter = Counter(stalls=True)
        b.calls.serve(counter.method())
        with pytest.raises(Uncertain, match="not known"):
            await a.calls.call_once(b.peer_id, "m", Note(), Note, timeout_s=0.2)
        assert counter.runs <= 1


async def test_an_answer_too_large_to_be_kept_is_given_once(pair: Pair) -> None:
    async with pair() as (a, b):
        counter = Counter()
        b.calls.serve(counter.method())
        big = [np.zeros(limits.REMEMBERED_BYTES_PER_PEER_MAX + 1, dtype=np.int8)]
        key = IdempotencyKey()
        assert (await a.calls.call(b.peer_id, "m", Note(), Note, arrays=big, idempotency_key=key)).arrays[0].size
        with pytest.raises(Uncertain, match="ran, but its answer was too large"):
            await a.calls.call(b.peer_id, "m", Note(), Note, arrays=big, idempotency_key=key)
        assert counter.runs == 1


async def test_a_call_to_oneself_runs_once_too(pair: Pair) -> None:
    async with pair() as (a, _):
        counter, key = Counter(), IdempotencyKey()
        a.calls.serve(counter.method())
        for _ in range(2):
            assert (await a.calls.call(a.peer_id, "m", Note(), Note, idempotency_key=key)).message.text == "run 1"
        assert counter.runs == 1


# -- the machine ------------------------------------------------------------------------------------------------------


def once(number: int, epoch: bytes = EPOCH) -> headers.Once:
    return headers.Once(key=number.to_bytes(headers.KEY_BYTES, "big"), epoch=epoch)


def test_keys_are_forgotten_late_and_new_ones_are_busy_until_then() -> None:
    memory = Remembered(EPOCH)
    for number in range(limits.KEYS_PER_PEER_MAX):
        assert memory.begin(ANN, once(number), b"r", 0.0) == FRESH
        memory.end(ANN, once(number).key, "answer", 1, 1.0)
    with pytest.raises(Busy) as caught:
        memory.begin(ANN, once(limits.KEYS_PER_PEER_MAX), b"r", 2.0)
    assert caught.value.retry_after_s == limits.REMEMBERED_S - 1.0
    assert memory.begin(BEN, once(0), b"r", 2.0) == FRESH  # another caller has keys of its own
    assert memory.begin(ANN, once(0), b"r", limits.REMEMBERED_S) == Ended("answer")
    assert memory.begin(ANN, once(0), b"r", limits.REMEMBERED_S + 1.0) == FRESH


def test_reconnecting_is_no_way_to_more_calls_at_once() -> None:
    memory = Remembered(EPOCH)
    for number in range(limits.CALLS_PER_PEER_MAX):
        assert memory.begin(ANN, once(number), b"r", 0.0) == FRESH
    with pytest.raises(Busy, match="outlived"):
        memory.begin(ANN, once(99), b"r", 0.0)
    assert memory.begin(ANN, once(0), b"r", 0.0) == RUNNING  # a repetition only waits
    memory.end(ANN, once(0).key, "answer", 1, 0.0)
    assert memory.begin(ANN, once(99), b"r", 0.0) == FRESH
    for number in range(100, 100 + limits.CALLS_QUEUED_PER_PEER_MAX):  # those that wait in a queue have their own bound
        assert memory.begin(ANN, once(number), b"r", 0.0, queued=True) == FRESH
    with pytest.raises(Busy, match="outlived"):
        memory.begin(ANN, once(999), b"r", 0.0, queued=True)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([ANN, BEN]),
        st.integers(0, 3),
        st.sampled_from([b"r", b"s"]),
        st.booleans(),
        st.integers(0, 400),
    )
)


@given(STEPS)
def test_whatever_is_asked_each_key_begins_once_while_it_is_remembered(steps: list[Any]) -> None:
    memory, now = Remembered(EPOCH), 0.0
    begun: dict[Any, tuple[bytes, float | None]] = {}  # its request, and when it ended
    for caller, number, request, ends, pause in steps:
        now += pause
        known = begun.get((caller, number))
        try:
            state = memory.begin(caller, once(number), request, now)
        except UsageError:
            assert known is not None
            assert known[0] != request
            continue
        forgotten = known is None or (known[1] is not None and now >= known[1] + limits.REMEMBERED_S)
        assert (state == FRESH) == forgotten
        if state == FRESH:
            begun[caller, number] = (request, None)
        if ends and state in {FRESH, RUNNING}:
            memory.end(caller, once(number).key, "x", 1, now)
            begun[caller, number] = (request, now)


def test_a_key_of_an_earlier_life_is_never_fresh() -> None:
    with pytest.raises(Uncertain):
        Remembered(EPOCH).begin(ANN, once(1, b"epoch  0"), b"r", 0.0)


async def test_brief_keys_are_let_go_with_their_answers_so_that_there_may_be_many(pair: Pair) -> None:
    async with pair() as (a, b):
        counter = Counter()
        b.calls.serve(counter.method())
        for _ in range(limits.KEYS_PER_PEER_MAX + 10):
            await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=IdempotencyKey(brief=True))
        assert counter.runs == limits.KEYS_PER_PEER_MAX + 10
        assert len(b.calls._only_once._remembered._callers[a.peer_id]) == 1  # the last: nothing was asked behind it


async def test_one_request_lets_go_of_no_more_brief_keys_than_it_may(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.calls.serve(Counter().method())
        await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=IdempotencyKey(brief=True))
        machine = a.calls._links[a.connection_to(b.peer_id)].asking._machine
        machine._settled = [bytes(16)] * (limits.KEYS_SETTLED_MAX + 1)
        await a.calls.call(b.peer_id, "m", Note(), Note)  # one more would have been an offence
        assert machine._settled == [bytes(16)]


async def test_a_brief_call_that_is_given_up_is_stopped(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        outlive(b)
        began, stopped = trio.Event(), trio.Event()

        async def work(call: Incoming[Note]) -> Answer[Note]:
            with trio.move_on_after(60):
                try:
                    began.set()
                    await trio.sleep_forever()
                finally:
                    stopped.set()
            raise AssertionError

        b.calls.serve(Method(name="m", needs="test", takes=Note, handler=work))

        async def call() -> None:
            await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=IdempotencyKey(brief=True))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await began.wait()
                nursery.cancel_scope.cancel()
            await stopped.wait()


async def test_a_brief_call_whose_connection_breaks_goes_on_and_runs_once(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        outlive(b)
        counter, key = Counter(stalls=True), IdempotencyKey(brief=True)
        b.calls.serve(counter.method())
        async with trio.open_nursery() as nursery:

            async def lose() -> None:
                with pytest.raises(LinkError):
                    await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)

            nursery.start_soon(lose)
            await until(lambda: counter.runs)
            await a.connection_to(b.peer_id).aclose()
        await a.transport.dial(b.peer_id, b.transport.addresses, timeout_s=10)
        counter.go_on.set()
        answer = await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=key)
        assert (answer.message.text, counter.runs) == ("run 1", 1)


def test_only_brief_keys_are_let_go_and_one_that_runs_at_its_end() -> None:
    memory = Remembered(EPOCH)
    brief = headers.Once(key=bytes(16), epoch=EPOCH, brief=True)
    for settled_first in (True, False):
        assert memory.begin(ANN, brief, b"r", 0.0) == FRESH
        if settled_first:
            memory.settle(ANN, brief.key)
        assert memory.begin(ANN, brief, b"r", 0.0) == RUNNING  # it is not run twice, whoever says what
        memory.end(ANN, brief.key, "x", 1, 0.0)
        memory.settle(ANN, brief.key)
        memory.settle(BEN, brief.key)
    assert memory.begin(ANN, once(1), b"r", 0.0) == FRESH
    memory.end(ANN, once(1).key, "x", 1, 0.0)
    memory.settle(ANN, once(1).key)
    assert memory.begin(ANN, once(1), b"r", 0.0) == Ended("x")


def test_only_a_message_has_a_key() -> None:
    for wrong in ({"kind": "server_stream", "credit": 1}, {"kind": "client_stream"}, {"aside": True, "bulk_bytes": 1}):
        fields: dict[str, Any] = {"call": 1, "method": "m", "timeout_s": 1.0, "once": once(1)} | wrong
        with pytest.raises(PeerError, match="idempotency key"):
            Callee().receive(headers.frame(headers.RequestHeader(**fields)), 0.0)


async def test_a_second_welcome_is_an_offence(pair: Pair, until: Until) -> None:
    async with pair() as (a, b):
        b.calls.serve(Counter().method())
        await a.calls.call(b.peer_id, "m", Note(), Note, idempotency_key=IdempotencyKey())
        machine = a.calls._links[a.connection_to(b.peer_id)].asking._machine
        with pytest.raises(LeptonError, match="never made"):
            machine.receive(headers.frame(headers.WelcomeHeader(call=0, epoch=EPOCH)))
