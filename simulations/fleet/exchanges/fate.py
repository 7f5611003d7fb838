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

        A second attempt follows where too few heard of each other; after signatures nothing is repeated. All skip the
        round if masked values, receipts or signatures among them are lost. (Of masked values that is what machines do
        in most cases, not what they must: who lacks some goes on without their sender, but later than the others.)
        """
        nobody = cls((), np.zeros((members, members), dtype=np.bool_))
        for _ in range(ATTEMPTS_MAX):
            inside = _inside(_arrive(members, loss, dice))
            if len(inside) >= survivors_min(members):
                break
        else:
            return nobody
        among = np.ix_(inside, inside)
        masked, alike, signed, revealed, told = (_arrive(members, loss, dice)[among] for _ in range(5))
        if not (masked.all() and alike.all() and signed.all()):
            return nobody
        reached = nobody.reached
        reached[among] = told & np.asarray(revealed.all(0))[:, None]  # an owner needs everybody's reveal
        return cls(inside, reached)


def _inside(keys: Flags) -> tuple[int, ...]:
    """Return who can be in the sum, given whose keys came to whom, [from, to]: all of them heard all others."""
    both = keys & keys.T  # one masks for whom one has heard, who has heard of one
    names = [f"{number:04}" for number in range(len(keys))]

    def named(there: Flags) -> frozenset[str]:
        return frozenset(names[i] for i in np.flatnonzero(there))

    receipts = {name: Receipt(named(keys[:, i]), named(both[:, i])) for i, name in enumerate(names)}
    return tuple(int(name) for name in survivors(receipts))


def _arrive(members: int, loss: float, dice: np.random.Generator) -> Flags:
    arrived: Flags = np.asarray(dice.random((members, members)) >= loss)
    np.fill_diagonal(arrived, val=True)
    return arrived
