"""Which samples make up step t of a node: a pure function of (seed, node, t), for a thousand nodes in a few sorts.

A node's samples stand in an endless line, pass after pass, each pass shuffled anew. By steps, step t takes its own
stretch of the line as the deployed trainer does (`node/learning/trainer.py`): b samples, or all where there are
fewer. By epochs a pass is cut into batches, and its last one is what is left.

How a pass is shuffled is the one choice: `Hashed` sorts hashes, every node by its own; `Deployed` draws just what a
node's trainer would draw, so that real machines and rows can be compared, at some 15 us a shuffle.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Keys = npt.NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64 (Steele, Lea and Flood 2014), also its two factors below
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_KEPT: Final = 4096  # shuffles of `Deployed` that are remembered: all nodes with as many samples share them


class Passes(Protocol):
    """How passes over samples are shuffled."""

    def shuffled(self, nodes: Ints, numbers: Ints, counts: Ints) -> Ints:
        """Return the samples of passes one after the other: of pass ``numbers[k]`` of node ``nodes[k]`` a permutation.

        Each is of 0 to ``counts[k]`` - 1; the whole is as long as the sum of the counts.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hashed:
    """Every node has an order of its own."""

    seed: int

    def shuffled(self, nodes: Ints, numbers: Ints, counts: Ints) -> Ints:
        """Sort keys of pass, hash and place: all are different, so there is one result."""
        group = np.repeat(np.arange(len(nodes)), counts)  # (S',)
        place = (np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
        own = _mixed(_mixed(_words(nodes) + _mixed(_words(np.array([self.seed])))) + _words(numbers))
        place_bits = np.uint64(max(1, int(counts.max())).bit_length())
        free_bits = np.uint64(64) - np.uint64(len(nodes).bit_length())
        keys = _mixed(own[group] + place * _GOLDEN) >> (np.uint64(64) - free_bits)  # the hash, below the group
        keys = ((keys >> place_bits) << place_bits) | place | (group.astype(np.uint64) << free_bits)
        keys.sort()
        return (keys & ((np.uint64(1) << place_bits) - np.uint64(1))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Deployed:
    """As `node.learning.trainer.Trainer` with this seed: nodes with as many samples have the same order."""

    seed: int

    def shuffled(self, nodes: Ints, numbers: Ints, counts: Ints) -> Ints:  # noqa: ARG002 - all nodes alike
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        return np.concatenate([_drawn(self.seed, number, count) for number, count in pairs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The batches of n nodes in one round, of at most B samples each."""

    places: Ints  # (steps, n, B): among all samples; beyond a batch's end, one of its own again
    sizes: Ints  # (steps, n): 0 where a node takes no such step


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """All nodes' batches in all rounds."""

    passes: Passes
    order: Ints  # as in `Population`
    starts: Ints
    batch_size: int
    epochs: bool

    @property
    def counts(self) -> Ints:
        """Samples of each node, (N,)."""
        return self.starts[1:] - self.starts[:-1]

    def of_round(self, nodes: Ints, done: Ints, todo: Ints) -> Plan:
        """Return the batches of steps ``done`` to ``done + todo`` - 1 of nodes, (n,) each."""
        counts = self.counts[nodes]
        steps = np.arange(max(1, int(todo.max(initial=0))))
        begins, sizes = self._places(counts, done + steps[:, None])
        sizes = np.where(steps[:, None] < todo, sizes, 0)  # (steps, n)
        first = begins[0] // counts
        passes = np.maximum(-(-(begins + sizes).max(axis=0, where=sizes > 0, initial=0) // counts) - first, 1)
        of = np.repeat(np.arange(len(nodes)), passes)  # (P,): each pass that is touched, whose it is
        numbers = np.arange(len(of)) - np.repeat(np.cumsum(passes) - passes, passes) + first[of]
        line = self.passes.shuffled(nodes[of], numbers, counts[of]) + np.repeat(self.starts[nodes[of]], counts[of])
        length = passes * counts
        begins = np.where(sizes > 0, begins + (np.cumsum(length) - length - first * counts), 0)
        columns = np.arange(max(1, int(sizes.max(initial=0))))
        within = np.minimum(columns, np.maximum(sizes - 1, 0)[..., None])
        return Plan(places=self.order[line[begins[..., None] + within]], sizes=sizes)

    def steps_of_epochs(self, epochs: int) -> Ints:
        """Return how many steps so many passes are, (N,)."""
        return epochs * -(-self.counts // self.batch_size)

    def _places(self, counts: Ints, steps: Ints) -> tuple[Ints, Ints]:
        """Return where in each node's line the batches of ``steps`` (k, n) begin, and their sizes."""
        if not self.epochs:
            sizes = np.minimum(self.batch_size, counts)
            return steps * sizes, np.broadcast_to(sizes, steps.shape)
        number, batch = np.divmod(steps, -(-counts // self.batch_size))
        return number * counts + batch * self.batch_size, np.minimum(self.batch_size, counts - batch * self.batch_size)


def _words(numbers: Ints) -> _Keys:
    return numbers.astype(np.uint64)


def _mixed(words: _Keys) -> _Keys:
    """Return SplitMix64's output for each state."""
    with np.errstate(over="ignore"):
        words = words + _GOLDEN
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=_KEPT)
def _drawn(seed: int, number: int, count: int) -> Ints:
    return np.random.default_rng([seed, number]).permutation(count)
