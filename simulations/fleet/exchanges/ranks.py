"""The groups of a round for thousands of nodes: those that `gossip/groups.py` gives, from digests made more cheaply.

A digest's beginning is the same for everybody, so it is worked out once a round and copied.
"""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from ....gossip.groups import GROUP_SIZE_MIN
from ....gossip.hashing import DIGEST_SIZE_BYTES

Rows = npt.NDArray[np.int64]


def names_of(nodes: int) -> tuple[str, ...]:
    """Name nodes by their numbers, so that names sort as numbers do: 00, 01, ..."""
    digits = max(2, len(str(nodes - 1)))
    return tuple(f"{number:0{digits}}" for number in range(nodes))


class Ranks:
    """Who is with whom: ``mesh`` and ``task`` as the machines know them."""

    def __init__(self, mesh: bytes, task: str, names: tuple[str, ...]) -> None:
        self._fields = [_field(name.encode()) for name in names]
        self._first = blake2b(digest_size=DIGEST_SIZE_BYTES, person=b"lepton-group")
        self._first.update(_field(mesh) + _field(task.encode()))

    def groups(self, round_: int, members: Rows, size: int) -> tuple[Rows, ...]:
        """Return the groups of a round, as arrays (groups, size) of rows in order; one for each size that there is.

        ``members`` are the rows that take part, in order.
        """
        first = self._first.copy()
        first.update(_field(round_.to_bytes(8, "big")))
        ranked = members[np.argsort(np.array([_rank(first, self._fields[row]) for row in members], dtype="S16"))]
        count = min(-(-len(ranked) // size), max(1, len(ranked) // GROUP_SIZE_MIN))
        return cut(ranked, count)


def cut(ranked: Rows, count: int) -> tuple[Rows, ...]:
    """Cut rows into ``count`` runs whose sizes differ by at most one, the larger ones first, each sorted."""
    share, rest = divmod(len(ranked), count)
    split = rest * (share + 1)
    cuts = (ranked[:split].reshape(rest, share + 1), ranked[split:].reshape(count - rest, share))
    return tuple(np.sort(groups, axis=1) for groups in cuts if groups.size)


def _rank(first: Any, field: bytes) -> bytes:  # noqa: ANN401 - hashlib's object has no public type
    state = first.copy()
    state.update(field)
    return bytes(state.digest())


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(8, "big") + value
