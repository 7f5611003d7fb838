"""Calls over streams of memory: who may, who is told what, who loses the connection, and that no bug ends a node.

Where a test has a `MockClock`, nobody waits.
"""

import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import numpy as np
import pytest
import trio
import trio.testing
from lepton.mesh import limits
from lepton.mesh.calls import Answer, AnswerHeader, Calls, Empty, Incoming, Method, RequestHeader, receive_frame
from lepton.mesh.errors import Busy, LeptonError, LinkError, PeerError, Refused, UsageError
from lepton.mesh.frames import encode
from lepton.mesh.grants import ROLES, Authority
from lepton.mesh.identity import Identity, PeerId
from lepton.mesh.messages import pack, unpack
from lepton.mesh.tensors import TensorSpec
from lepton.mesh.transport import Connection, Stream
from trio.testing import MockClock

from .fakes import FOREVER, MemoryConnection, MemoryStream, Note, identity, stream_pair

ALICE, BOB, EVE = map(identity, ("alice", "bob", "eve"))


class Party:
    """The calls of one node, and what it noted of others."""

    def __init__(self, who: Identity, *capabilities: str, expires: float = FOREVER) -> None:
        self.peer_id = who.peer_id
        self.authorities: dict[PeerId, Authority] = {}
        self.connections: dict[PeerId, MemoryConnection] = {}
        self.offences: list[tuple[PeerId, str]] = []
        self.authority = Authority(who.peer_id, capabilities or ROLES["member"], int(expires))
        self.calls = Calls(self.authority, admit=self.admit, connection_to=self.connection_to, offend=self.offend)

    async def admit(self, peer: PeerId) -> Authority:
        if peer not in self.authorities:
            raise Refused("called before it showed a grant")
        return self.authorities[peer]

    def connection_to(self, peer: PeerId) -> Connection:
        if peer not in self.connections:
            raise LinkError("not connected")
        return cast("Connection", self.connections[peer])

    def offend(self, peer: PeerId, reason: str) -> None:
        self.offences.append((peer, reason))

    async def answer(self, stream: MemoryStream) -> None:
        await self.calls.answer(cast("Stream", stream))


@asynccontextmanager
async def linked(*parties: Party) -> AsyncIterator[trio.Nursery]:
    """Connect everybody with everybody."""
    async with trio.open_nursery() as nursery:
        for one in parties:
            for other in parties:
                one.authorities[other.peer_id] = other.authority
                if one is not other:
                    one.connections[other.peer_id] = MemoryConnection(one.peer_id, other.peer_id, other.answer, nursery)
        yield nursery
        nursery.cancel_scope.cancel()


def pair(*capabilities: str) -> tuple[Party, Party]:
    return Party(ALICE, *capabilities), Party(BOB)


async def echo(call: Incoming[Note]) -> Answer[Note]:
    return Answer(Note(text=f"{call.caller[-4:]} {call.scope} {call.message.text}".strip()), call.arrays)


async def never(_call: Incoming[Note]) -> Answer[Note]:
    await trio.sleep_forever()
    raise AssertionError


def raising(error: BaseException) -> Callable[[Incoming[Any]], Any]:
    async def handler(_call: Incoming[Any]) -> Answer[Any]:
        raise error

    return handler


def method(handler: Callable[[Incoming[Any]], Any] = echo, *, needs: str = "mesh", most: int = limits.MIB) -> Method:
    return Method(name="m", needs=needs, takes=Note, handler=handler, body_bytes_max=most)


# -- a call that succeeds ----------------------------------------------------------------------------------------------


async def test_a_call_brings_a_message_and_tensors_there_and_back() -> None:
    alice, bob = pair()
    bob.calls.serve(method(needs="infer"))
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([True, False]), np.zeros((0, 2), np.int8)]
    async with linked(alice, bob):
        answer = await alice.calls.call(bob.peer_id, "m", Note(text="hi"), Note, scope="digits", arrays=arrays)
    assert answer.message.text == f"{alice.peer_id[-4:]} digits hi"
    for sent, got in zip(arrays, answer.arrays, strict=True):
        assert np.array_equal(sent, got)
    assert alice.calls.bytes_sent == bob.calls.bytes_received + 8  # the frame's two lengths
    assert bob.offences == []


async def test_a_node_calls_itself_like_any_other(autojump_clock: MockClock) -> None:
    alice = Party(ALICE, "mesh")
    alice.calls.serve(method())
    assert (await alice.calls.call(alice.peer_id, "m", Note(text="x"), Note)).message.text.endswith("x")
    alice.calls.serve(method(needs="admin"))
    with pytest.raises(Refused, match="lacks the capability 'admin'"):
        await alice.calls.call(alice.peer_id, "m", Note(), Note)
    alice.calls.serve(method(never))
    with pytest.raises(LinkError, match="did not answer its own 'm' within 5 s"):
        await alice.calls.call(alice.peer_id, "m", Note(), Note, timeout_s=5)
    alice.calls.withdraw("m", "never served")
    with pytest.raises(UsageError, match="does not answer 'm'"):
        await alice.calls.call(alice.peer_id, "m", Note(), Note)


# -- who may -----------------------------------------------------------------------------------------------------------


async def test_a_method_that_is_not_there_is_named() -> None:
    alice, bob = pair()
    async with linked(alice, bob):
        with pytest.raises(UsageError, match=r"does not answer 'nothing\.here'"):
            await alice.calls.call(bob.peer_id, "nothing.here", Note(), Note)
    assert bob.offences == []


@pytest.mark.parametrize(("needs", "scope", "missing"), [("admin", "", "admin"), ("train", "secret", "train:secret")])
async def test_a_missing_capability_is_named(needs: str, scope: str, missing: str) -> None:
    alice, bob = pair("mesh", "train:digits")
    served = list[Any]()
    bob.calls.serve(method(served.append, needs=needs))
    async with linked(alice, bob):
        with pytest.raises(Refused, match=f"lacks the capability '{missing}'"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note, scope=scope)
    assert served == bob.offences == []


async def test_an_expired_grant_allows_nothing_more() -> None:
    alice, bob = Party(ALICE, expires=1.0), Party(BOB)
    bob.calls.serve(method())
    async with linked(alice, bob):
        with pytest.raises(Refused, match="has expired"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)


async def test_who_was_not_admitted_is_not_read_and_loses_the_connection() -> None:
    alice, bob = pair()
    async with linked(alice, bob):
        del bob.authorities[alice.peer_id]
        with pytest.raises(LinkError, match="broke during a call"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
    assert bob.offences == [(alice.peer_id, "called before it showed a grant")]


async def test_what_is_refused_takes_no_memory_and_its_sender_learns_why() -> None:
    alice, bob = pair("mesh")
    bob.calls.serve(method(needs="admin"))
    large = np.zeros(16 * limits.MIB, np.uint8)
    async with linked(alice, bob):
        mine, theirs = stream_pair(alice.peer_id, bob.peer_id, lockstep=True)
        header = RequestHeader(method="m", timeout_s=60.0, payload_bytes=1, tensors=())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.answer, theirs)
            tracemalloc.start()
            sent = 0
            for piece in encode(pack(header), [large.data]):
                for at in range(0, len(piece), limits.MIB):
                    await mine.send_all(piece[at : at + limits.MIB])
                    sent += limits.MIB
            await mine.send_eof()
            frame = await receive_frame(cast("Stream", mine), body_bytes_max=0)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert unpack(frame.header, AnswerHeader).error == "refused"
    assert peak_bytes < 6 * limits.MIB
    assert bob.offences == []


# -- deadlines and limits ----------------------------------------------------------------------------------------------


async def test_no_answer_in_time_is_a_link_error_and_ends_the_handler(autojump_clock: MockClock) -> None:
    alice, bob = pair()
    ended = trio.Event()

    async def stuck(_call: Incoming[Note]) -> Answer[Note]:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    bob.calls.serve(method(stuck))
    async with linked(alice, bob):
        with pytest.raises(LinkError, match=r"'m' .*within (the )?3 s"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note, timeout_s=3)
        await ended.wait()
    assert bob.offences == []


async def test_one_call_more_than_eight_at_once_is_told_to_come_again() -> None:
    alice, bob = pair()
    eve = Party(EVE)
    go = trio.Event()

    async def wait(_call: Incoming[Note]) -> Answer[Note]:
        await go.wait()
        return Answer(Note())

    bob.calls.serve(method(wait))
    async with linked(alice, bob, eve), trio.open_nursery() as nursery:
        for _ in range(limits.CALLS_PER_PEER_MAX):
            nursery.start_soon(alice.calls.call, bob.peer_id, "m", Note(), Note)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy, match="already answers 8 calls of yours") as caught:
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
        assert caught.value.retry_after_s == 0.1
        nursery.start_soon(eve.calls.call, bob.peer_id, "m", Note(), Note)  # others are not affected
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    async with linked(alice, bob):
        await alice.calls.call(bob.peer_id, "m", Note(), Note)  # and it is over when they are
    assert bob.calls._in_flight == {}


async def test_who_is_not_connected_cannot_be_called() -> None:
    alice, bob = pair()
    async with linked(alice, bob):
        with pytest.raises(LinkError, match="not connected"):
            await alice.calls.call(PeerId("nobody"), "m", Note(), Note)
        alice.connections[bob.peer_id].closed.set()
        with pytest.raises(LinkError, match="the connection is closed"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)


async def test_a_caller_that_goes_away_costs_nothing() -> None:
    alice, bob = pair()
    bob.calls.serve(method())
    async with linked(alice, bob):
        mine, theirs = stream_pair(alice.peer_id, bob.peer_id)
        mine.reset()
        await bob.answer(theirs)
    assert bob.offences == []
    assert bob.calls._in_flight == {}


async def test_a_caller_that_does_not_read_its_answer_is_not_waited_for(autojump_clock: MockClock) -> None:
    alice, bob = pair()
    bob.calls.serve(method())
    async with linked(alice, bob):
        mine, theirs = stream_pair(alice.peer_id, bob.peer_id, lockstep=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.answer, theirs)
            for piece in request(Note(text="x")):
                await mine.send_all(piece)
        assert theirs.was_reset
        assert bob.calls._in_flight == {}


@pytest.mark.parametrize("gone", [True, False])
async def test_who_does_not_hear_why_is_not_waited_for(gone: bool, autojump_clock: MockClock) -> None:
    alice, bob = pair()
    mine, theirs = stream_pair(alice.peer_id, bob.peer_id, lockstep=True)

    async def refuse(_call: Incoming[Note]) -> Answer[Note]:
        if gone:
            mine.reset()
        raise UsageError("you will not hear of it")

    bob.calls.serve(method(refuse))
    async with linked(alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(bob.answer, theirs)
        with suppress(trio.ClosedResourceError):
            for piece in request(Note()):
                await mine.send_all(piece)
    assert theirs.was_reset
    assert bob.calls._in_flight == {}


# -- what handlers raise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (UsageError("no such thing"), UsageError, "^no such thing$"),
        (Refused("not for you"), Refused, "^not for you$"),
        (LinkError("nobody there"), LinkError, "^nobody there$"),
        (PeerError("nonsense"), LinkError, "could not read our request: nonsense"),
        (LeptonError("something"), LinkError, "failed: something"),
        (ZeroDivisionError("secret"), LinkError, "failed: an unexpected ZeroDivisionError"),
        (AssertionError(), LinkError, "an unexpected AssertionError"),
        (ExceptionGroup("two", [ValueError(), KeyError()]), LinkError, "an unexpected ExceptionGroup"),
        (UsageError("long " * 10_000), UsageError, "^long "),
    ],
)
async def test_what_a_handler_raises_reaches_the_caller_and_ends_nothing(
    raised: Exception, kind: type[LeptonError], words: str
) -> None:
    alice, bob = pair()
    bob.calls.serve(method(raising(raised)), Method(name="good", needs="mesh", takes=Note, handler=echo))
    async with linked(alice, bob):
        with pytest.raises(kind, match=words):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
        await alice.calls.call(bob.peer_id, "good", Note(), Note)  # the node lives
    assert [who for who, _ in bob.offences] == ([alice.peer_id] if isinstance(raised, PeerError) else [])


@pytest.mark.parametrize(("pause_s", "told_s"), [(2.5, 2.5), (-1.0, 0.0), (1e9, 600.0), (float("nan"), 1.0)])
async def test_a_busy_handler_says_when_to_come_again(pause_s: float, told_s: float) -> None:
    alice, bob = pair()
    bob.calls.serve(method(raising(Busy("later", pause_s))))
    async with linked(alice, bob):
        with pytest.raises(Busy, match="later") as caught:
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
    assert caught.value.retry_after_s == told_s


async def test_a_caller_does_not_pay_for_what_a_third_peer_did() -> None:
    alice, bob, eve = Party(ALICE), Party(BOB), Party(EVE)

    async def lie(stream: MemoryStream) -> None:
        await stream.send_all(b"\xff" * 8)

    async def ask_eve(_call: Incoming[Note]) -> Answer[Note]:
        return await bob.calls.call(eve.peer_id, "m", Note(), Note)

    bob.calls.serve(method(ask_eve))
    async with linked(alice, bob, eve) as nursery:
        bob.connections[eve.peer_id] = MemoryConnection(bob.peer_id, eve.peer_id, lie, nursery)
        with pytest.raises(LinkError, match="announces a header"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
    assert [who for who, _ in bob.offences] == [eve.peer_id]


# -- malformed requests ------------------------------------------------------------------------------------------------


def request(message: object, *, body: bytes = b"", **fields: Any) -> list[Any]:
    payload = pack(message)
    good: dict[str, Any] = {"method": "m", "timeout_s": 5.0, "payload_bytes": len(payload)}
    return encode(pack(good | fields), [payload, body])


def prefix(header_bytes: int, body_bytes: int, data: bytes = b"") -> list[bytes]:
    return [struct.pack(">II", header_bytes, body_bytes) + data]


FLOATS = {"dtype": "float32", "shape": [2]}
MALFORMED: dict[str, tuple[list[Any], str]] = {
    "no msgpack": (encode(b"\xc1"), "not a valid RequestHeader"),
    "another message": (encode(pack(Note(text="x"))), "not a valid RequestHeader"),
    "no deadline": (request(Note(), timeout_s=0), "not a valid RequestHeader"),
    "a name that is none": (request(Note(), method="../m"), "not a valid RequestHeader"),
    "oversized header": (prefix(limits.HEADER_BYTES_MAX + 1, 0), "announces a header"),
    "oversized body": (prefix(8, limits.BODY_BYTES_MAX + 1), "announces a body"),
    "too large for the method": (request(Note(), body=bytes(limits.MIB)), "takes at most 1048576 B"),
    "nothing at all": ([], "ended where a frame was expected"),
    "truncated prefix": ([b"\x00\x00"], "ended inside a frame"),
    "truncated header": (prefix(9, 0, b"123"), "ended inside a frame"),
    "truncated body": ([b"".join(request(Note(text="x")))[:-1]], "ended inside a frame"),
    "wrong payload": (request({"other": 1}), "not a valid Note"),
    "payload longer than the body": (request(Note(), payload_bytes=9), "9 B was announced in a body of 1 B"),
    "tensor too short": (request(Note(), body=bytes(7), tensors=[FLOATS]), "take 8 B but the frame carries 7 B"),
    "tensor too long": (request(Note(), body=bytes(9), tensors=[FLOATS]), "take 8 B but the frame carries 9 B"),
    "bytes of no tensor": (request(Note(), body=b"x"), "take 0 B but the frame carries 1 B"),
    "unknown type": (request(Note(), tensors=[{"dtype": "object", "shape": []}]), "is not accepted"),
    "too many tensors": (request(Note(), tensors=[FLOATS] * 65), "not a valid RequestHeader"),
    "another method's body passed over": (
        [b"".join(request(Note(text="x"), method="none"))[:-1]],
        "ended inside a frame",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_malformed_is_named_and_costs_its_sender_the_connection(name: str) -> None:
    pieces, words = MALFORMED[name]
    alice, bob = pair()
    eve = Party(EVE)
    bob.calls.serve(method())
    async with linked(alice, bob, eve) as nursery:
        mine, theirs = stream_pair(eve.peer_id, bob.peer_id)
        nursery.start_soon(bob.answer, theirs)
        for piece in pieces:
            await mine.send_all(piece)
        await mine.send_eof()
        frame = await receive_frame(cast("Stream", mine), body_bytes_max=0)
        told = unpack(frame.header, AnswerHeader)
        assert told.error == "peer"
        assert words in told.reason
        await trio.testing.wait_all_tasks_blocked()
        assert [who for who, _ in bob.offences] == [eve.peer_id]
        await alice.calls.call(bob.peer_id, "m", Note(), Note)


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", struct.pack(">II", 40, 10) + b"\x84"])
async def test_who_sends_ever_so_slowly_is_cut_off(
    sent: bytes, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAME_TIMEOUT_S", 2.0)
    _, bob = pair()
    eve = Party(EVE)
    async with linked(eve, bob):
        mine, theirs = stream_pair(eve.peer_id, bob.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.answer, theirs)
            for byte in sent:
                await mine.send_all(bytes([byte]))
                await trio.sleep(0.05)
        [(who, reason)] = bob.offences
        assert who == eve.peer_id
        assert "not complete after 2 s" in reason


async def test_who_dribbles_is_cut_off_too(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAME_TIMEOUT_S", 2.0)
    _, bob = pair()
    eve = Party(EVE)

    async def dribble(stream: MemoryStream) -> None:
        with suppress(trio.BrokenResourceError):
            for byte in struct.pack(">II", 1000, 0) + bytes(1000):
                await stream.send_all(bytes([byte]))
                await trio.sleep(1.0)  # always something, never enough

    async with linked(eve, bob):
        mine, theirs = stream_pair(eve.peer_id, bob.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, mine)
            nursery.start_soon(bob.answer, theirs)
        assert len(bob.offences) == 1


# -- malformed answers -------------------------------------------------------------------------------------------------


def answered(header: object, *buffers: bytes) -> list[Any]:
    return encode(pack(header), buffers)


BAD_ANSWERS: dict[str, list[Any]] = {
    "nothing": [],
    "truncated": [b"\x00"],
    "no answer header": answered(Note(text="x")),
    "an error of no kind": answered({"error": "strange"}),
    "a pause that is no number": answered({"error": "busy", "retry_after_s": float("nan")}),
    "wrong payload": answered(AnswerHeader(payload_bytes=1), b"\x01"),
    "payload longer than the body": answered(AnswerHeader(payload_bytes=5), b"\x80"),
    "wrong tensor": answered(
        AnswerHeader(payload_bytes=1, tensors=(TensorSpec(dtype="int8", shape=(3,)),)), b"\x80\x00"
    ),
    "larger than agreed": answered(AnswerHeader(payload_bytes=1), b"\x80" + bytes(100)),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_cannot_be_read_costs_its_peer_the_connection(name: str) -> None:
    alice, bob = pair()

    async def lie(stream: MemoryStream) -> None:
        while await stream.receive_some():
            pass
        for piece in BAD_ANSWERS[name]:
            await stream.send_all(piece)
        await stream.aclose()

    async with linked(alice, bob) as nursery:
        alice.connections[bob.peer_id] = MemoryConnection(alice.peer_id, bob.peer_id, lie, nursery)
        with pytest.raises(PeerError) as caught:
            await alice.calls.call(bob.peer_id, "m", Note(), Note, answer_bytes_max=100)
    assert caught.value.offender == bob.peer_id
    assert alice.offences == [(bob.peer_id, str(caught.value))]


async def test_a_peer_that_breaks_off_is_a_link_error() -> None:
    alice, bob = pair()

    async def break_off(stream: MemoryStream) -> None:
        await stream.receive_some()
        stream.reset()

    async with linked(alice, bob) as nursery:
        alice.connections[bob.peer_id] = MemoryConnection(alice.peer_id, bob.peer_id, break_off, nursery)
        with pytest.raises(LinkError, match="broke during a call"):
            await alice.calls.call(bob.peer_id, "m", Note(), Note)
    assert alice.offences == []


# -- calls that no peer would read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "No Name"},
        {"scope": "../x"},
        {"scope": "x\n"},
        {"timeout_s": 0.0},
        {"timeout_s": -1.0},
        {"timeout_s": float("nan")},
        {"arrays": [np.zeros(0)] * (limits.BUFFERS_MAX + 1)},
        {"arrays": [np.zeros((1,) * (limits.TENSOR_DIMENSIONS_MAX + 1))]},
    ],
)
async def test_our_own_mistake_is_told_here_and_not_sent(wrong: dict[str, Any]) -> None:
    alice, bob = pair()
    async with linked(alice, bob):
        with pytest.raises(UsageError, match="cannot be called like this"):
            await alice.calls.call(bob.peer_id, wrong.pop("method", "m"), Note(), Note, **wrong)
    assert alice.calls.bytes_sent == 0


async def test_a_patient_caller_asks_for_no_more_time_than_peers_give() -> None:
    alice, bob = pair()
    bob.calls.serve(method())
    async with linked(alice, bob):
        await alice.calls.call(bob.peer_id, "m", Note(), Note, timeout_s=1e9)
        await alice.calls.call(bob.peer_id, "m", Note(), Note, timeout_s=float("inf"))


async def test_a_frame_is_read_to_its_end_and_no_further() -> None:
    mine, theirs = stream_pair(ALICE.peer_id, BOB.peer_id)
    for piece in (*encode(b"one", [b"1"]), *encode(b"", []), *encode(b"two", [b"2"])):
        await mine.send_all(piece)
    frames = [await receive_frame(cast("Stream", theirs), body_bytes_max=1) for _ in range(3)]
    assert [(frame.header, bytes(frame.body)) for frame in frames] == [(b"one", b"1"), (b"", b""), (b"two", b"2")]


def test_an_empty_message_is_one_byte() -> None:
    assert pack(Empty()) == b"\x80"
