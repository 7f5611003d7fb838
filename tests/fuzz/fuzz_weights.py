"""Fuzz what models come as: a layer's blob and a description give exactly what was expected, or a refusal.

Nothing is built that the description of the model does not allow.
"""

import struct

import msgspec
import numpy as np

from .fuzzing import Data, main, watched

with watched("lepton.node.blobs.layers", "lepton.node.shapes"):
    from lepton.mesh.errors import LeptonError, PeerError
    from lepton.node.blobs.layers import layer_blob, read_layer_blob
    from lepton.node.shapes import ModelSpec, check_spec, parameter_count

SCHEMA = {"bias": ("float32", (3,)), "weight": ("float32", (3, 2))}
BLOB = layer_blob({"weight": np.ones((3, 2), np.float32), "bias": np.zeros(3, np.float32)})
_decode = msgspec.json.Decoder(ModelSpec).decode


def one(raw: bytes) -> bool:
    data = Data(raw)
    return [_blob, _damaged, _spec][data.integer(0, 2)](data)


def _read(blob: bytes) -> bool:
    try:
        found = read_layer_blob(blob, SCHEMA)
    except PeerError:
        return False
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {n: s for n, (_, s) in SCHEMA.items()}
    assert all(np.isfinite(tensor).all() for tensor in found.values())
    return True


def _blob(data: Data) -> bool:
    """A header of the fuzzer's own, with a length that fits it, over as many bytes as there should be."""
    header = data.rest()
    return _read(struct.pack("<Q", len(header)) + header + bytes(36))


def _damaged(data: Data) -> bool:
    blob = bytearray(BLOB)
    for _ in range(data.integer(0, 4)):
        blob[data.integer(0, len(blob) - 1)] ^= data.integer(0, 255)
    return _read(bytes(blob[: data.integer(0, len(blob))] if data.flag() else blob))


def _spec(data: Data) -> bool:
    try:
        spec = _decode(data.rest())
        check_spec(spec)
        assert parameter_count(spec) > 0
    except (LeptonError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


_SIZE = int.from_bytes(BLOB[:8], "little")
SEEDS = [b"\x00" + BLOB[8 : 8 + _SIZE], b"\x01\x00\x00", b"\x01\x01\x00\x20\x01\x00"]

if __name__ == "__main__":
    main(one, SEEDS)
