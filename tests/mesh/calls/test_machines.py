"""The two machines of a control stream, joined by a link that cuts and delays; and each alone against the rules."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lepton.mesh import limits
from lepton.mesh.errors import Busy, LinkError, PeerError, Refused
from lepton.mesh.frames import FrameDecoder, encode
from lepton.mesh.rpc import callee as answering
from lepton.mesh.rpc import caller as asking
from lepton.mesh.rpc import headers
from lepton.mesh.rpc.callee import Callee
from lepton.mesh.rpc.caller import BODY_BYTES_MAX, Caller
from lepton.mesh.rpc.headers import (
    AnswerHeader,
    CancelHeader,
    CreditHeader,
    EndHeader,
    ErrorHeader,
    ItemHeader,
    RequestHeader,
)
from lepton.mesh.tensors import TensorSpec

PAYLOAD = b"payload"


def request(call: int, **changes: Any) -> RequestHeader:
    fields: dict[str, Any] = {"method": "m", "timeout_s": 10.0, "payload_bytes": len(PAYLOAD)} | changes
    if fields.get("kind") == "server_stream":
        fields.setdefault("credit", limits.STREAM_ITEMS_MAX)
    return RequestHeader(call=call, **fields)


def fresh_pair(**settings: Any) -> tuple[Caller, Callee]:
    caller, callee = Caller("them", **settings), Callee()
    caller.take()  # the frame that says what the stream is goes to whoever accepts it
    return caller, callee


class Joined(RuleBasedStateMachine):
    """Random commands on both sides while bytes come in pieces; at the end everything has its one last word."""

    @initialize()
    def join(self) -> None:
        self.caller, self.callee = fresh_pair(in_flight_max=12)
        self.now = 0.0
        self.there, self.back = bytearray(), bytearray()
        self.kinds: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.fed: set[int] = set()
        self.unread: Counter[int] = Counter()  # items at the caller
        self.waiting: Counter[int] = Counter()  # items at the callee
        self.working: dict[int, str] = {}
        self.stopped: set[int] = set()
        self.begun: Counter[int] = Counter()

    # -- the caller's side

    @rule(
        kind=st.sampled_from(["unary", "server_stream", "client_stream"]), timeout_s=st.sampled_from([0.5, 3.0, 600.0])
    )
    def ask(self, kind: str, timeout_s: float) -> None:
        call = self.caller.next_call
        try:
            self.caller.start(request(call, kind=kind, timeout_s=timeout_s), PAYLOAD, now=self.now)
        except Busy as busy:
            assert busy.retry_after_s > 0  # noqa: PT017  it may be raised, and then for this reason
            assert self.caller.in_flight == 12
        else:
            self.kinds[call] = kind

    @precondition(lambda self: self.kinds)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.kinds)))
        if not self.ended[call]:
            self.cancelled.add(call)
        self.caller.cancel(call)

    @rule()
    def feed(self) -> None:
        for call, kind in self.kinds.items():
            if kind == "client_stream" and call not in self.fed and self.caller.may_send(call):
                self.caller.item(ItemHeader(call=call, payload_bytes=len(PAYLOAD)), PAYLOAD, [])

    @precondition(lambda self: self.kinds)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.kinds)))
        if self.kinds[call] == "client_stream":
            self.fed.add(call)
            self.caller.end(call)

    @rule()
    def consume(self) -> None:
        for call in [call for call, count in self.unread.items() if count]:
            self.unread[call] -= 1
            self.caller.consumed(call)

    # -- the callee's side

    @precondition(lambda self: self.working)
    @rule(data=st.data(), aside=st.booleans())
    def answer(self, data: st.DataObject, aside: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.working)))
        if self.callee.is_delivering(call):
            self.callee.delivered(call)
        else:
            self.callee.answer(AnswerHeader(call=call, payload_bytes=len(PAYLOAD), aside=aside), PAYLOAD)
        if not self.callee.is_delivering(call):
            del self.working[call]

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.working)))
        self.callee.fail(call, Refused("no"))
        del self.working[call]

    @rule()
    def send_items(self) -> None:
        for call, kind in self.working.items():
            if kind == "server_stream" and self.callee.may_send(call) and not self.callee.is_delivering(call):
                self.callee.item(ItemHeader(call=call, payload_bytes=len(PAYLOAD)), PAYLOAD, [])

    @rule()
    def take_items(self) -> None:
        for call in [call for call, count in self.waiting.items() if count and call in self.working]:
            self.waiting[call] -= 1
            self.callee.consumed(call)

    # -- the link and time

    @rule(size=st.integers(1, 300))
    def carry_there(self, size: int) -> None:
        self.there += b"".join(self.caller.take())
        piece = self.there[:size]
        del self.there[:size]
        for event in self.callee.receive(piece, self.now):
            self.note_at_callee(event)

    @rule(size=st.integers(1, 300))
    def carry_back(self, size: int) -> None:
        self.back += b"".join(self.callee.take())
        piece = self.back[:size]
        del self.back[:size]
        for event in self.caller.receive(piece):
            self.note_at_caller(event)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for event in self.caller.tick(self.now):
            self.note_at_caller(event)
        for stop in self.callee.tick(self.now):
            self.note_at_callee(stop)

    def note_at_caller(self, event: asking.Event) -> None:
        assert event.call not in self.cancelled, "a cancelled call has no more events"
        assert not self.ended[event.call], "nothing comes behind the end"
        match event:
            case asking.Answered() | asking.Failed():
                self.ended[event.call] += 1
            case asking.ItemCame():
                self.unread[event.call] += 1

    def note_at_callee(self, event: answering.Event) -> None:
        match event:
            case answering.Asked():
                self.begun[event.call] += 1
                assert event.body == PAYLOAD
                self.working[event.call] = event.header.kind
                if event.header.kind == "client_stream":
                    self.callee.invite(event.call)
            case answering.ItemCame():
                self.waiting[event.call] += 1
            case answering.Stop():
                assert event.call not in self.stopped, "a call is stopped once"
                self.stopped.add(event.call)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "caller"):
            return
        assert self.callee.in_flight == len(self.working) <= limits.CALLS_PER_PEER_MAX
        delivering = sum(self.callee.is_delivering(call) for call in self.working)  # their last word is given
        assert self.callee.in_flight - delivering <= self.caller.in_flight <= 12
        assert max(self.unread.values(), default=0) <= limits.STREAM_ITEMS_MAX
        assert max(self.waiting.values(), default=0) <= limits.STREAM_ITEMS_MAX
        assert set(self.begun.values()) <= {1}

    def teardown(self) -> None:
        if not hasattr(self, "caller"):
            return
        while self.caller.in_flight or self.there or self.back:
            before = (self.caller.in_flight, len(self.there), len(self.back), len(self.working))
            self.carry_there(100_000)
            for call in list(self.working):
                if self.callee.is_delivering(call):
                    self.callee.delivered(call)
                else:
                    self.callee.fail(call, LinkError("the end"))
                del self.working[call]
            self.carry_back(100_000)
            assert before != (self.caller.in_flight, len(self.there), len(self.back), len(self.working))
        assert self.callee.in_flight == 0
        assert self.callee.deadline == self.caller.deadline == float("inf")
        for call in self.kinds:
            assert self.ended[call] == 1 or (call in self.cancelled and not self.ended[call])


def test_every_call_ends_once_on_both_sides_whatever_happens() -> None:
    run_state_machine_as_test(Joined, settings=settings(max_examples=150, stateful_step_count=60, deadline=None))


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_bytes_of_any_kind_cause_peer_errors_and_nothing_else(pieces: list[bytes], framed: bool) -> None:
    caller, callee = fresh_pair()
    caller.start(request(1, kind="server_stream"), PAYLOAD, now=0.0)
    callee.receive(caller.take()[0], 0.0)
    for side in (lambda data: callee.receive(data, 0.0), caller.receive):
        try:
            for piece in pieces:
                side(b"".join(encode(piece)) if framed else piece)
        except (PeerError, LinkError) as error:
            assert isinstance(error, PeerError) or "gave up" in str(error)  # noqa: PT017  either, or none


HEADERS = st.one_of(
    st.builds(RequestHeader, call=st.integers(0, 9), method=st.just("m"), timeout_s=st.just(1.0),
              kind=st.sampled_from(["unary", "server_stream", "client_stream"]), credit=st.integers(0, 20),
              aside=st.booleans(), bulk_bytes=st.integers(0, 2),
              tensors=st.sampled_from(["", "int8", "x"]).map(lambda d: (TensorSpec(dtype=d, shape=()),) if d else ())),
    st.builds(ItemHeader, call=st.integers(0, 9), payload_bytes=st.integers(0, 2)),
    st.builds(EndHeader, call=st.integers(0, 9)),
    st.builds(CancelHeader, call=st.integers(0, 9)),
    st.builds(CreditHeader, call=st.integers(0, 9), items=st.integers(0, 1024)),
    st.builds(AnswerHeader, call=st.integers(0, 9), payload_bytes=st.integers(0, 2)),
    st.builds(ErrorHeader, call=st.integers(0, 9), error=st.sampled_from(["busy", "usage", "cancelled"])),
)  # fmt: skip


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=2)), max_size=30), st.booleans())
def test_valid_headers_in_any_order_cause_peer_errors_and_nothing_else(frames: Any, to_callee: bool) -> None:
    caller, callee = fresh_pair()
    for call in (1, 2, 3):
        kind = ("unary", "server_stream", "client_stream")[call - 1]
        caller.start(request(call, kind=kind), PAYLOAD, now=0.0)
    try:
        for header, body in frames:
            data = headers.frame(header, (body,))
            if to_callee:
                callee.receive(data, 0.0)
            else:
                caller.receive(data)
    except (PeerError, LinkError):
        return
    assert callee.in_flight <= limits.CALLS_PER_PEER_MAX


def frame(header: Any, body: bytes = b"") -> bytes:
    return headers.frame(header, (body,))


ASKED = frame(request(5), PAYLOAD)
STREAMED = frame(request(5, kind="server_stream"), PAYLOAD)
FED = frame(request(5, kind="client_stream"), PAYLOAD)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (ASKED + ASKED, "ids only grow"),
        (frame(request(0), PAYLOAD), "ids only grow"),
        (frame(CancelHeader(call=1)), "never made"),
        (frame(request(1, kind="unary", credit=1), PAYLOAD), "credit of 1"),
        (frame(request(1, kind="server_stream", credit=0), PAYLOAD), "credit of 0"),
        (frame(request(1), b"other"), "is announced"),
        (frame(request(1, tensors=(TensorSpec(dtype="int8", shape=(2,)),)), PAYLOAD), "is announced"),
        (frame(request(1, bulk_bytes=1), PAYLOAD), "transfer is announced"),
        (frame(request(1, aside=True, tensors=(TensorSpec(dtype="object", shape=()),)), PAYLOAD), "not accepted"),
        (ASKED + frame(EndHeader(call=5)), "never were any"),
        (FED + 2 * frame(EndHeader(call=5)), "came twice"),
        (FED + frame(ItemHeader(call=5)), "without credit"),
        (ASKED + frame(CreditHeader(call=5, items=1)), "credit for 1"),
        (STREAMED + frame(CreditHeader(call=5, items=limits.CREDIT_MAX)), "more than there may be"),
        (ASKED + frame(CancelHeader(call=5), b"x"), "announced"),
        (frame(AnswerHeader(call=1)), "not valid"),
        (b"\xff" * 8, "announces a header"),
        ((10).to_bytes(4, "big") + (BODY_BYTES_MAX + 1).to_bytes(4, "big"), "announces a body"),
        (b"".join(encode(b"\xc1")), "not valid"),
        (b"".join(encode(b"")), "not valid"),
    ],
)  # fmt: skip
def test_a_caller_that_breaks_the_rules_is_named(data: bytes, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        Callee().receive(data, 0.0)


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("unary", 2 * frame(AnswerHeader(call=1)), "which is over"),
        ("unary", frame(AnswerHeader(call=2)), "never made"),
        ("unary", frame(ItemHeader(call=1)), "no credit"),
        ("server_stream", (limits.STREAM_ITEMS_MAX + 1) * frame(ItemHeader(call=1)), "no credit"),
        ("unary", frame(CreditHeader(call=1, items=1)), "credit"),
        ("client_stream", 2 * frame(CreditHeader(call=1, items=limits.CREDIT_MAX)), "credit"),
        ("unary", frame(AnswerHeader(call=1), b"x"), "announced"),
        ("unary", frame(request(1), PAYLOAD), "not valid"),
    ],
)
def test_a_callee_that_breaks_the_rules_is_named(kind: str, data: bytes, why: str) -> None:
    caller, _ = fresh_pair()
    caller.start(request(1, kind=kind), PAYLOAD, now=0.0)
    with pytest.raises(PeerError, match=why):
        caller.receive(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_s": 0.0}, {"timeout_s": limits.CALL_TIMEOUT_S_MAX + 1}, {"timeout_s": float("nan")},
        {"timeout_s": float("inf")}, {"method": "../x"}, {"method": "a" * 65}, {"scope": "a/b"}, {"kind": "duplex"},
        {"kind": "server_stream", "credit": limits.CREDIT_MAX + 1}, {"payload_bytes": -1}, {"payload_bytes": 2**53},
        {"tensors": (TensorSpec(dtype="int8", shape=()),) * (limits.BUFFERS_MAX + 1)},
        {"tensors": (TensorSpec(dtype="int8", shape=(1,) * (limits.TENSOR_DIMENSIONS_MAX + 1)),)},
    ],
)  # fmt: skip
def test_a_request_one_past_a_limit_is_not_read(fields: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="not valid"):
        Callee().receive(frame(request(1, **fields), PAYLOAD), 0.0)


def test_one_call_too_many_is_answered_busy_with_a_hint() -> None:
    caller, callee = fresh_pair()
    for _ in range(limits.CALLS_PER_PEER_MAX + 1):
        caller.start(request(caller.next_call), PAYLOAD, now=0.0)
    events = callee.receive(b"".join(caller.take()), 0.0)
    assert len(events) == callee.in_flight == limits.CALLS_PER_PEER_MAX
    (failed,) = caller.receive(b"".join(callee.take()))
    assert isinstance(failed, asking.Failed)
    assert isinstance(failed.error, Busy)
    assert failed.error.retry_after_s == limits.BUSY_RETRY_S


def test_of_small_calls_that_wait_in_a_queue_there_may_be_more_beside_the_others() -> None:
    caller, callee = Caller("them"), Callee(queues=lambda method: method == "queued")
    caller.take()
    for _ in range(limits.CALLS_QUEUED_PER_PEER_MAX):
        caller.start(request(caller.next_call, method="queued"), PAYLOAD, now=0.0)
    assert len(callee.receive(b"".join(caller.take()), 0.0)) == limits.CALLS_QUEUED_PER_PEER_MAX
    aside = {"method": "queued", "aside": True, "tensors": (TensorSpec(dtype="int8", shape=(limits.MIB,)),)}
    for fields in [{"method": "queued"}] + [{}, aside] * (limits.CALLS_PER_PEER_MAX // 2) + [{}, aside]:
        caller.start(request(caller.next_call, **fields), PAYLOAD, now=0.0)  # large ones count as all others do
    events = callee.receive(b"".join(caller.take()), 0.0)
    assert len(events) == limits.CALLS_PER_PEER_MAX
    refused = caller.receive(b"".join(callee.take()))
    assert [type(event.error) for event in refused if isinstance(event, asking.Failed)] == [Busy] * 3
    assert [callee.is_queued(call) for call in (1, limits.CALLS_QUEUED_PER_PEER_MAX + 2)] == [True, False]
    callee.fail(1, Refused("no"))  # room for one more
    caller.start(request(caller.next_call, method="queued"), PAYLOAD, now=0.0)
    assert len(callee.receive(b"".join(caller.take()), 0.0)) == 1


def test_the_caller_holds_itself_back_before_it_asks_too_much() -> None:
    caller, _ = fresh_pair()
    for _ in range(limits.CALLS_OUT_PER_PEER_MAX):
        caller.start(request(caller.next_call), PAYLOAD, now=0.0)
    with pytest.raises(Busy):
        caller.start(request(caller.next_call), PAYLOAD, now=0.0)


def test_large_buffers_are_reserved_before_they_are_read() -> None:
    callee = Callee(aside_bytes_max=100)
    big, small = (TensorSpec(dtype="int8", shape=(80,)),), (TensorSpec(dtype="int8", shape=(21,)),)
    (first,) = callee.receive(frame(request(1, aside=True, tensors=big), PAYLOAD), 0.0)
    assert callee.receive(frame(request(2, aside=True, tensors=small), PAYLOAD), 0.0) == []
    callee.fail(first.call, Refused("no"))
    assert len(callee.receive(frame(request(3, aside=True, tensors=small), PAYLOAD), 0.0)) == 1


def test_a_third_transfer_waits_its_turn() -> None:
    callee = Callee()
    events = [
        callee.receive(frame(request(call, aside=True, bulk_bytes=2**40), PAYLOAD), 0.0)
        for call in range(1, limits.TRANSFERS_PER_PEER_MAX + 2)
    ]
    assert [len(some) for some in events] == [1] * limits.TRANSFERS_PER_PEER_MAX + [0]


def test_a_call_past_its_deadline_counts_until_its_work_has_stopped() -> None:
    caller, callee = fresh_pair()
    caller.start(request(1, timeout_s=2.0), PAYLOAD, now=0.0)
    callee.receive(caller.take()[0], 0.5)
    assert callee.deadline == 2.5
    assert callee.tick(2.4) == []
    assert callee.tick(2.5) == [answering.Stop(1)]
    assert callee.in_flight == 1
    callee.answer(AnswerHeader(call=1), b"")  # too late: the last word is that it was
    assert callee.in_flight == 0
    (failed,) = caller.receive(b"".join(callee.take()))
    assert isinstance(failed, asking.Failed)
    assert "within the 2 s" in str(failed.error)


def test_an_error_of_the_whole_stream_is_the_link_s() -> None:
    caller, callee = fresh_pair()
    callee.give_up(PeerError("what was that?"))
    with pytest.raises(LinkError, match="what was that"):
        caller.receive(b"".join(callee.take()))


def test_a_header_is_small() -> None:
    (whole,) = FrameDecoder().receive(frame(request(2**40, method="m" * 64), bytes(7)))
    assert len(whole.header) < 110


@pytest.mark.parametrize("kind", ["server_stream", "client_stream"])
@given(data=st.data())
def test_a_stream_has_so_many_bytes_under_way_and_one_item_and_never_stands_still(
    kind: str, data: st.DataObject
) -> None:
    most, largest, total = 100, 70, 60
    caller, callee = fresh_pair(body_bytes_max=4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "STREAM_BYTES_MAX", most)
        caller.start(request(1, kind=kind), PAYLOAD, now=0.0)
        to_callee, to_caller = caller.take(), list[bytes]()
        assert isinstance(callee.receive(b"".join(to_callee), 0.0)[0], answering.Asked)
        to_callee = []
        sender, receiver = (callee, caller) if kind == "server_stream" else (caller, callee)
        if kind == "client_stream":
            callee.invite(1)
        sent, waiting = 0, list[int]()
        for _ in range(20 * total):
            if sent == total and not waiting:
                return
            match data.draw(st.sampled_from(["send", "carry", "consume"])):
                case "send" if sent < total and sender.may_send(1):
                    size = data.draw(st.integers(0, largest))
                    sender.item(ItemHeader(call=1, payload_bytes=size), bytes(size), [])
                    sent += 1
                case "carry":
                    to_callee += caller.take()
                    to_caller += callee.take()
                    heard = [*callee.receive(b"".join(to_callee), 0.0), *caller.receive(b"".join(to_caller))]
                    to_callee, to_caller = [], []
                    waiting += [
                        its.body.nbytes for its in heard if isinstance(its, answering.ItemCame | asking.ItemCame)
                    ]
                    assert sum(waiting) < most + largest
                case "consume" if waiting:
                    waiting.pop(0)
                    receiver.consumed(1)
        # Left to itself it comes to its end: nobody waits for the other.
        while sent < total or waiting:
            before = sent, len(waiting)
            if sent < total and sender.may_send(1):
                sender.item(ItemHeader(call=1, payload_bytes=largest), bytes(largest), [])
                sent += 1
            heard = [*callee.receive(b"".join(caller.take()), 0.0), *caller.receive(b"".join(callee.take()))]
            waiting += [its.body.nbytes for its in heard if isinstance(its, answering.ItemCame | asking.ItemCame)]
            if waiting:
                waiting.pop(0)
                receiver.consumed(1)
            assert (sent, len(waiting)) != before or caller.take() or callee.take() or sender.may_send(1)


def test_who_sends_more_bytes_than_may_wait_breaks_the_protocol() -> None:
    large = bytes(limits.STREAM_BYTES_MAX)
    item = ItemHeader(call=1, payload_bytes=len(large))
    caller = Caller("them", body_bytes_max=2 * limits.STREAM_BYTES_MAX)
    caller.start(request(1, kind="server_stream"), PAYLOAD, now=0.0)
    frames = headers.frame(item, (large,))
    assert len(caller.receive(frames)) == 1
    with pytest.raises(PeerError, match="no credit"):
        caller.receive(headers.frame(ItemHeader(call=1)))
    callee = Callee(body_bytes_max=2 * limits.STREAM_BYTES_MAX)
    callee.receive(headers.frame(request(1, kind="client_stream"), (PAYLOAD,)), 0.0)
    callee.invite(1)
    assert len(callee.receive(frames, 0.0)) == 1
    with pytest.raises(PeerError, match="without credit"):
        callee.receive(headers.frame(ItemHeader(call=1)), 0.0)
