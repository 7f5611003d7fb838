"""Fuzz the values of services' calls: plain data that can be sent again, or PeerError; JSON, or UsageError."""

import numpy as np

from .fuzzing import Data, main, watched

with watched("lepton.node.services.writing.values", "lepton.node.services.writing.in_json"):
    from lepton.mesh.errors import PeerError, UsageError
    from lepton.mesh.tensors import Array
    from lepton.node.services.messages import Value
    from lepton.node.services.writing import in_json, values

SCHEMA = (
    '{"type":"object","properties":{"x":{"x-dtype":"float32","anyOf":[]},"b":{"contentEncoding":"base64"},'
    '"c":{"anyOf":[{"$ref":"#/$defs/C"},{"type":"null"}]}},"$defs":{"C":{"properties":{"c":{"$ref":"#/$defs/C"}}}}}'
)


def one(raw: bytes) -> bool:
    data = Data(raw)
    if data.flag():
        try:
            in_json.write(in_json.read(data.rest(), SCHEMA))
        except UsageError:
            return False
        return True
    arrays: list[Array] = [np.zeros(data.integer(0, 16), dtype=np.uint8) for _ in range(data.integer(0, 3))]
    try:
        value = values.decode(Value(tree=data.rest()), arrays)
    except PeerError:
        return False
    values.encode(value)
    return True


SEEDS = [
    b"\x01" + b'{"x": [[1, 2]], "b": "AP8=", "c": {"c": null}}',
    b"\x01" + b'{"x": {"dtype": "uint8", "shape": [1], "data": "AA=="}}',
    b"\x00\x01\x08\x82\xa1a\xd5\x01\x00\x00\xa1b\x93\x01\xcb?\xf0\x00\x00\x00\x00\x00\x00\xc4\x01\x00",
    b"\x00\x01\x08\xc7\x0b\x04\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x02",
    b"\x00\x00\xc0",
]

if __name__ == "__main__":
    main(one, SEEDS)
