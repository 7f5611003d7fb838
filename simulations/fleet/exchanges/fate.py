"""What becomes of one private round when messages are lost: who is in the sum, and which parts of it reach whom."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....gossip.private.round import ATTEMPTS_MAX
from ....gossip.private.survivors import Receipt, survivors, survivors_min

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fate:
    """``survivors`` are numbers of members; ``reached[j, k]``: member k has the mean of the part that j owns."""

    survivors: tuple[int, ...]
    reached: Flags  # (m, m)

    @classmethod
    def drawn(cls, members: int, loss: float, dice: np.random.Generator) -> "Fate":
        """Draw it for a group in which each message is lost with probability ``loss``.

        A second attempt follows where too few could be in the sum; after signatures nothing is repeated.
        """
        nobody = cls((), np.zeros((members, members), dtype=np.bool_))
        for _ in range(ATTEMPTS_MAX):
            inside = _inside(members, loss, dice)
            if len(inside) >= survivors_min(members):
                break
        else:
            return nobody
        # In [i, j] a message of i came to j. Without the same receipts they sign different sums; without all signatures
        # nobody reveals anything.
        alike, signed, revealed, told = (_arrive(members, loss, dice) for _ in range(4))
        among = np.ix_(inside, inside)
        if not (alike[:, inside].all() and signed[among].all()):
            return nobody
        unmasked = revealed[among].all(0)
        reached = nobody.reached
        reached[among] = told[among] & unmasked[:, None]
        return cls(inside, reached)


def _inside(members: int, loss: float, dice: np.random.Generator) -> tuple[int, ...]:
    """Return who can be in the sum: whose keys and masked values came to all others who are."""
    keys = _arrive(members, loss, dice)
    masked: Flags = _arrive(members, loss, dice) & keys & keys.T  # one masks for whom one has heard, who has heard of one
    names = [f"{number:04}" for number in range(members)]
    named = {
        names[owner]: Receipt(
            frozenset(names[i] for i in np.flatnonzero(keys[:, owner])),
            frozenset(names[i] for i in np.flatnonzero(masked[:, owner])),
        )
        for owner in range(members)
    }
    return tuple(int(name) for name in survivors(named))


def _arrive(members: int, loss: float, dice: np.random.Generator) -> Flags:
    arrived: Flags = np.asarray(dice.random((members, members)) >= loss)
    np.fill_diagonal(arrived, val=True)
    return arrived
