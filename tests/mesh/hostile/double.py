"""What every attack may use: frames of any content, a raw hold on the muxer, and grants that do not hold."""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import trio
from lepton.mesh.calls import PROTOCOL as CALLS
from lepton.mesh.errors import LeptonError
from lepton.mesh.mesh import Mesh
from lepton.mesh.messages import Message
from lepton.mesh.rpc.headers import Control, RequestHeader, frame
from lepton.mesh.tensors import TensorSpec
from lepton.mesh.transport import Connection, Stream
from lepton.mesh.yamux import HEADER

from ..fakes import identity
from ..nodes import Guest

ALICE, BOB, EVE = map(identity, ("alice", "bob", "eve"))
CONTROL = frame(Control())


class Numbers(Message, frozen=True, kw_only=True):
    """Comes with one tensor of three finite float32."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done, whether it costs the attacker its connection, and a word of what the log says about it."""

    do: "Callable[[Guest, Mesh], Awaitable[object]]"
    says: str = ""
    closes: bool = True
    member: bool = True


def raw(header: bytes, body: bytes = b"", *, header_bytes: int | None = None, body_bytes: int | None = None) -> bytes:
    """A frame that may lie about its lengths."""
    sizes = (len(header) if header_bytes is None else header_bytes, len(body) if body_bytes is None else body_bytes)
    return struct.pack(">II", *sizes) + header + body


def request(call: int = 1, method: str = "echo", payload: bytes = b"\x80", **fields: Any) -> bytes:
    """A request whose payload may be anything."""
    fields = {"timeout_s": 5.0, "payload_bytes": len(payload)} | fields
    return frame(RequestHeader(call=call, method=method, **fields), (payload,))


def with_tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    spec = TensorSpec(dtype=dtype, shape=shape)
    header = RequestHeader(call=1, method="numbers", timeout_s=5.0, payload_bytes=1, tensors=(spec,))
    return frame(header, (b"\x80", data))


def unchecked(tag: int, *fields: Any, body: bytes = b"") -> bytes:
    """A frame whose header no encoder of ours would make."""
    return raw(msgpack.packb([tag, *fields]), body)


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


async def control(connection: Connection, data: bytes) -> Stream:
    """Open a control stream and say something on it."""
    stream = await connection.open_stream(CALLS)
    await stream.send_all(CONTROL + data)
    return stream


def on_control(data: bytes) -> Callable[[Guest, Mesh], Awaitable[object]]:
    """The attack of a member that says this on its control stream."""

    async def attack(eve: Guest, _alice: Mesh) -> None:
        await control(await eve.enter(), data)

    return attack


def on_stream(protocol: str, data: bytes, *, enter: bool, end: bool = False) -> Callable[[Guest, Mesh], Any]:
    """The attack of somebody that opens a stream and says this."""

    async def attack(eve: Guest, _alice: Mesh) -> None:
        connection = await (eve.enter() if enter else eve.dial())
        stream = await connection.open_stream(protocol)
        await stream.send_all(data)
        if end:
            await stream.send_eof()

    return attack


def inject(connection: Connection, *frames: tuple[int, int, int, int], body: bytes = b"") -> None:
    """Put yamux frames (type, flags, stream, length) on the connection that its machine would not make."""
    muxer = connection._muxer
    muxer._yamux._answers.extend(HEADER.pack(0, *each) for each in frames)
    if body:
        muxer._yamux._answers.append(body)
    muxer._kick()


async def quietly(work: Callable[..., Awaitable[object]], *args: Any, **fields: Any) -> None:
    """Do something whose failure is the point."""
    try:
        await work(*args, **fields)
    except (LeptonError, trio.BrokenResourceError, trio.ClosedResourceError):
        return
