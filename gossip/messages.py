"""What the members of a group send each other, as a small msgpack header and, apart from it, the raw payload.

A payload is up to half a megabyte: it travels beside its header, so that nobody copies it into a message and out
again. Everything but a contribution and a mean is a header alone.
"""

from typing import Annotated

import msgspec

from .wire import Wire

NAME_LENGTH_MAX = 256  # a task's name, a peer's name: libp2p's peer ids have 46 to 59 characters
CONTRIBUTORS_MAX = 1024  # far above every sensible group
ROUND_MAX = 2**53  # exact in JSON too; at a round a millisecond it lasts for 285,000 years
INSTANCE_MAX = 2**63 - 1
BALLOT_MAX = 2**31  # one in a wait, which is seconds
CHUNKS_MAX = 1 << 16  # of one part: 34 GB at half a megabyte each
MASK_BYTES_MAX = CHUNKS_MAX // 8

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
RoundNumber = Annotated[int, msgspec.Meta(ge=0, le=ROUND_MAX)]
Part = Annotated[int, msgspec.Meta(ge=0, lt=CONTRIBUTORS_MAX)]
Chunk = Annotated[int, msgspec.Meta(ge=0, lt=CHUNKS_MAX)]
Context = Annotated[bytes, msgspec.Meta(max_length=64)]
Instance = Annotated[int, msgspec.Meta(ge=0, le=INSTANCE_MAX)]
Ballot = Annotated[int, msgspec.Meta(ge=0, le=BALLOT_MAX)]
Mask = Annotated[bytes, msgspec.Meta(max_length=MASK_BYTES_MAX)]
Masks = Annotated[tuple[Mask, ...], msgspec.Meta(max_length=CONTRIBUTORS_MAX)]
Instances = Annotated[tuple[Instance, ...], msgspec.Meta(max_length=CONTRIBUTORS_MAX)]
Contributors = Annotated[tuple[tuple[Name, float], ...], msgspec.Meta(max_length=CONTRIBUTORS_MAX)]
Hears = Annotated[bytes, msgspec.Meta(max_length=8 * CONTRIBUTORS_MAX)]
Members = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=CONTRIBUTORS_MAX)]


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a round comes to: which chunks of each part have a mean that all adopt; bit i of a mask is chunk i.

    `instances[j]` says of which life of the owner's process (0 where no chunk is adopted). All other chunks are taken
    from the model called `reference`. Who has no such model (empty: there is none that a quorum shares) keeps its own
    values there, with the means of all other chunks, and reports that it did not agree.
    """

    held: Masks
    instances: Instances
    reference: Context


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An outcome that the sender stands for, since this ballot."""

    ballot: Ballot
    outcome: Outcome


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`context` is `Terms.context`; `instance` tells this life of the sender's process from an earlier one."""

    task: Name
    round: RoundNumber
    context: Context
    instance: Instance
    payload: bytes = b""


class Status(Header, frozen=True, kw_only=True, tag="status"):
    """Where the sender stands. It opens a round, asks for what is missing (`again`), and is its voice at the end.

    `weight` is what it asks to count with, `reference` names the model that it takes differences to. `received` are
    the chunks of its own part that it has from the receiver; `held` those of all parts whose mean it has, of the
    owners' lives `instances`. `ballot`, `accepted` and `decided` are those of `agreement.py`.
    """

    weight: float
    reference: Context
    received: Mask
    held: Masks
    instances: Instances
    ballot: Ballot = 0
    accepted: Accepted | None = None
    decided: bool = False
    again: bool = False


class Contribution(Header, frozen=True, kw_only=True, tag="contribution"):
    """The sender's own values of one chunk of the part that the receiver averages.

    Where `reference` is not empty they are differences to that model. `payload` is any bytes-like object.
    """

    part: Part
    chunk: Chunk
    reference: Context


class Mean(Header, frozen=True, kw_only=True, tag="mean"):
    """The average of one chunk, with those whose values are in it and their weights.

    Its owner sends it, or, `relayed` as the float32 that everybody decoded, somebody else who has it; `instance` is
    the owner's in any case. Where `reference` is not empty it is a difference to that model.
    """

    part: Part
    chunk: Chunk
    contributors: Contributors
    reference: Context
    relayed: bool = False


class Want(Header, frozen=True, kw_only=True, tag="want"):
    """Relay the means of these chunks of a part."""

    part: Part
    chunks: Mask


class Proposal(Header, frozen=True, kw_only=True, tag="proposal"):
    """What the leader of a ballot thinks that all can come to."""

    ballot: Ballot
    outcome: Outcome


class View(Header, frozen=True, kw_only=True, tag="view"):
    """Members see different groups: here is whom the sender `hears`, as digests of names (`forming.py`).

    `free`: it is looking for a group; else `context` is that of the group that it is in. `asks`: for the same.
    """

    hears: Hears
    free: bool
    asks: bool = False


class Invite(Header, frozen=True, kw_only=True, tag="invite"):
    """The sender has gathered these, itself and the receiver among them; `context` is that of their group."""

    members: Members


Message = Status | Contribution | Mean | Want | Proposal | View | Invite

_wire: Wire[Message] = Wire(Message, "a round")
pack, unpack = _wire.pack, _wire.unpack


def payload_size_bytes(message: Message) -> int:
    """Return the length of the payload, whichever kind of buffer it is."""
    return memoryview(message.payload).nbytes
