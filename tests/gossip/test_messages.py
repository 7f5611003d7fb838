"""Messages: what was packed comes back, and whatever else arrives is refused and nothing worse."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.errors import BadContribution
from lepton.gossip.messages import (
    Accepted,
    Contribution,
    Invite,
    Mean,
    Message,
    Outcome,
    Proposal,
    Status,
    View,
    Want,
    pack,
    payload_size_bytes,
    unpack,
)

C = b"c" * 16
CONTRIBUTION = Contribution(task="t", round=3, context=C, instance=7, part=1, chunk=2, reference=b"", payload=b"abcd")
MEAN = Mean(
    task="t", round=3, context=C, instance=7, part=1, chunk=2, contributors=(("a", 1.0), ("b", 2.0)), reference=b"",
    payload=b"abcd",
)  # fmt: skip
OUTCOME = Outcome(held=(b"\1", b"\0"), instances=(7, 0), reference=b"r")
STATUS = Status(
    task="t", round=3, context=C, instance=7, weight=2.5, reference=b"r", received=b"\0", held=(b"\1", b"\0"),
    instances=(7, 0), ballot=2, accepted=Accepted(ballot=1, outcome=OUTCOME),
)  # fmt: skip
PROPOSAL = Proposal(task="t", round=3, context=C, instance=7, ballot=2, outcome=OUTCOME)
WANT = Want(task="t", round=3, context=C, instance=7, part=1, chunks=b"\5")
VIEW = View(task="t", round=3, context=C, instance=7, hears=b"12345678", free=True, asks=True)
INVITE = Invite(task="t", round=3, context=C, instance=7, members=("a", "b"))


@pytest.mark.parametrize("message", [STATUS, PROPOSAL, WANT, VIEW, INVITE])
def test_a_message_without_a_payload_comes_back(message: Message) -> None:
    header, payload = pack(message)
    assert payload == b""
    assert unpack(header, payload) == message


@pytest.mark.parametrize("message", [CONTRIBUTION, MEAN])
def test_a_message_comes_back_with_its_payload_beside_it(message: Contribution | Mean) -> None:
    header, payload = pack(message)
    assert payload is message.payload
    assert payload not in header
    assert unpack(header, payload) == message
    view = memoryview(bytearray(payload))
    assert memoryview(unpack(memoryview(header), view).payload).obj is view.obj  # not a copy
    assert payload_size_bytes(unpack(header, view)) == 4


@given(st.binary(max_size=200))
def test_any_other_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadContribution, match="malformed"):
        unpack(header, b"")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_header_with_one_byte_changed_is_refused_or_a_message(place: int, byte: int) -> None:
    header = bytearray(pack(MEAN)[0])
    header[place % len(header)] = byte
    try:
        message = unpack(bytes(header), b"")
    except BadContribution:
        return
    assert isinstance(message, Mean)
    assert 0 <= message.round <= 2**53


@pytest.mark.parametrize(
    "changes",
    [
        {"round": -1},
        {"round": 2**60},
        {"part": -1},
        {"part": 5000},
        {"task": ""},
        {"task": "x" * 300},
        {"context": b"x" * 65},
        {"chunk": 1 << 20},
        {"instance": -1},
        {"weight": 1.0},
        {"extra": 1},
        {"type": "sum"},
        {"payload": b"inside"},
    ],
)
def test_a_header_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    fields = msgspec.msgpack.decode(pack(CONTRIBUTION)[0])
    with pytest.raises(BadContribution, match="header of a message of a round"):
        unpack(msgspec.msgpack.encode(fields | changes), b"")


def test_a_deeply_nested_header_is_refused() -> None:
    with pytest.raises(BadContribution):
        unpack(b"\x81\xa5extra" + b"\x91" * 100_000, b"")
