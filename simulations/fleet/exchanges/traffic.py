"""What the machines' messages would weigh: payloads by the codec, and headers as the machines themselves write them.

Headers are measured by writing one of each kind, with names as long as a libp2p peer id. What is below a message (a
call's frame, a connection's records) is not in it.
"""

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ....gossip import graph_gossip, messages, pull, wire
from ....gossip.messages import Accepted, Contribution, Mean, Message, Outcome, Status, Want
from ....gossip.private import messages as private
from ....gossip.round import Head
from .layout import Layout
from .rounding import Rounding

Counts = npt.NDArray[np.int64]

NAME_BYTES = 52  # of an Ed25519 key's peer id in base58
TASK = "fleet"
DIGEST = bytes(16)
INSTANCE = 2**62  # drawn from 63 bits, so mostly written in nine bytes
STATUSES = 2  # to each other member: here I am, and I have it all

# What losses cost a round, by what the machines did on virtual time: 8 of them, int8, 5 to 30 % of messages lost. For
# each other member and each share of loss; nothing else of a round changes noticeably. A test holds the sum of it.
STATUSES_BY_LOSS = 33.0
CONTRIBUTIONS_BY_LOSS = 1.2
RELAYED_BY_LOSS = 1.7  # means, in float32, by who has them already
WANTED_BY_LOSS = 1.1


@lru_cache(maxsize=256)
def _headers(members: int, names: int, instance: int) -> tuple[int, int, int, int]:
    """Return the length of a status, a contribution's and a mean's header, and a want."""
    head: Head = {"task": TASK, "round": 1000, "context": DIGEST, "instance": instance}
    peers = tuple((f"{number:0{names}}", 100.0) for number in range(members))
    masks, lives = (b"\x01",) * members, (instance,) * members
    first = Status(
        **head, weight=100.0, reference=DIGEST, received=b"\0", held=(b"\0",) * members, instances=(0,) * members
    )
    accepted = Accepted(ballot=0, outcome=Outcome(held=masks, instances=lives, reference=b""))
    last = Status(
        **head, weight=100.0, reference=DIGEST, received=b"\1", held=masks, instances=lives, accepted=accepted
    )
    statuses = (_length(first) + _length(last)) // 2
    contribution = Contribution(**head, part=1, chunk=0, reference=b"")
    mean = Mean(**head, part=1, chunk=0, contributors=peers, reference=b"")
    return statuses, _length(contribution), _length(mean), _length(Want(**head, part=1, chunks=b"\1"))


def _length(message: Message) -> int:
    return len(messages.pack(message)[0])


@lru_cache(maxsize=256)
def of_groups(
    layout: Layout, rounding: Rounding, loss: float, *, names: int = NAME_BYTES, instance: int = INSTANCE
) -> tuple[Counts, Counts]:
    """Return what each member of a group sends and receives in a round: bytes (m,), (m,), to be read alone."""
    others = layout.members - 1
    if not others:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    status, contribution, mean, want = _headers(layout.members, names, instance)
    parts = np.array([rounding.size_bytes(length) for length in layout.lengths], dtype=np.float64)
    values, plain = parts + contribution, parts + mean
    relayed = float(4 * layout.sizes.mean()) + mean
    said = others * ((STATUSES + STATUSES_BY_LOSS * loss) * status + loss * WANTED_BY_LOSS * want)
    said += others * loss * RELAYED_BY_LOSS * relayed
    again = 1 + CONTRIBUTIONS_BY_LOSS * loss
    sent = said + again * (values.sum() - values) + others * plain
    received = said + again * others * values + (plain.sum() - plain)
    return sent.astype(np.int64), (received * (1 - loss)).astype(np.int64)


def of_private(layout: Layout, *, names: int = NAME_BYTES) -> tuple[Counts, Counts]:
    """Return what each member of a private group sends and receives in a round without losses: bytes (m,), (m,)."""
    peers = tuple(f"{number:0{names}}" for number in range(layout.members))
    head: dict[str, Any] = {"task": TASK, "round": 1000, "context": DIGEST, "attempt": 0}
    kinds = (
        private.Hello(**head, key=bytes(32), reference=b""),
        private.Receipts(**head, heard=peers, received=peers),
        private.Agreed(**head, survivors=peers, signature=bytes(64)),
        private.Reveal(**head, own=bytes(32), lost={}),
    )
    said = sum(len(private.pack(message)[0]) for message in kinds)
    masked, total = (len(private.pack(kind(**head, part=1))[0]) for kind in (private.Masked, private.Sum))
    words, others = 4.0 * (np.array(layout.lengths) + 1), layout.members - 1  # and the weight, behind the values
    sent = others * (said + words + total) + (words + masked).sum() - (words + masked)
    received = others * (said + words + masked) + (words + total).sum() - (words + total)
    return sent.astype(np.int64), received.astype(np.int64)


def of_values(dimension: int, rounding: Rounding) -> int:
    """Return the length of a model that travels to a neighbour on a graph."""
    return rounding.size_bytes(dimension) + _packed(graph_gossip.Values(task=TASK, round=1000))


def of_pull(dimension: int, rounding: Rounding) -> tuple[int, int]:
    """Return the lengths of what asks for a model, and of what brings it."""
    wanted, offered = pull.Wanted(task=TASK, round=1000), pull.Offered(task=TASK, round=1000, wanted=1000)
    return _packed(wanted), _packed(offered) + rounding.size_bytes(dimension)


def _packed(message: msgspec.Struct) -> int:
    return len(wire.Wire[Any](type(message), "it").pack(message)[0])
