"""What the members of a private round send each other, in the order of its phases."""

from typing import Annotated

import msgspec

from ..messages import Context, Name, Part, RoundNumber
from ..wire import Wire
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

_wire: Wire[Message] = Wire(Message, "a private round")
pack, unpack = _wire.pack, _wire.unpack
