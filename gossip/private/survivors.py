"""Who is in the sum of a private round: a pure function of what the members say they have heard and received.

Invariant: for every two members i, k of the result, k has heard i's key and received i's masked values, so the masks of
all pairs within the result cancel. Whoever has the same receipts computes the same result.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Receipt(NamedTuple):
    """What one member has: with whom it shares a seed, whose masked values of its part have come; with itself."""

    heard: frozenset[str]
    received: frozenset[str]


def colluders_max(members: int) -> int:
    """Return t, how many of a group's members may collude without learning more than a sum: floor((m - 1) / 3)."""
    return (members - 1) // 3


def survivors_min(members: int) -> int:
    """Return how many have to be in a sum: max(ceil(2m/3), t + 3).

    Two thirds, so that two sets of survivors share an honest member, which signs only one; t + 3, so that at least
    three honest members are in a sum: of two honest ones each would learn the other's values. Both are never more than
    m for groups of three and more; smaller groups cannot average in private at all.
    """
    return max(-(-2 * members // 3), colluders_max(members) + 3)


def survivors(receipts: Mapping[str, Receipt]) -> tuple[str, ...]:
    """Return the members whose values can be summed, sorted: drop whoever fits the fewest others, until all fit."""
    left = set(receipts)
    while left:
        misfits = {
            member: sum(not (_fits(receipts, member, other) and _fits(receipts, other, member)) for other in left)
            for member in left
        }
        worst = max(misfits, key=lambda member: (misfits[member], member))
        if not misfits[worst]:
            break
        left.remove(worst)
    return tuple(sorted(left))


def _fits(receipts: Mapping[str, Receipt], owner: str, other: str) -> bool:
    return owner == other or (other in receipts[owner].heard and other in receipts[owner].received)
