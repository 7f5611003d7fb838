"""Whom a member is connected to: everybody in a small mesh, the next ones on a few rings in a large one.

Up to about fifty members each connects to all. Beyond that every member is placed on ``rings`` rings by a hash of its
id, and connects to the one before and the one after itself on each: a union of random cycles, which is one piece, has
at most two connections a ring, and is with high probability an expander (Law and Siu 2003, Friedman 2008). Rapid
watches its members over the same overlay (Suresh et al. 2018). Who crashes is left out of the rings, and the two beside
it become neighbours.

It departs from HyParView (Leitao, Pereira and Rodrigues 2007): there is no passive view, no shuffle and no walk of a
join, for they serve nodes that know few of the others. Here the picture tells everybody who the members are, so whom
to connect to follows from it, at both ends alike. Kept is that the active view is bounded and symmetric, and that who
gives a connection up says so. A member could choose its key to be placed beside another; it could as well talk to it.

While two pictures differ, one end may want what the other does not. So a connection that is not wanted is given up by
who dialled it, once it lies idle; who was dialled keeps it, up to ``degree_most`` connections.

Invariant: in a large mesh at most ``2 * rings`` are wanted, and where two see the same members, each wants the other
or neither does.
"""

import hashlib
import math
import random
from dataclasses import dataclass, field
from functools import lru_cache

from .identity import PeerId
from .pace import Config

_PLACE_BYTES = 8  # 2^64 places on a ring: two members never share one
_FULL_TURN = 1 << (8 * _PLACE_BYTES)


@lru_cache(maxsize=8192)
def places(peer: PeerId, rings: int) -> tuple[int, ...]:
    """Return where a member stands on each ring."""
    digest = hashlib.shake_128(b"lepton/ring\x00" + peer.encode()).digest(rings * _PLACE_BYTES)
    return tuple(
        int.from_bytes(digest[start : start + _PLACE_BYTES], "big") for start in range(0, len(digest), _PLACE_BYTES)
    )


@dataclass(slots=True)
class _Ring:
    """The nearest members both ways, with how far they are clockwise."""

    after: PeerId | None = None
    after_turn: int = _FULL_TURN
    before: PeerId | None = None
    before_turn: int = -1


@dataclass(slots=True)
class Rings:
    """All members that are here, and who of them is beside this one."""

    me: PeerId
    count: int
    members: set[PeerId] = field(default_factory=set)
    _rings: list[_Ring] = field(default_factory=list)
    _beside: frozenset[PeerId] | None = None  # None: to be worked out

    def add(self, peer: PeerId) -> None:
        self.members.add(peer)
        if self._rings and self._place(peer):
            self._beside = None

    def remove(self, peer: PeerId) -> None:
        if peer not in self.members:
            return
        self.members.remove(peer)
        if peer in self.beside():
            self._beside, self._rings = None, []  # only all of them tell who is the next one now

    def beside(self) -> frozenset[PeerId]:
        """Return the one before and the one after on every ring."""
        if not self._rings:
            self._rings = [_Ring() for _ in range(self.count)]
            for peer in self.members:
                self._place(peer)
        if self._beside is None:
            self._beside = frozenset(p for ring in self._rings for p in (ring.before, ring.after) if p is not None)
        return self._beside

    def _place(self, peer: PeerId) -> bool:
        """Put a member on every ring; whether it is now the nearest on one of them."""
        nearer = False
        for ring, mine, place in zip(self._rings, places(self.me, self.count), places(peer, self.count), strict=True):
            turn = (place - mine) % _FULL_TURN
            if turn < ring.after_turn:
                ring.after, ring.after_turn, nearer = peer, turn, True
            if turn > ring.before_turn:
                ring.before, ring.before_turn, nearer = peer, turn, True
        return nearer


@dataclass(slots=True)
class _Link:
    dialled: bool
    spare_at: float = math.inf  # when it may be given up, if nobody has come to want it


@dataclass(slots=True)
class Neighbours:
    """One member's choice of neighbours."""

    me: PeerId
    rng: random.Random
    config: Config = field(default_factory=Config)
    whole: bool = True  # everybody is a neighbour
    converged: bool = True  # when last asked, every connection was one that is wanted
    _rings: Rings = field(init=False)
    _links: dict[PeerId, _Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rings = Rings(self.me, self.config.rings)

    def came(self, peer: PeerId) -> None:
        """Take in that a member is here, connected or not."""
        self._rings.add(peer)
        self._choose_scale()

    def went(self, peer: PeerId) -> None:
        """Take in that a member is here no more."""
        self._rings.remove(peer)
        self._choose_scale()

    def _choose_scale(self) -> None:
        """Two scales, with a gap between them."""
        most = self.config.whole_most if self.whole else self.config.whole_again
        self.whole = len(self._rings.members) < most  # this one is a member too

    # -- whom to be connected to --------------------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[PeerId]:
        """Those beside this member on the rings; in a small mesh all others are wanted as well."""
        return self._rings.beside()

    def wants(self, peer: PeerId) -> bool:
        """Whether a connection to this member is worth having."""
        return self.whole or peer in self.wanted

    def connected(self, peer: PeerId, *, dialled: bool) -> None:
        """Take in a connection, and at which end of it this node is."""
        self._links[peer] = _Link(dialled)

    def disconnected(self, peer: PeerId) -> None:
        self._links.pop(peer, None)

    def release(self, now: float) -> list[tuple[PeerId, str]]:
        """Return which connections to give up now unless they are in use, and why. Ask about once a second."""
        spare, wanted = [], self._links.keys() if self.whole else self.wanted
        for peer, link in self._links.items():
            if peer in wanted:
                link.spare_at = math.inf
            elif link.spare_at == math.inf:
                # Not all at once: who is let go by many at a time might be let go by all.
                link.spare_at = now + self.config.linger_s * self.rng.uniform(1.0, 2.0)
            elif now >= link.spare_at:
                spare.append(peer)
        self.converged = wanted >= self._links.keys()
        released: list[tuple[PeerId, str]] = []
        for peer in sorted(spare, key=lambda peer: self._links[peer].spare_at):
            if (why := self._why_not_keep(peer, given_up=len(released))) is not None:
                released.append((peer, why))
                self._links[peer].spare_at = now + self.config.linger_s
        return released

    def _why_not_keep(self, peer: PeerId, *, given_up: int) -> str | None:
        if self._links[peer].dialled:
            return "it is not a neighbour on any ring of this large mesh, and nothing was called for a while"
        kept = len(self._links) - given_up
        if kept > self.config.degree_most:
            return f"{kept} nodes are connected here, and in a large mesh {self.config.degree_most} are kept"
        return None
