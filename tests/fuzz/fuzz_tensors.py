"""Fuzz the description of tensors and what is cut out of a body: arrays of exactly that, or PeerError."""

import msgspec
import numpy as np

from .fuzzing import Data, main, watched

with watched("lepton.mesh.tensors"):
    from lepton.mesh import limits, tensors
    from lepton.mesh.errors import PeerError
    from lepton.mesh.tensors import TensorSpec

_decode = msgspec.msgpack.Decoder(tuple[TensorSpec, ...]).decode
TYPES = [*tensors.DTYPES, "object", "float128", ""]


def _specs(data: Data) -> tuple[TensorSpec, ...]:
    if data.flag():
        return _decode(data.take(data.integer(0, 255)))
    return tuple(
        TensorSpec(
            dtype=data.pick(TYPES),
            shape=tuple(data.integer(0, 2**40 if data.flag() else 4) for _ in range(data.integer(0, 8))),
        )
        for _ in range(data.integer(0, 3))
    )


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        specs = _specs(data)
        size = sum(map(tensors.size_bytes, specs))
        body = bytearray(data.rest())
        if size <= limits.MIB and data.left() == 0 and size > len(body):
            body += bytes(size - len(body))
        arrays = tensors.read(specs, memoryview(body))
        for spec, array in zip(specs, arrays, strict=True):
            assert (array.shape, array.dtype.name) == (spec.shape, spec.dtype)
            assert array.base is not None or not array.size
            tensors.require(array, dtype=spec.dtype, shape=(None,) * array.ndim, what="it")
            assert np.isfinite(array).all()
    except (PeerError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


_TWO = msgspec.msgpack.encode((TensorSpec(dtype="float32", shape=(2, 2)), TensorSpec(dtype="bool", shape=(3,))))
SEEDS = [
    b"\x01" + bytes([len(_TWO)]) + _TWO + np.ones(4, "<f4").tobytes() + b"\x00\x01\x00",
    b"\x00\x01\x00\x02\x00\x03\x00\x02" + bytes(24),
    b"\x00\x00",
]

if __name__ == "__main__":
    main(one, SEEDS)
