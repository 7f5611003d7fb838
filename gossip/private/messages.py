"""What the members of a private round send each other, in the order of its phases."""

from typing import Annotated

import msgspec

from ..errors import BadContribution
from ..messages import Context, Name, Part, RoundNumber
from .masking import MEMBERS_MAX, SEED_BYTES

ATTEMPT_MAX = 15  # far above any that is made

Key = Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Attempt = Annotated[int, msgspec.Meta(ge=0, le=ATTEMPT_MAX)]


class _Private(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task: Name
    round: RoundNumber
    context: Context  # of the terms
    attempt: Attempt
    payload: bytes = b""


class Hello(_Private, frozen=True, kw_only=True, tag="private_hello"):
    """A member's X25519 key for this attempt, and the model that it counts from."""

    key: Key
    reference: Context


class Masked(_Private, frozen=True, kw_only=True, tag="private_masked"):
    """One member's masked words of the part that the receiver owns."""

    part: Part


class Receipts(_Private, frozen=True, kw_only=True, tag="private_receipts"):
    """Whose keys and whose masked words the sender has."""

    heard: Names
    received: Names


class Agreed(_Private, frozen=True, kw_only=True, tag="private_agreed"):
    """The sender's signature over who is in the sum."""

    survivors: Names
    signature: Signature


class Reveal(_Private, frozen=True, kw_only=True, tag="private_reveal"):
    """The seed of the sender's own mask, and those that it shares with members who are not in the sum."""

    own: Key
    lost: Annotated[dict[Name, Key], msgspec.Meta(max_length=MEMBERS_MAX)]


class Sum(_Private, frozen=True, kw_only=True, tag="private_sum"):
    """The unmasked words of one part."""

    part: Part


Message = Hello | Masked | Receipts | Agreed | Reveal | Sum

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
        raise BadContribution(f"the header of a message of a private round is malformed ({error})") from None
    if message.payload:
        raise BadContribution("the header of a message of a private round carries a payload: it belongs beside it")
    return msgspec.structs.replace(message, payload=payload)
