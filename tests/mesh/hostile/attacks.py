"""The table of attacks: one line each for what is said wrongly, a function for what takes longer."""

import time
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import trio
from lepton.mesh import limits
from lepton.mesh.calls import PROTOCOL as CALLS
from lepton.mesh.errors import LinkError
from lepton.mesh.grants import Grant
from lepton.mesh.mesh import Mesh
from lepton.mesh.protocol import HELLO, JOIN
from lepton.mesh.records import RecordStore, SignedRecord
from lepton.mesh.revocations import Revocation, revoke
from lepton.mesh.rpc.headers import AnswerHeader, Attach, CancelHeader, CreditHeader, EndHeader, ItemHeader, frame
from lepton.mesh.swaps import Swap, Swapped
from lepton.mesh.tensors import TensorSpec
from lepton.mesh.transport import Stream
from lepton.mesh.yamux import Flag, Kind

from ..fakes import NOW, ROOT, Note, credentials, grant, identity
from ..nodes import Guest, greet
from .double import (
    BOB,
    CONTROL,
    EVE,
    Attack,
    control,
    deep,
    inject,
    on_control,
    on_stream,
    quietly,
    raw,
    request,
    unchecked,
    with_tensor,
)

NAN = np.array([1, np.nan, 3], dtype="<f4").tobytes()
STREAMS = 10_000


# -- strangers --------------------------------------------------------------------------------------------------------


def shows(chain: Sequence[Grant]) -> Any:
    """A stranger that greets with this chain."""

    async def attack(eve: Guest, _alice: Mesh) -> None:
        answer = await greet(await eve.dial(), tuple(chain))
        assert answer.refused

    return attack


def out() -> Revocation:
    return revoke(ROOT, EVE.peer_id, root=ROOT.peer_id, reason="lost on the bus", now=NOW)


async def shows_a_revoked_grant(eve: Guest, alice: Mesh) -> None:
    alice.revoking._revocations.merge([out()])
    answer = await greet(await eve.dial(), credentials(EVE).chain)
    assert "lost on the bus" in answer.refused


async def is_revoked_inside(eve: Guest, alice: Mesh) -> None:
    """And goes on calling, as if it had not heard."""
    connection = await eve.enter()
    stream = await control(connection, request(method="forever"))
    alice.revoking.take([out()])
    await quietly(stream.send_all, request(2))


def other_mesh() -> tuple[Grant, ...]:
    return (grant(identity("another root"), EVE),)


def own_making() -> tuple[Grant, ...]:
    return (grant(EVE, EVE),)


def member_as_issuer() -> tuple[Grant, ...]:
    """Bob may not invite, so what he signs is worth nothing."""
    return (*credentials(BOB).chain, grant(BOB, EVE))


async def is_silent(eve: Guest, _alice: Mesh) -> None:
    await eve.dial()


async def asks_before_it_greets(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.dial()
    await quietly(control, connection, request())


STRANGERS = {
    "garbage for a greeting": Attack(on_stream(HELLO, b"\xff" * 64, enter=False), "at most 65536 B", member=False),
    "a greeting cut short": Attack(
        on_stream(HELLO, raw(b"\x81", header_bytes=9), enter=False, end=True), "ended inside a frame", member=False
    ),
    "a greeting one byte too long": Attack(
        on_stream(HELLO, raw(b"", header_bytes=limits.HEADER_BYTES_MAX + 1), enter=False), "at most", member=False
    ),
    "a greeting with a body": Attack(
        on_stream(HELLO, raw(b"\x80", body_bytes=1), enter=False), "at most 0 B", member=False
    ),
    "a deep greeting": Attack(on_stream(HELLO, raw(deep(2000)), enter=False), "not a valid Hello", member=False),
    "a key twice": Attack(
        on_stream(HELLO, raw(b"\x82\xa1a\x01\xa1a\x02"), enter=False), "a key appears twice", member=False
    ),
    "an extension type": Attack(on_stream(HELLO, raw(b"\xd4\x01\x00"), enter=False), "not a valid", member=False),
    "garbage to join": Attack(on_stream(JOIN, raw(b"\xc1"), enter=False), "not a valid JoinAsk", member=False),
    "silence": Attack(is_silent, "broke off the greeting", member=False),
    "a call before the greeting": Attack(asks_before_it_greets, "but not for", member=False),
    "another peer's chain": Attack(shows(credentials(BOB).chain), "refused", member=False),
    "a grant of another mesh": Attack(shows(other_mesh()), "refused", member=False),
    "a grant of its own making": Attack(shows(own_making()), "refused", member=False),
    "a grant by who may not": Attack(shows(member_as_issuer()), "refused", member=False),
    "an expired grant": Attack(shows((grant(identity("root"), EVE, expires=time.time() - 1),)), "expire", member=False),
    "a revoked grant": Attack(shows_a_revoked_grant, "lost on the bus", member=False),
    "no grant": Attack(shows(()), "refused", member=False),
}


# -- members: what is said wrongly ------------------------------------------------------------------------------------

HALF = request()[:-1]
WORDS = {
    "garbage on a stream": Attack(on_stream(CALLS, b"\xff" * 64, enter=True), "at most 65536 B"),
    "garbage behind the opening": Attack(on_control(raw(b"\xc1\xc1")), "header is not valid"),
    "a header one byte too long": Attack(
        on_control(raw(b"", header_bytes=limits.HEADER_BYTES_MAX + 1)), "announces a header of 65537 B"
    ),
    "a body one byte too long": Attack(
        on_control(raw(b"\x80", body_bytes=limits.HEADER_BYTES_MAX + limits.INLINE_BYTES_MAX + 1)), "a body of 131073 B"
    ),
    "a frame cut short": Attack(on_stream(CALLS, CONTROL + HALF, enter=True, end=True), "ended inside a frame"),
    "a deep header": Attack(on_control(raw(deep(2000))), "header is not valid"),
    "a deep payload": Attack(on_control(request(payload=deep(limits.DEPTH_MAX + 2))), "not a valid Note"),
    "a key twice in a payload": Attack(on_control(request(payload=b"\x82\xa1a\x01\xa1a\x02")), "a key appears twice"),
    "an extension type in a payload": Attack(on_control(request(payload=b"\xd4\x01\x00")), "not a valid Note"),
    "a list of empty lists": Attack(on_control(request(payload=b"\xdc\xff\xff" + b"\x90" * 65535)), "over the limit"),
    "a deadline in the past": Attack(on_control(unchecked(1, 1, 1, [], False, 0, "echo", "", -1.0)), "not valid"),
    "a deadline in a hundred years": Attack(on_control(unchecked(1, 1, 1, [], False, 0, "echo", "", 3e9)), "not valid"),
    "a deadline that is no number": Attack(
        on_control(unchecked(1, 1, 1, [], False, 0, "echo", "", float("nan"))), "not valid"
    ),
    "a call number below zero": Attack(on_control(unchecked(4, -1)), "not valid"),
    "an older call again": Attack(on_control(request(2) + request(1)), "ids only grow"),
    "a word on a call never made": Attack(on_control(frame(CancelHeader(call=7))), "never made"),
    "an item without credit": Attack(on_control(request() + frame(ItemHeader(call=1))), "without credit"),
    "an end that nobody expects": Attack(on_control(request() + frame(EndHeader(call=1))), "never were any"),
    "credit for nothing": Attack(on_control(request() + frame(CreditHeader(call=1, items=9))), "credit for 9"),
    "an element type that runs code": Attack(on_control(with_tensor("object", (3,), bytes(24))), "not accepted"),
    "a tensor of another length": Attack(on_control(with_tensor("float32", (4,), bytes(12))), "B came"),
    "a tensor larger than memory": Attack(on_control(with_tensor("float64", (2**50,) * 8, bytes(8))), "B came"),
    "another element type": Attack(on_control(with_tensor("int32", (3,), bytes(12))), "expected float32"),
    "another shape": Attack(on_control(with_tensor("float32", (1, 3), bytes(12))), "expected float32"),
    "a NaN": Attack(on_control(with_tensor("float32", (3,), NAN)), "not finite"),
    "large buffers that nobody takes": Attack(
        on_control(request(tensors=(TensorSpec(dtype="int8", shape=(2**40,)),), aside=True)), "at most 1048576 B"
    ),
    "a stream that belongs to no call": Attack(
        on_stream(CALLS, frame(Attach(call=9, to_caller=False)), enter=True), closes=False
    ),
    "two openings": Attack(on_control(CONTROL), "not valid"),
}


# -- members: what takes longer ----------------------------------------------------------------------------------------


async def second_control_stream(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.enter()
    await control(connection, request(method="forever"))
    await control(connection, b"")


async def writes_half_a_frame(eve: Guest, _alice: Mesh) -> None:
    await control(await eve.enter(), request() + HALF)


async def trickles(eve: Guest, _alice: Mesh) -> None:
    """A byte at a time: each is progress, and the frame is never done."""
    stream = await control(await eve.enter(), b"")
    for byte in request(payload=bytes(1000)):
        await quietly(stream.send_all, bytes([byte]))
        if stream.broken:
            return
        await trio.sleep(0.01)


async def never_reads(eve: Guest, _alice: Mesh) -> None:
    """Ask for large answers and leave them all lying."""
    stream = await control(await eve.enter(), b"")
    call = 0
    with trio.move_on_after(20):
        while not stream.broken:
            call += 1
            await quietly(stream.send_all, request(call, "large"))
            await trio.lowlevel.checkpoint()


async def announces_and_keeps_silent(eve: Guest, _alice: Mesh) -> None:
    """The memory for a large buffer is reserved, and one byte of it comes."""
    connection = await eve.enter()
    spec = TensorSpec(dtype="int8", shape=(limits.MIB // 2,))
    stream = await control(connection, request(tensors=(spec,), aside=True, timeout_s=600.0))
    aside = await connection.open_stream(CALLS)
    await aside.send_all(frame(Attach(call=1, to_caller=False)) + b"x")
    heard = b""
    while b"too slow" not in heard:  # in time, not after the 600 s
        heard += await stream.receive_some()


async def opens_streams(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.enter()
    first = connection._muxer._yamux._next_id
    connection._muxer._yamux._next_id += 2 * STREAMS  # so that eve bears the answers
    for start in range(0, STREAMS, 500):
        ids = range(first + 2 * start, first + 2 * (start + 500), 2)
        inject(connection, *[(Kind.WINDOW, Flag.SYN, each, 0) for each in ids])
        await trio.sleep(0.001)


async def pings(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.enter()
    inject(connection, *[(Kind.PING, Flag.SYN, 0, each) for each in range(50_000)])


async def sends_past_the_window(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.enter()
    stream = await control(connection, b"")
    inject(connection, (Kind.DATA, 0, stream._muxed._state.id, 2**31), body=bytes(1000))


async def speaks_no_yamux(eve: Guest, _alice: Mesh) -> None:
    inject(await eve.enter(), (9, 99, 9, 9))


async def cancels_a_thousand_calls(eve: Guest, _alice: Mesh) -> None:
    data = b"".join(request(call, "forever") + frame(CancelHeader(call=call)) for call in range(1, 1001))
    stream = await control(await eve.enter(), data)
    with trio.fail_after(20):
        heard = b""
        while b"\x07\xcd\x03\xe8" not in heard:  # an error's tag, and call 1000
            heard += await stream.receive_some()


async def asks_for_too_much_at_once(eve: Guest, _alice: Mesh) -> None:
    """A hundred calls at once: eight are answered, the others are told when to come again."""
    stream = await control(await eve.enter(), b"".join(request(call, "forever") for call in range(1, 101)))
    with trio.fail_after(20):
        heard = b""
        while heard.count(b"already answers 8 calls") < 100 - limits.CALLS_PER_PEER_MAX:
            heard += await stream.receive_some()


async def answers_what_nobody_asked(eve: Guest, _alice: Mesh) -> None:
    async def lie(stream: Stream) -> None:
        await stream.send_all(frame(AnswerHeader(call=4711)))

    eve.served = lie
    await eve.enter()  # alice then asks for eve's records


def pushes(swap: Any) -> Any:
    async def attack(eve: Guest, alice: Mesh) -> None:
        await eve.enter()
        await quietly(eve.calls.call, alice.me, "mesh.swap", swap(), Swapped)

    return attack


def _signed(owner: Any, signer: Any) -> Swap:
    content = RecordStore(owner, 9).publish("note", "x", Note(text="forged")).signed.content
    record = SignedRecord(content=content, signature=signer.sign("record", content))
    return Swap(records=(record,), chains={owner.peer_id: credentials(owner).chain})


async def replays_a_record(eve: Guest, alice: Mesh) -> None:
    """What was said again and again changes nothing and takes no memory."""
    await eve.enter()
    swap = _signed(EVE, EVE)
    for _ in range(50):
        await eve.calls.call(alice.me, "mesh.swap", swap, Swapped)
    assert [record.name for record, _ in alice.live("note", Note)] == ["x"]


async def too_many_records(eve: Guest, _alice: Mesh) -> None:
    record = _signed(EVE, EVE).records[0]
    store = [record] * (limits.RECORDS_PER_SWAP_MAX + 1)
    payload = msgpack.packb({"records": msgspec.to_builtins(store, builtin_types=(bytes,))})
    await control(await eve.enter(), request(method="mesh.swap", payload=payload))


async def greets_twice(eve: Guest, _alice: Mesh) -> None:
    connection = await eve.enter()
    with pytest.raises(LinkError, match="does not speak"):  # nobody listens for it inside
        await connection.open_stream(HELLO)


DEEDS = {
    "a second control stream": Attack(second_control_stream, "second control stream"),
    "half a frame": Attack(writes_half_a_frame, "did not complete it within"),
    "a byte at a time": Attack(trickles, "did not complete it within"),
    "answers that are never read": Attack(never_reads, "has read nothing"),
    "a large buffer that never comes": Attack(announces_and_keeps_silent, closes=False),
    "ten thousand streams": Attack(opens_streams, "opens streams without end"),
    "fifty thousand pings": Attack(pings, "asks without reading"),
    "more than the window": Attack(sends_past_the_window, "more than its window"),
    "another muxer": Attack(speaks_no_yamux, "not yamux"),
    "a thousand cancelled calls": Attack(cancels_a_thousand_calls, closes=False),
    "a hundred calls at once": Attack(asks_for_too_much_at_once, closes=False),
    "answers to calls never asked": Attack(answers_what_nobody_asked, "never made"),
    "a record signed by another key": Attack(pushes(lambda: _signed(BOB, EVE)), "signature"),
    "a record replayed": Attack(replays_a_record, closes=False),
    "one record too many": Attack(too_many_records, "not a valid Swap"),
    "a grant revoked meanwhile": Attack(is_revoked_inside, "lost on the bus"),
    "a greeting once inside": Attack(greets_twice, closes=False),
}

ATTACKS = STRANGERS | WORDS | DEEDS
