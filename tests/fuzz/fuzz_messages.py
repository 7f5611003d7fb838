"""Fuzz ``unpack`` with the schema of everything that travels: a message or PeerError, and bounded memory.

A message that is read can be written, and reads the same again.
"""

from collections.abc import Iterator
from typing import Any

from .fuzzing import Data, main, watched

with watched("lepton.mesh.messages"):
    from lepton.mesh.errors import PeerError
    from lepton.mesh.messages import Message, encoded, unpack

import lepton.mesh.protocol
import lepton.mesh.swaps
import lepton.node.inference.messages
import lepton.node.learning.messages
from lepton.mesh import limits
from lepton.mesh.rpc.headers import Header
from lepton.node import control, home, picture

_LOADED = (control, home, picture)  # their messages are found below


def below(kind: type[Message]) -> Iterator[type[Message]]:
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


KINDS = sorted(
    (kind for kind in below(Message) if kind.__module__.startswith("lepton.") and not issubclass(kind, Header)),
    key=lambda kind: f"{kind.__module__}.{kind.__qualname__}",
)


def one(raw: bytes) -> bool:
    data = Data(raw)
    kind: type[Any] = data.pick(KINDS)
    try:
        message = unpack(data.rest(), kind)
    except PeerError:
        return False
    again = encoded(message)
    assert len(again) > limits.HEADER_BYTES_MAX or repr(unpack(again, kind)) == repr(message)  # repr: NaN is not NaN
    return True


def _seed(kind: type[Message], **fields: Any) -> bytes:
    return bytes([KINDS.index(kind)]) + encoded(kind(**fields))


SEEDS = [
    _seed(lepton.mesh.protocol.JoinAsk, nameplate="A1B"),
    _seed(lepton.mesh.protocol.HelloAnswer, refused="no"),
    _seed(lepton.mesh.swaps.Swap),
    _seed(lepton.node.learning.messages.StateWanted, version=1),
] + [bytes([number]) + b"\x80" for number in range(len(KINDS))]

if __name__ == "__main__":
    main(one, SEEDS)
