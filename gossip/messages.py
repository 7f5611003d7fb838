"""What the members of a group send each other, as a small msgpack header and, apart from it, the raw payload.

A payload is megabytes: it travels beside its header, so that nobody has to copy it into a message and out again.
"""

from typing import Annotated

import msgspec

from .errors import BadContribution

NAME_LENGTH_MAX = 256  # a task's name, a peer's name: libp2p's peer ids have 46 to 59 characters
CONTRIBUTORS_MAX = 1024  # far above every sensible group
ROUND_MAX = 2**53  # exact in JSON too; at a round a millisecond it lasts for 285,000 years

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=ROUND_MAX)]
Part = Annotated[int, msgspec.Meta(ge=0, lt=CONTRIBUTORS_MAX)]
Context = Annotated[bytes, msgspec.Meta(max_length=64)]
Contributors = Annotated[tuple[tuple[Name, float], ...], msgspec.Meta(max_length=CONTRIBUTORS_MAX)]


class Contribution(msgspec.Struct, frozen=True, kw_only=True, tag="contribution", forbid_unknown_fields=True):
    """One member's own values of the part that the receiver averages.

    `context` is `Terms.context`; `weight` is what it asks to count with; `payload` is any bytes-like object.
    """

    task: Name
    round: RoundNumber
    context: Context
    part: Part
    weight: float
    payload: bytes = b""


class Mean(msgspec.Struct, frozen=True, kw_only=True, tag="mean", forbid_unknown_fields=True):
    """The average of one part, from the member that owns it, with those whose values are in it and their weights."""

    task: Name
    round: RoundNumber
    context: Context
    part: Part
    contributors: Contributors
    payload: bytes = b""


Message = Contribution | Mean

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> tuple[bytes, bytes]:
    """Return (header, payload): the header is msgpack and holds everything else."""
    return _encoder.encode(msgspec.structs.replace(message, payload=b"")), message.payload


def unpack(header: bytes | memoryview, payload: bytes | memoryview) -> Message:
    """Return the message of a header and its payload, which is kept as it is and not copied.

    Raises:
        BadContribution: the header is not that of one of our messages.
    """
    try:
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadContribution(f"the header of a message of a round is malformed ({error})") from None
    if message.payload:
        raise BadContribution("the header of a message of a round carries a payload: it belongs beside the header")
    return msgspec.structs.replace(message, payload=payload)


def payload_size_bytes(message: Message) -> int:
    """Return the length of the payload, whichever kind of buffer it is."""
    return memoryview(message.payload).nbytes
