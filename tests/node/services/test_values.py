"""Values arrive as they were, in either form; bytes that nobody would send cost their sender, and no memory."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lepton.mesh.errors import PeerError, UsageError
from lepton.mesh.tensors import DTYPES, Array
from lepton.node.services.messages import Value
from lepton.node.services.writing import in_json, values
from lepton.node.services.writing.array_types import array_schema


@dataclass
class Box:
    corner: tuple[int, int]
    mask: npt.NDArray[np.uint8] | None = None


class Found(msgspec.Struct):
    kind: Literal["person", "car"]
    boxes: list[Box] = []
    raw: bytes = b""
    notes: dict[str, float] = {}


@dataclass
class Images:
    frames: list[bytes]
    embeddings: list[npt.NDArray[np.float32]] = field(default_factory=list)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays to their element types, NaN to NaN."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and repr(a) == repr(b)


arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.binary(min_size=5000, max_size=5001)
    | arrays
)
plain = st.recursive(
    leaves, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4)
)


@given(value=plain)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    assert same(value, values.decode(*values.encode(value)))


@given(value=plain, padding=st.integers(0, 200_000), more=st.integers(0, 90))
def test_and_so_does_what_is_long_or_has_many_arrays(value: Any, padding: int, more: int) -> None:
    large = [value, b"x" * padding, [np.arange(each, dtype=np.int32) for each in range(more)], "é" * (padding // 9)]
    packed, beside = values.encode(large)
    assert len(packed.tree) <= values.INLINE_TREE_BYTES_MAX
    assert len(beside) <= values.ARRAYS_MAX + 2
    assert same(large, values.decode(packed, beside))


def test_a_type_comes_back_as_it_was_declared() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    found = Found("car", [Box((1, 2), mask), Box((3, 4))], b"\0\xff", {"speed": 3.5})
    back = values.convert(values.decode(*values.encode(found)), Found, what="result")
    assert same(back.boxes[0].mask, mask)
    assert back.boxes[0].corner == (1, 2)
    assert (back.boxes[1], back.kind, back.raw, back.notes) == (Box((3, 4)), "car", b"\0\xff", {"speed": 3.5})


def test_a_hundred_pictures_and_embeddings_travel_in_two_arrays() -> None:
    images = Images(
        [bytes([each]) * 9000 for each in range(100)], [np.full(7, each, np.float32) for each in range(100)]
    )
    packed, beside = values.encode(images)
    assert len(beside) == 1
    back = values.convert(values.decode(packed, beside), Images, what="images")
    assert back.frames == images.frames
    assert same(back.embeddings, images.embeddings)
    assert all(each.flags.aligned and each.flags.writeable for each in back.embeddings)


def test_tensors_come_as_tensors_where_the_annotation_says_so() -> None:
    packed, beside = values.encode([torch.arange(4.0), torch.tensor(True)])
    back = values.convert(values.decode(packed, beside), list[torch.Tensor], what="x")
    assert torch.equal(back[0], torch.arange(4.0))
    assert back[1].dtype == torch.bool
    with pytest.raises(UsageError, match="bfloat16"):
        values.encode(torch.zeros(2, dtype=torch.bfloat16))


def test_an_element_type_is_changed_only_where_digits_alone_are_lost() -> None:
    wide = np.array([1.5, 2.5])
    assert values.convert(wide, npt.NDArray[np.float32], what="x").dtype == np.float32
    assert values.convert(wide, npt.NDArray[np.floating[Any]], what="x") is wide
    with pytest.raises(UsageError, match=r"x: Expected an array of int32, got float64"):
        values.convert(wide, npt.NDArray[np.int32], what="x")
    with pytest.raises(UsageError, match=r"x: Expected an array, got `list`"):
        values.convert([1, 2], np.ndarray, what="x")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "neither plain data"),
        (np.array(["a"]), "an array of str"),
        (np.zeros((1,) * 9), "9 dimensions"),
        (2**64, "ints"),
        ("\ud800", "surrogates"),
        (np.zeros(2, dtype=np.complex64), "complex64"),
        (list(range(600_000)), "as an array"),
        (np.broadcast_to(np.uint8(0), (values.VALUE_BYTES_MAX + 1,)), "stream parts"),
    ],
)
def test_what_does_not_travel_is_told_to_whoever_sends_it(value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        values.decode(*values.encode(value))


def test_a_value_in_itself_does_not_travel() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(UsageError, match="recursion"):
        values.encode(circle)


def ext(code: int, data: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


BYTES: Array = np.zeros(8, dtype=np.uint8)


@pytest.mark.parametrize(
    ("tree", "beside"),
    [
        (b"\xc1", []),  # no msgpack
        (b"\xdd\xff\xff\xff\xff", []),  # a list of 2^32 items
        (b"\x91" * 200_000 + b"\xc0", []),  # nested without end
        (b"\x81\x90\xc0", []),  # a list as a key
        (b"\xc0", [BYTES]),  # an array that nobody wants
        (b"", [np.zeros(3)]),  # a tree of floats
        (b"", [np.zeros((1, 1), np.uint8)]),
        (ext(1, b"\0\1"), [BYTES]),
        (ext(1, b"\0"), [BYTES]),
        (b"\x92" + ext(1, b"\0\0") * 2, [BYTES]),  # the same twice
        (b"\x92" + ext(2, b"\0\0\0\0\0\x08") * 2, [BYTES]),  # more of the pool than there is
        (ext(2, b"\0\0\0\0\0\x04"), [BYTES]),  # and less
        (ext(2, b"\0\1\0\0\0\x04"), [BYTES]),
        (ext(3, b"\0\0\0\0\0\x01"), [np.array([255], np.uint8)]),  # no text
        (ext(4, b"\0\0\0\0\0\x08\x00\0\0\0\x03"), [BYTES]),  # 12 B of float32 in 8
        (ext(4, b"\0\0\0\0\0\x08\x4f\0\0\0\x02"), [BYTES]),  # of an unknown type
        (ext(4, b"\0\0\0\0\0\x08\x00" + b"\0\0\0\1" * 9), [BYTES]),
        (ext(4, b"\0\0\0\0\0\x08"), [BYTES]),
        (ext(77, b""), []),
        (b"\xc7\x0c\xff" + b"\xff" * 12, []),  # a time that never was
        (b"\xa2\xff\xfe", []),
    ],
)
def test_what_nobody_sends_is_its_senders_fault(tree: bytes, beside: list[Array]) -> None:
    with pytest.raises(PeerError):
        values.decode(Value(tree=tree), beside)


def test_a_tree_is_no_longer_than_it_may_be() -> None:
    last = np.zeros(values.TREE_BYTES_MAX + 1, dtype=np.uint8)
    last[:5] = list(b"\xc6" + (values.TREE_BYTES_MAX - 4).to_bytes(4, "big"))
    with pytest.raises(PeerError, match="at most"):
        values.decode(Value(), [last])
    last[:5] = list(b"\xc6" + (values.TREE_BYTES_MAX - 5).to_bytes(4, "big"))
    assert len(values.decode(Value(), [last[:-1]])) == values.TREE_BYTES_MAX - 5


@given(tree=st.binary(max_size=64), size=st.integers(0, 64), count=st.integers(0, 3))
def test_any_bytes_are_read_or_refused(tree: bytes, size: int, count: int) -> None:
    beside: list[Array] = [np.zeros(size, dtype=np.uint8)] * count
    with suppress(PeerError):
        values.decode(Value(tree=tree), beside)


SCHEMA = msgspec.json.encode(
    {
        "type": "object",
        "properties": {
            "x": array_schema("float32"),
            "y": {"anyOf": [array_schema(), {"type": "null"}]},
            "raw": {"type": "string", "contentEncoding": "base64"},
            "box": {"$ref": "#/$defs/Box"},
        },
        "$defs": {
            "Box": {"type": "object", "properties": {"m": {"type": "array", "items": array_schema()}}},
            "Circle": {"$ref": "#/$defs/Circle"},
        },
    }
).decode()


def test_json_is_read_by_the_schema() -> None:
    text = (
        '{"x": [[1, 2.5]], "y": {"dtype": "uint8", "shape": [2], "data": "AQI="}, "raw": "AP8=", "box": {"m": [[1]]},'
        ' "other": "AP8="}'
    )
    read = in_json.read(text, SCHEMA)
    assert same(read["x"], np.array([[1, 2.5]], dtype=np.float32))
    assert same(read["y"], np.array([1, 2], dtype=np.uint8))
    assert (read["raw"], read["other"]) == (b"\0\xff", "AP8=")
    assert same(read["box"]["m"], [np.array([1])])
    assert in_json.read('{"y": null}', SCHEMA) == {"y": None}


def test_numbers_are_for_a_tensor_what_torch_makes_of_them() -> None:
    schema = msgspec.json.encode(array_schema() | {"x-tensor": True}).decode()
    assert in_json.read("[1.5, 2]", schema).dtype == np.float32
    assert in_json.read("[1, 2]", schema).dtype == np.int64
    assert in_json.read(in_json.write(np.ones(1)), schema).dtype == np.float64


@given(value=arrays)
def test_arrays_go_into_json_and_back(value: Array) -> None:
    schema = msgspec.json.encode(array_schema()).decode()
    back = in_json.read(in_json.write(value), schema)
    assert same(value, back)


def test_arrays_may_be_written_as_lists() -> None:
    assert in_json.write({"x": np.array([[1, 2]]), "n": np.float32(1), "b": b"\0"}, arrays="lists") == (
        b'{"x":[[1,2]],"n":1.0,"b":"AA=="}'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"x": [[1], [2, 3]]}', r"\$\.x is no array"),
        ('{"x": ["a"]}', r"\$\.x is no array"),
        ('{"x": [1e300]}', r"\$\.x is no array of float32: overflow"),
        ('{"x": {"dtype": "float32"}}', r"\$\.x is an array: lists"),
        ('{"x": {"dtype": "float32", "shape": [3], "data": "AAAA"}}', "no array of float32 with the shape"),
        ('{"x": {"dtype": "float32", "shape": [-1, -1], "data": "AAAAAA=="}}', "no array of float32 with the shape"),
        ('{"x": {"dtype": "float32", "shape": [0, 9e99], "data": ""}}', "no array of float32 with the shape"),
        ('{"x": {"dtype": "float32", "shape": [0, 99999999999999999999], "data": ""}}', "cannot have the shape"),
        ('{"x": {"dtype": "object", "shape": [], "data": ""}}', r"\$\.x is an array: lists"),
        ('{"raw": "?"}', r"\$\.raw has to be bytes in base64"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        in_json.read(text, SCHEMA)


def test_a_schema_in_a_circle_ends() -> None:
    with pytest.raises(UsageError, match="64 steps"):
        in_json.shaped(1, '{"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}')


@pytest.mark.parametrize("value", [list(range(60_000)), [[number] for number in range(40_000)]])
def test_what_has_more_parts_than_could_travel_is_not_looked_through(
    value: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "TREE_BYTES_MAX", 50_000)
    with pytest.raises(UsageError, match=r"more than [\d,]+ parts; send long lists of numbers as an array"):
        values.encode({"x": value, "y": 1})
