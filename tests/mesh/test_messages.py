"""Control messages: every limit tried one past, every byte string gives a message or a PeerError."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lepton.mesh import limits
from lepton.mesh.errors import PeerError
from lepton.mesh.grants import Grant, Statement
from lepton.mesh.messages import Message, Name, Natural, Sha256, Text, encoded, pack, unpack
from lepton.mesh.protocol import Hello, HelloAnswer, JoinAsk, JoinGranted, JoinHeld, JoinProof, Verdict, Welcome
from lepton.mesh.records import Content, SignedRecord
from lepton.mesh.rpc.headers import AnswerHeader, RequestHeader
from lepton.mesh.swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped


class Sample(Message, frozen=True, kw_only=True):
    text: Text = ""
    number: Natural = 0
    real: float = 0.0
    data: bytes = b""
    names: tuple[Name, ...] = ()
    table: dict[str, int] = {}  # noqa: RUF012
    flag: bool = False
    digest: Sha256 | None = None


class Anything(Message, frozen=True, kw_only=True):
    x: Any = None


KINDS = [
    Sample, Anything, Statement, Grant, Content, SignedRecord, Compare, Compared, Survey, Surveyed, Swap, Swapped,
    Hello, HelloAnswer, JoinAsk, JoinHeld, JoinProof, JoinGranted, Welcome, Verdict, RequestHeader, AnswerHeader,
]  # fmt: skip


def refused(data: bytes, kind: type[Any] = Anything, match: str = ".") -> None:
    with pytest.raises(PeerError, match=match):
        unpack(data, kind)


def test_a_message_comes_back_as_it_was() -> None:
    sample = Sample(text="é", number=2**53 - 1, real=0.5, data=b"\x00", names=("a.b-c_9",), table={"x": -1}, flag=True)
    assert unpack(pack(sample), Sample) == sample
    assert unpack(bytearray(pack(Sample())), Sample) == Sample()
    assert unpack(memoryview(pack(Sample())), Sample) == Sample()


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


# What is just within a limit, and the same one past.
LIMITS: dict[str, tuple[Any, Any]] = {
    "array": ([0] * limits.ARRAY_ITEMS_MAX, [0] * (limits.ARRAY_ITEMS_MAX + 1)),
    "map": (
        {str(n): 0 for n in range(limits.MAP_ITEMS_MAX)},
        {str(n): 0 for n in range(limits.MAP_ITEMS_MAX + 1)},
    ),
    "string": ("x" * limits.STRING_BYTES_MAX, "x" * (limits.STRING_BYTES_MAX + 1)),
    "letters of two bytes": ("é" * (limits.STRING_BYTES_MAX // 2), "é" * (limits.STRING_BYTES_MAX // 2 + 1)),
    "bin": (bytes(limits.BIN_BYTES_MAX), bytes(limits.BIN_BYTES_MAX + 1)),
    "depth": (nested(limits.DEPTH_MAX - 1), nested(limits.DEPTH_MAX)),  # the message itself is the first level
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_holds_and_not_one_earlier(name: str) -> None:
    within, beyond = LIMITS[name]
    assert unpack(msgpack.packb({"x": within}), Anything).x == within
    refused(msgpack.packb({"x": beyond}))


def test_a_header_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    half = limits.HEADER_BYTES_MAX // 2
    data = msgpack.packb({"x": [bytes(half - 10), bytes(half - 10)]})
    fitting = msgpack.packb({"x": [bytes(half - 10), bytes(half - 10 + limits.HEADER_BYTES_MAX - len(data))]})
    assert len(fitting) == limits.HEADER_BYTES_MAX
    unpack(fitting, Anything)
    refused(fitting + b"\x00", match="is over the limit of 65536 B")


@pytest.mark.parametrize(
    "data",
    [
        b"\xd4\x05\x00",  # ext of one byte
        b"\xc7\x00\x05",  # ext of none
        b"\xc7\x00\xff",  # a timestamp of none
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc9\xff\xff\xff\xff\x01",  # ext of 4 GiB
    ],
)
def test_no_extension_type_passes(data: bytes) -> None:
    refused(b"\x81\xa1x" + data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x82\xa1x\x01\xa1x\x01", "a key appears twice"),
        (b"\x81\xa1x\x82\xa1y\x01\xa1y\x02", "a key appears twice"),
        (b"\x81\x01\x02", "."),  # a number as key
        (b"\x81\xa1x\xa1\xff", "."),  # no UTF-8
        (b"\x81\xa1x\xc1", "."),  # never used in msgpack
        (b"\x81\xa1x", "."),  # truncated
        (b"\x81\xa1x\x01\x01", "."),  # something follows
        (b"", "."),
        (b"\x01", "."),
        (b"\xdd\xff\xff\xff\xff", "."),  # an array that claims 2**32 items
        (b"\xdf\xff\xff\xff\xff", "."),
        (b"\xc6\xff\xff\xff\xff", "."),
        (b"\xdb\xff\xff\xff\xff", "."),
        (b"\x91" * 2000 + b"\x00", "."),  # deep enough to end a recursion
        (b"\x81\xa1x" * 2000 + b"\x00", "."),
    ],
)
def test_what_is_not_plain_msgpack_is_the_senders_fault(data: bytes, words: str) -> None:
    refused(data, match=words)


@pytest.mark.parametrize(
    "fields",
    [
        {"other": 1},
        {"text": 1},
        {"text": None},
        {"text": b"x"},
        {"number": "1"},
        {"number": 1.0},
        {"number": True},
        {"number": -1},
        {"number": 2**53},
        {"number": 2**64 - 1},
        {"real": "nan"},
        {"real": True},
        {"data": "x"},
        {"data": [0]},
        {"names": "abc"},
        {"names": [""]},
        {"names": ["A"]},
        {"names": ["a\n"]},
        {"names": ["../a"]},
        {"names": ["a" * 65]},
        {"names": [".a"]},
        {"table": [["x", 1]]},
        {"table": {"x": "1"}},
        {"flag": 1},
        {"digest": "0" * 63},
        {"digest": "0" * 64 + "\n"},
        {"digest": "G" * 64},
    ],
)
def test_the_schema_is_exact(fields: dict[str, Any]) -> None:
    refused(msgpack.packb(fields), Sample, "is not a valid Sample")


def test_a_call_has_a_deadline_that_is_a_number() -> None:
    good = msgpack.unpackb(pack(RequestHeader(call=1, method="a", timeout_s=1.0)))
    assert unpack(msgpack.packb(good), RequestHeader).timeout_s == 1.0
    place = good.index(1.0)
    for timeout_s in (0, -1.0, float("nan"), float("inf"), limits.CALL_TIMEOUT_S_MAX + 1, "1", None):
        refused(msgpack.packb([*good[:place], timeout_s, *good[place + 1 :]]), RequestHeader)


def test_our_own_oversized_message_is_our_bug() -> None:
    large = Anything(x=[bytes(limits.BIN_BYTES_MAX)] * 2)
    assert len(encoded(large)) > limits.HEADER_BYTES_MAX
    with pytest.raises(AssertionError, match="our own Anything takes"):
        pack(large)


@given(st.binary(max_size=300), st.sampled_from(KINDS))
@example(b"\xc7\x00\xff", Anything)
def test_any_bytes_give_a_message_or_a_peer_error(data: bytes, kind: type[Any]) -> None:
    try:
        message = unpack(data, kind)
    except PeerError:
        return
    assert unpack(pack(message), kind) == message


LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.binary(max_size=70)
PLAIN = st.recursive(
    LEAVES | st.integers(-(2**63), 2**64 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from(KINDS))
def test_any_well_formed_value_gives_a_message_or_a_peer_error(value: Any, kind: type[Any]) -> None:
    try:
        unpack(msgpack.packb(value), kind)
    except PeerError:
        return


@given(st.data(), st.sampled_from(KINDS))
def test_any_values_in_the_right_fields_give_a_message_or_a_peer_error(data: st.DataObject, kind: type[Any]) -> None:
    fields = [field.encode_name for field in msgspec.structs.fields(kind)]
    values = data.draw(st.dictionaries(st.sampled_from(fields), PLAIN))
    try:
        unpack(msgpack.packb(values), kind)
    except PeerError:
        return


@contextmanager
def peak_bytes_below(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(b"\x90" * (10 * limits.MIB), id="10 MB of empty arrays"),
        pytest.param(b"\xdc\x04\x00" + b"\x90" * 1024, id="one array of empty arrays"),
        pytest.param(b"\xdc\x00\x3e" + (b"\xdc\x04\x00" + b"\x90" * 1024) * 62, id="64 KiB of arrays of empty arrays"),
        pytest.param(b"\xdc\x03\xe8" + (b"\x81\xa1x" + b"\x80") * 1000, id="maps of maps"),
        pytest.param(b"\xdd\x00\x00\x04\x00" * 1000, id="arrays that promise arrays"),
        pytest.param(b"\xc6\x7f\xff\xff\xff", id="2 GiB of bytes promised"),
    ],
)
def test_a_bomb_takes_bounded_memory(bomb: bytes) -> None:
    with peak_bytes_below(12 * limits.MIB):
        refused(bomb, Sample)
