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

    `members` includes the node itself; `weight` is what its values ask to count with. Nobody may write to the vector
    any more: what is sent may be a view of it. The result is written `into` memory of the same size where that is
    given. It is in use until the *next* agreed round has finished, so two buffers in turn will do: new memory for
    each round costs more time than averaging does.
    """

    round: int
    vector: Floats
    weight: float
    members: tuple[str, ...]
    into: Floats | None = None


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


@dataclass(frozen=True, slots=True)
class Run:
    """Elements `start` to `stop` of the vector: the mean of these contributors' values, with these weights.

    Weights are those after clipping. Without contributors they are values of the model `Report.base`, where the
    members agreed, else the node's own.
    """

    start: int
    stop: int
    contributors: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The truth about one round of one node.

    `agreed`: every member that reports this for the round holds the same model, bit for bit, and by the same name,
    `reference`. Otherwise `reference` is empty, and the node kept its own values: all of them, with empty `parts`
    (the others may have come to something), or, beside the means of the rest, those of runs that nobody has a mean of,
    where it had no common model to take them from. `parts[j]` says who is in the mean of part j (owned by
    `members[j]`): several runs where somebody fell out in the middle. `complete`: every part is the mean of all
    members. `base` names the model that differences were taken to. `ignored` counts duplicates, late messages, and
    those of strangers and of other views. Bytes are those of payloads.
    """

    task: str
    round: int
    members: tuple[str, ...]
    agreed: bool
    reference: bytes
    base: bytes
    parts: tuple[tuple[Run, ...], ...]
    missing: tuple[Absence, ...]
    refused: tuple[Refusal, ...]
    ignored: int
    bytes_sent: int
    bytes_received: int
    opening_s: float
    exchange_s: float
    agreement_s: float
    complete: bool

    @property
    def contributors(self) -> frozenset[str]:
        """Whose values are in the result, in any part of it; this node's own among them."""
        runs = (run for part in self.parts for run in part)
        return frozenset(peer for run in runs for peer, weight in run.contributors if weight)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A round is over: `vector`, float32 (D,), is a new buffer and takes the place of the old one whole.

    Nobody may write to it: others may still ask this node for parts of it, and it is the next round's reference.
    """

    round: int
    vector: Floats
    report: Report


@dataclass(frozen=True, slots=True)
class Behind:
    """`peer` claims to be `by` rounds ahead: check that with the picture, and adopt its model instead of merging."""

    by: int
    peer: str
