"""A blob is what its name says or it is not there; a stranger's layer fits its schema or is refused."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import LeptonError, PeerError, UsageError
from lepton.node import models
from lepton.node.blobs import BlobStore, layer_blob, read_layer_blob
from safetensors.numpy import save

SPEC = models.ModelSpec(architecture="mlp", inputs=(5,), classes=3, hidden=4)
SCHEMA = models.layer_schema(SPEC, 0)
TENSORS = models.layer_tensors(models.build(SPEC), 0)


def test_bytes_come_back_under_their_hash(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "new" / "blobs")
    name = store.put(b"abc")
    assert name == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert store.put(b"abc") == name
    assert store.has(name)
    assert store.names() == {name}
    assert BlobStore(tmp_path / "new" / "blobs").get(name) == b"abc"
    assert stat.S_IMODE((tmp_path / "new" / "blobs" / name).stat().st_mode) == 0o600
    store.remove(name)
    store.remove(name)
    assert not store.has(name)


def test_a_missing_blob_says_so(tmp_path: Path) -> None:
    with pytest.raises(LeptonError, match=f"blob {'0' * 64} is not here"):
        BlobStore(tmp_path).get("0" * 64)


@pytest.mark.parametrize("damage", [b"", b"ab", b"abd", b"abcd", b"x" * 100])
def test_a_damaged_blob_is_removed_and_can_be_put_again(tmp_path: Path, damage: bytes) -> None:
    store = BlobStore(tmp_path, blob_bytes_max=50)
    name = store.put(b"abc")
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(LeptonError, match=f"blob {name} was damaged"):
        store.get(name)
    assert not store.has(name)
    (tmp_path / name).write_bytes(damage)
    store.put(b"abc")
    assert store.get(name) == b"abc"


def test_a_blob_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / ("0" * 64)).mkdir()
    with pytest.raises(LeptonError, match=f"blob {'0' * 64} cannot be read: Is a directory"):
        BlobStore(tmp_path).get("0" * 64)


@pytest.mark.parametrize(
    "name", ["", "../secret", "a" * 63, "A" * 64, "a" * 65, "a" * 64 + "\n", "/" + "a" * 63, "g" * 64]
)
def test_what_is_no_name_reaches_no_file(tmp_path: Path, name: str) -> None:
    store = BlobStore(tmp_path)
    for use in (store.get, store.has, store.remove):
        with pytest.raises(UsageError, match="is not a blob's name"):
            use(name)


def test_a_blob_too_large_is_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, blob_bytes_max=3)
    store.put(b"abc")
    with pytest.raises(UsageError, match="4 bytes is more than the 3"):
        store.put(b"abcd")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_trace(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(LeptonError, match="No space left on device"):
            store.put(b"abc")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".writing-123").write_bytes(b"half")
    assert BlobStore(tmp_path).names() == set()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LeptonError, match="file: cannot keep blobs there"):
        BlobStore(tmp_path / "file")


# -- layers ------------------------------------------------------------------------------------------------------------


def test_a_layer_travels_as_a_blob() -> None:
    tensors = read_layer_blob(layer_blob(TENSORS), SCHEMA)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, torch.from_numpy(TENSORS[name]))
    models.load_layer(models.build(SPEC), 0, tensors)


def test_equal_tensors_give_equal_bytes() -> None:
    backwards = {name: np.asfortranarray(TENSORS[name]) for name in reversed(TENSORS)}
    assert layer_blob(backwards) == layer_blob(TENSORS)


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


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_altered_bytes_give_a_layer_or_peer_error_and_nothing_else(place: int, patch: bytes) -> None:
    blob = layer_blob(TENSORS)
    place %= len(blob)
    data = (blob[:place] + patch + blob[place + len(patch) :])[: len(blob)]
    try:
        tensors = read_layer_blob(data, SCHEMA)
    except PeerError:
        return
    assert {name: ("float32", tuple(t.shape)) for name, t in tensors.items()} == SCHEMA


@given(st.binary(max_size=300))
def test_random_bytes_give_peer_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        read_layer_blob(data, SCHEMA)
