"""What a stage needs of a language model: a run of its layers, and a cache for each session. Interfaces only.

The invariant that fail-over rests on: what `Engine.run` gives for a position follows from the tokens up to it and from
the weights alone, bit for bit. It matters neither who else is in the batch nor in how many pieces the positions came,
so a cache that is rebuilt in large pieces equals the one that grew token by token on a stage that died.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...mesh.tensors import Array


class Cache(Protocol):
    """The keys and values of one session on one stage."""

    @property
    def length(self) -> int:
        """How many positions it holds."""

    @property
    def size_bytes(self) -> int:
        """What it takes now. Pages that it shares with others count once, for the one that made them."""

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on."""

    def fork(self, length: int) -> "Cache":
        """Make a cache of another session that begins with the first ``length`` positions of this one, shared."""

    def close(self) -> None:
        """Give its memory back. A closed cache is not used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive positions of one session, to be run in one batch with those of others.

    ``x`` is int32 (T,), token ids, on the first stage, and float32 (T, width) on every other; its positions follow
    those that ``cache`` holds. ``wants_logits`` is asked on the last stage only.
    """

    cache: Cache
    x: Array
    wants_logits: bool = False


class Engine(Protocol):
    """The layers ``first`` up to, not including, ``end`` of a model of ``layers`` layers, loaded. One thread uses it.

    Layer 0 is the embedding, 1 to L are the blocks, L + 1 is the last norm with the head.
    """

    first: int
    end: int
    layers: int
    width: int  # numbers of one position between layers
    vocabulary: int
    arithmetic: str  # where it is equal, engines give equal bits

    @property
    def weights_bytes(self) -> int:
        """What the weights take in memory, as loaded."""

    @property
    def cache_bytes_per_position(self) -> int:
        """What one position takes in the caches of this run of layers."""

    def new_cache(self) -> Cache:
        """Make an empty cache; it grows as positions come."""

    def run(self, pieces: Sequence[Piece]) -> list[Array | None]:
        """Run all pieces as one batch and put their positions into their caches.

        Returns for each piece float32 (T, width); on the last stage float32 (vocabulary,), the logits behind its last
        position, or None where they were not wanted. Raises UsageError, before any cache has changed, for a wrong
        dtype or shape, a token that is not in the vocabulary, or positions beyond the model's.
        """
