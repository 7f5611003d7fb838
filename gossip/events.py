"""The nouns of every machine here: what happens to it (events), what it wants done (effects), what came of it."""

from dataclasses import dataclass

from .codecs import Floats
from .messages import Message


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived from `peer`, whose identity the transport has proved."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class PeerDown:
    """`peer` is gone: there is no use in waiting for it."""

    peer: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The machine's `deadline` has passed. Too early a call does nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """The node has trained for `round` and wants to average `vector`, float32 (D,), with the `members` that it sees.

    `members` includes the node itself; `weight` is what its values ask to count with. The vector must not change until
    the round has finished; the machine never writes to it.
    """

    round: int
    vector: Floats
    weight: float
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to `peer`, without waiting for it; if that fails, say PeerDown or nothing at all."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a peer sent (`what`: 'contribution' or 'mean') was refused, in words."""

    peer: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Absence:
    """What was due from a peer (`what`: 'contribution' or 'mean') is not in the result, in words."""

    peer: str
    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The truth about one round of one node.

    `parts[j]` lists who is in the mean of part j (owned by `members[j]`) and with what weight, after clipping; it is
    empty where this node kept its own values. `complete`: every part is the mean of all members. `ignored` counts
    duplicates, late messages, and those of strangers and of other views. Bytes are those of payloads.
    """

    task: str
    round: int
    members: tuple[str, ...]
    parts: tuple[tuple[tuple[str, float], ...], ...]
    missing: tuple[Absence, ...]
    refused: tuple[Refusal, ...]
    ignored: int
    bytes_sent: int
    bytes_received: int
    contributions_s: float
    means_s: float
    complete: bool


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A round is over: `vector`, float32 (D,), is a new buffer and takes the place of the old one whole."""

    round: int
    vector: Floats
    report: Report


@dataclass(frozen=True, slots=True)
class Behind:
    """`peer` claims to be `by` rounds ahead: check that with the picture, and adopt its model instead of merging."""

    by: int
    peer: str
