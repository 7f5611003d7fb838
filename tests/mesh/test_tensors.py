"""Tensors on the wire: what goes in comes out, and nothing that does not fit to the byte."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from lepton.mesh import limits
from lepton.mesh.errors import PeerError
from lepton.mesh.messages import pack, unpack
from lepton.mesh.tensors import (
    DTYPES,
    Array,
    TensorSpec,
    buffer_of,
    describe,
    read,
    require,
    require_finite,
    size_bytes,
)

SHAPES = npst.array_shapes(min_dims=0, max_dims=limits.TENSOR_DIMENSIONS_MAX, min_side=0, max_side=3)


def over_the_wire(*arrays: Array) -> list[Array]:
    specs = [unpack(pack(describe(array)), TensorSpec) for array in arrays]
    return read(specs, memoryview(bytearray(b"".join(map(buffer_of, arrays)))))


@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_every_type_comes_back_as_it_was(data: st.DataObject, dtype: str) -> None:
    arrays = data.draw(st.lists(npst.arrays(dtype, SHAPES), max_size=3))
    for sent, got in zip(arrays, over_the_wire(*arrays), strict=True):
        assert got.dtype == DTYPES[dtype]
        assert got.shape == sent.shape
        assert np.array_equal(got, sent, equal_nan=np.issubdtype(sent.dtype, np.floating))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(12.0)[::-2],
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["big endian", "transposed", "strided", "broadcast"],
)
def test_how_an_array_lies_in_memory_does_not_matter(array: Array) -> None:
    [got] = over_the_wire(array)
    assert np.array_equal(got, array)


def test_received_arrays_are_views_that_may_be_written() -> None:
    body = bytearray(8)
    [array] = read([TensorSpec(dtype="float32", shape=(2,))], memoryview(body))
    array[0] = 1.0
    assert body[:4] == np.float32(1).tobytes()


@pytest.mark.parametrize("dtype", ["object", "complex128", "U4", "M8[s]", "V4"])
def test_other_types_do_not_travel(dtype: str) -> None:
    with pytest.raises(ValueError, match="do not travel; use one of float32"):
        describe(np.zeros(1, dtype))


@pytest.mark.parametrize("dtype", ["", "object", "float8", "O", "<f4", "x" * 4096])
def test_an_unknown_type_is_the_senders_fault(dtype: str) -> None:
    with pytest.raises(PeerError, match="is not accepted; known are") as caught:
        size_bytes(TensorSpec(dtype=dtype, shape=()))
    assert len(str(caught.value)) < 300


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(-8, 8).filter(bool))
def test_a_body_that_is_too_short_or_too_long_is_refused(shape: list[int], off: int) -> None:
    spec = TensorSpec(dtype="float64", shape=tuple(shape))
    with pytest.raises(PeerError, match=f"take {8 * math.prod(shape)} B but the frame carries"):
        read([spec], memoryview(bytearray(max(0, 8 * math.prod(shape) + off))))


HUGE = 2**53 - 1


@pytest.mark.parametrize(
    ("shape", "body_bytes"),
    [
        ((HUGE,) * 8, 0),
        ((2**32, 2**32), 0),  # 2**64 elements: 0 in 64 bits
        ((2**31, 2**31, 4), 0),
        ((0, HUGE, HUGE), 0),  # truly nothing, but no array has these dimensions
        ((HUGE, HUGE, 0), 0),
    ],
)
def test_a_product_that_overflows_is_refused_before_anything_is_allocated(
    shape: tuple[int, ...], body_bytes: int
) -> None:
    with pytest.raises(PeerError):
        read([TensorSpec(dtype="uint8", shape=shape)], memoryview(bytearray(body_bytes)))


def test_nothing_is_a_body_too() -> None:
    assert read([], memoryview(b"")) == []
    assert [array.shape for array in over_the_wire(np.zeros((0, 3)), np.zeros(()), np.zeros((2, 0)))] == [
        (0, 3), (), (2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [[1] * (limits.TENSOR_DIMENSIONS_MAX + 1), [-1], [2**53], [1.0], ["1"], 1, None])
def test_a_shape_is_a_short_list_of_natural_numbers(shape: object) -> None:
    import msgpack

    with pytest.raises(PeerError):
        unpack(msgpack.packb({"dtype": "int8", "shape": shape}), TensorSpec)


def test_a_truth_value_is_one_of_two() -> None:
    spec = TensorSpec(dtype="bool", shape=(2,))
    assert read([spec], memoryview(b"\x00\x01"))[0].tolist() == [False, True]
    with pytest.raises(PeerError, match="neither 0 nor 1"):
        read([spec], memoryview(b"\x00\x02"))


def test_an_array_is_what_was_expected_or_refused() -> None:
    array: Array = np.ones((2, 3), np.float32)
    assert require(array, dtype="float32", shape=(2, 3), what="x") is array
    assert require(array, dtype="float32", shape=(None, 3), what="x") is array
    for dtype, shape in (("float64", (2, 3)), ("float32", (2,)), ("float32", (2, 4)), ("float32", (2, 3, 1))):
        with pytest.raises(PeerError, match=r"The batch is float32 \(2, 3\); expected"):
            require(array, dtype=dtype, shape=shape, what="The batch")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_refused(bad: float) -> None:
    array: Array = np.array([0, bad, bad], np.float32)
    with pytest.raises(PeerError, match="An update holds 2 values that are not finite"):
        require(array, dtype="float32", shape=(3,), what="An update")
    whole: Array = np.array([1, 2])
    assert require_finite(whole, what="x") is whole
