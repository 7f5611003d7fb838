"""Prompts that begin alike: which caches of whole blocks are kept, found by a hash of the tokens. Pure.

A hash stands for all tokens up to the end of its block. Each stage computes it from the tokens that it was given
itself, and behind the first one names by it also who is before it on the route (`stage.py`): what it computes on came
from them. So nobody can have wrong pages found under a right hash by others; an asker's hashes only look something up.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .messages import BLOCK, BLOCK_HASH_BYTES, BLOCKS_MAX


def block_hashes(ids: Sequence[int]) -> tuple[bytes, ...]:
    """Return a hash for each whole block of these tokens, of all that came up to its end."""
    hashes, last = list[bytes](), b""
    for start in range(0, min(len(ids) - BLOCK + 1, BLOCK * BLOCKS_MAX), BLOCK):
        block = struct.pack(f"<{BLOCK}i", *ids[start : start + BLOCK])
        last = hashlib.blake2b(last + block, digest_size=BLOCK_HASH_BYTES).digest()
        hashes.append(last)
    return tuple(hashes)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The tokens of whole blocks, and the cache that holds them."""

    key: int
    ids: tuple[int, ...]
    hashes: tuple[bytes, ...]


class Prefixes:
    """Kept prefixes, at most so many; who was not wanted for longest goes first."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._kept: dict[Prefix, None] = {}  # the least lately used first
        self._by_hash: dict[bytes, tuple[Prefix, int]] = {}  # and how many positions the hash stands for

    @property
    def positions(self) -> int:
        """Of all that are kept."""
        return sum(len(prefix.ids) for prefix in self._kept)

    def find(self, hashes: Sequence[bytes], at_most: int) -> tuple[Prefix, int] | None:
        """Return what holds the most of these blocks within so many positions, and how many that are."""
        for hash_ in reversed(hashes[: at_most // BLOCK]):
            if (found := self._by_hash.get(hash_)) is not None:
                self._kept[found[0]] = self._kept.pop(found[0])
                return found
        return None

    def keep(self, prefix: Prefix) -> list[Prefix]:
        """Keep one; returns those that it makes superfluous or pushes out."""
        gone = [old for old in self._kept if old.hashes == prefix.hashes[: len(old.hashes)]]
        for old in gone:
            self.drop(old)
        while len(self._kept) >= self._count_max and (oldest := self.oldest()) is not None:
            self.drop(oldest)
            gone.append(oldest)
        self._kept[prefix] = None
        for number, hash_ in enumerate(prefix.hashes, 1):
            self._by_hash.setdefault(hash_, (prefix, number * BLOCK))
        return gone

    def oldest(self) -> Prefix | None:
        """Return who was not wanted for longest."""
        return next(iter(self._kept), None)

    def drop(self, prefix: Prefix) -> None:
        """Forget one; blocks of it that others hold are found there from now on."""
        del self._kept[prefix]
        for number, hash_ in enumerate(prefix.hashes, 1):
            if self._by_hash[hash_][0] is prefix:
                del self._by_hash[hash_]
                other = next((o for o in self._kept if o.hashes[:number] == prefix.hashes[:number]), None)
                if other is not None:
                    self._by_hash[hash_] = (other, number * BLOCK)
