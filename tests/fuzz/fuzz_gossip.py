"""Fuzz what members of a round send: headers and payloads of each codec give values, or BadContribution."""

from typing import Any

import numpy as np

from .fuzzing import Data, main, watched

with watched("lepton.gossip.messages", "lepton.gossip.private.messages", "lepton.gossip.codecs"):
    from lepton.gossip.codecs import CODECS
    from lepton.gossip.errors import BadContribution
    from lepton.gossip.messages import Contribution, Mean, Want, pack, unpack
    from lepton.gossip.private import messages as private

NAMES = sorted(CODECS)


def one(raw: bytes) -> bool:
    data = Data(raw)
    try:
        if data.flag():
            return _private(data.rest()) if data.flag() else _header(data.rest())
        return _payload(data)
    except BadContribution:
        return False


def _header(header: bytes) -> bool:
    message = unpack(header, b"payload")
    again = unpack(*pack(message))
    assert repr(again) == repr(message)
    return True


def _private(header: bytes) -> bool:
    message = private.unpack(header, b"payload")
    assert repr(private.unpack(*private.pack(message))) == repr(message)
    return True


def _payload(data: Data) -> bool:
    codec = CODECS[data.pick(NAMES)]
    size = data.integer(0, 600)
    payload = data.rest()
    if not payload:
        payload = bytes(codec.size_bytes(size))
    values = codec.decode(payload, size)
    assert values.shape == (size,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert len(payload) == codec.size_bytes(size)
    return True


_SAME: dict[str, Any] = {"task": "t", "round": 1, "context": b"c", "instance": 7, "part": 0}
_ASKED = Contribution(chunk=0, reference=b"", **_SAME)
_MEAN = Mean(chunk=0, reference=b"r", contributors=(("a", 1.0), ("b", 2.0)), **_SAME)
_WANT = Want(chunks=b"\x01", **_SAME)
_HELLO = private.Hello(task="t", round=1, context=b"c", attempt=0, key=bytes(32), reference=b"r")
_ONES = np.linspace(-1, 1, 300, dtype=np.float32)
SEEDS = [
    b"\x01\x00" + pack(_ASKED)[0],
    b"\x01\x00" + pack(_MEAN)[0],
    b"\x01\x00" + pack(_WANT)[0],
    b"\x01\x01" + private.pack(_HELLO)[0],
    *(
        bytes([0, number, 1, 44]) + bytes(CODECS[name].encode(_ONES, np.random.default_rng(0)))
        for number, name in enumerate(NAMES)
    ),
]

if __name__ == "__main__":
    main(one, SEEDS)
