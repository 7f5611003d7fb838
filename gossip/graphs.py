"""Fixed graphs and the weights of gossip on them: for comparisons with papers, and where links are given.

A mixing matrix W gives each member's next values as a weighted mean of its in-neighbours' and its own. Invariant: every
W here is doubly stochastic (rows and columns sum to 1), so mixing keeps the mean of all members.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .errors import BadSetup

Weights = Mapping[str, float]
"""By in-neighbour, without oneself: what is missing to 1 is one's own weight."""


class Graph(Protocol):
    """Who hears whom in a round; the same function on all members."""

    def heard_by(self, me: str, members: Sequence[str], round_: int) -> Weights:
        """Return whose values ``me`` mixes in, and with what weight."""
        ...

    def hearing(self, me: str, members: Sequence[str], round_: int) -> tuple[str, ...]:
        """Return who mixes in the values of ``me``."""
        ...


class Circulant:
    """Every member is linked with those at some distances on a ring of all names; one distance of 1 is the ring itself.

    Weights are Metropolis' (Xiao, Boyd and Kim 2007): ``1 / (1 + max(degree_i, degree_j))``, here equal for all.
    """

    def __init__(self, distances: Sequence[int] = (1,)) -> None:
        """Raises BadSetup unless the distances are positive and differ."""
        if not distances or min(distances) < 1 or len(set(distances)) != len(distances):
            raise BadSetup(f"distances on a ring are positive and differ: got {list(distances)}")
        self._distances = tuple(distances)

    def heard_by(self, me: str, members: Sequence[str], round_: int) -> Weights:
        """Return the neighbours on both sides, each with Metropolis' weight; ``round_`` changes nothing."""
        del round_
        links = {name: self._links(name, members) for name in (me, *self._links(me, members))}
        return {peer: metropolis(len(links[me]), len(links[peer])) for peer in links[me]}

    def hearing(self, me: str, members: Sequence[str], round_: int) -> tuple[str, ...]:
        """Return the same neighbours: links go both ways."""
        return tuple(self.heard_by(me, members, round_))

    def _links(self, me: str, members: Sequence[str]) -> tuple[str, ...]:
        ring = sorted(members)
        here, n = ring.index(me), len(ring)
        found = {ring[(here + sign * distance) % n] for distance in self._distances for sign in (1, -1)}
        return tuple(sorted(found - {me}))


class OnePeerExponential:
    """In round r each member hears one other: who is 2^(r mod ceil(log2 n)) places before it (Ying et al. 2021).

    Both count half. Where n is a power of two, ceil(log2 n) rounds give the exact mean.
    """

    def heard_by(self, me: str, members: Sequence[str], round_: int) -> Weights:
        """Return the one member that is heard in this round, with a weight of a half."""
        return dict.fromkeys(self._at(me, members, round_, -1), 0.5)

    def hearing(self, me: str, members: Sequence[str], round_: int) -> tuple[str, ...]:
        """Return the one member that hears ``me`` in this round."""
        return self._at(me, members, round_, 1)

    def _at(self, me: str, members: Sequence[str], round_: int, sign: int) -> tuple[str, ...]:
        ring = sorted(members)
        if len(ring) == 1:
            return ()
        hops = (len(ring) - 1).bit_length()
        return (ring[(ring.index(me) + sign * 2 ** (round_ % hops)) % len(ring)],)


def metropolis(degree: int, other_degree: int) -> float:
    """Return the weight of a link between members of these degrees (Xiao, Boyd and Kim 2007, equation 11)."""
    return 1.0 / (1 + max(degree, other_degree))
