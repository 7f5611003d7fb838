"""A stranger's layer fits its schema or is refused, and equal layers are equal bytes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import PeerError
from lepton.node import models, shapes
from lepton.node.blobs.layers import layer_blob, read_layer_blob
from lepton.node.blobs.rounded_layers import GROUP, rounded_layer_blob
from lepton.node.compression.straight import nearest
from lepton.node.kernels import Rounded, grouping
from lepton.node.kernels.rounded import rounded_arrays
from safetensors.numpy import save

SPEC = shapes.ModelSpec(architecture="mlp", inputs=(5,), classes=3, hidden=4)
SCHEMA = shapes.layer_schema(SPEC, 0)
TENSORS = models.layer_tensors(models.build(SPEC), 0)


def test_a_layer_travels_as_a_blob() -> None:
    tensors = read_layer_blob(layer_blob(TENSORS), SCHEMA)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, TENSORS[name])
    models.load_layer(models.build(SPEC), 0, tensors)


def test_equal_tensors_give_equal_bytes() -> None:
    backwards = {name: np.asfortranarray(TENSORS[name]) for name in reversed(TENSORS)}
    assert layer_blob(backwards) == layer_blob(TENSORS)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(4, 5), (3, 64), (6, 2, 3, 3), (2, 33)])
def test_a_rounded_layer_travels_small_and_is_floats_again(bits: int, shape: tuple[int, ...]) -> None:
    assert GROUP == grouping.GROUP
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = nearest(drawn, bits).numpy()
    bias = np.ones(shape[0], np.float32)
    integers, scales = rounded_arrays(weight, bits)
    blob = rounded_layer_blob({"bias": bias}, {"weight": (integers, scales)})
    schema = {"weight": ("float32", shape), "bias": ("float32", bias.shape)}
    found = read_layer_blob(blob, schema)
    stored = Rounded(torch.from_numpy(integers), torch.from_numpy(scales).view(torch.bfloat16), weight[0].size)
    assert np.array_equal(found["weight"], stored[:].numpy().reshape(shape))
    assert np.array_equal(found["bias"], bias)
    assert np.array_equal(found["weight"], weight)  # which was trained so: nothing is lost
    if weight.size > 100:
        assert len(blob) < 0.6 * len(layer_blob({"weight": weight, "bias": bias}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.zeros((4, 4), np.int8)}, "bytes where its layer has"),
        ({"weight_scale": np.zeros((2, 2), np.uint16)}, "expected"),
        ({"weight": np.zeros((5, 4), np.int8)}, "expected"),
        ({"weight": np.zeros((4, 5), np.bool_)}, "is bool with scales uint16"),
        ({"weight_scale": np.zeros((4, 1), np.int16)}, "with scales int16"),
        ({"weight_scale": np.full((4, 1), 0x7F80, np.uint16)}, "NaN or infinity"),
        ({"bias": np.full(4, np.nan, np.float32)}, "NaN or infinity"),
        ({"other": np.zeros((0,), np.uint8)}, "holds tensors"),
    ],
)
def test_a_rounded_layer_that_is_not_one_is_the_peers_fault(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "weight": np.ones((4, 5), np.int8), "weight_scale": np.full((4, 1), 0x3F80, np.uint16),
        "bias": np.zeros(4, np.float32),
    }  # fmt: skip
    assert (read_layer_blob(save(good), SCHEMA)["weight"] == 1).all()
    with pytest.raises(PeerError, match=message):
        read_layer_blob(save({**good, **changes}), SCHEMA)


def altered(**changes: Any) -> bytes:
    return save({**TENSORS, **changes})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header"),
        (b"\xff" * 100, "no header, or a larger one"),
        (layer_blob(TENSORS)[:-1], "bytes where its layer has"),
        (layer_blob(TENSORS) + b"\0", "bytes where its layer has"),
        (
            altered(weight=TENSORS["weight"].T.copy()),
            r"tensor 'weight' .* is float32 \(5, 4\), expected float32 \(4, 5\)",
        ),
        (altered(bias=TENSORS["bias"].view(np.int32)), "tensor 'bias' .* is int32"),
        (altered(bias=np.array([1, 2, np.nan, 4], np.float32)), "'bias' .* NaN or infinity"),
        (altered(bias=np.array([1, 2, np.inf, 4], np.float32)), "'bias' .* NaN or infinity"),
        (save({"weight": TENSORS["weight"], "bais": TENSORS["bias"]}), "holds tensors .*bais"),
        (save({"weight": TENSORS["weight"], "a": TENSORS["bias"][:2], "b": TENSORS["bias"][2:]}), "holds tensors"),
    ],
)
def test_what_is_not_the_layer_is_the_peers_fault(data: bytes, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        read_layer_blob(data, SCHEMA)


def with_header(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(96)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        [],
        {"weight": 1},
        {"weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 80]}},
        {"bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}} | {"weight": {"dtype": "F32"}},
        {
            "bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 80]},
        },
        {
            "bias": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]},
            "weight": {"dtype": "F8_E4M3", "shape": [80], "data_offsets": [16, 96]},
        },
        {
            "bias": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
            "weight": {"dtype": "F32", "shape": [4, 5], "data_offsets": [16, 96]},
        },
    ],
)
def test_a_header_that_lies_is_the_peers_fault(header: Any) -> None:
    with pytest.raises(PeerError):
        read_layer_blob(with_header(header), SCHEMA)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8), st.sampled_from([0, 8, 4]))
def test_altered_bytes_give_a_layer_or_peer_error_and_nothing_else(place: int, patch: bytes, bits: int) -> None:
    rounded = {"weight": rounded_arrays(TENSORS["weight"], bits)} if bits else {}
    blob = rounded_layer_blob({"bias": TENSORS["bias"]}, rounded) if bits else layer_blob(TENSORS)
    place %= len(blob)
    data = (blob[:place] + patch + blob[place + len(patch) :])[: len(blob)]
    try:
        tensors = read_layer_blob(data, SCHEMA)
    except PeerError:
        return
    assert {name: ("float32", tuple(t.shape)) for name, t in tensors.items()} == SCHEMA
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


@given(st.binary(max_size=300))
def test_random_bytes_give_peer_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        read_layer_blob(data, SCHEMA)
