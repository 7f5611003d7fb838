"""Pairs of stages of which one does not get what the other says, though both answer their asker. Pure.

Such a pair is blamed, and not a peer: either may do well beside another. Asked are the stages themselves: how far each
is shows where a session got stuck.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from ...mesh.identity import PeerId, short
from .messages import Alive

Pair = frozenset[PeerId]

# A pair that was found out is passed over for so long, where there is another route: a link that is mended lies idle
# until then, and one that is not costs a pause each time that it is tried.
LASTS_S: Final = 30.0
PAIRS_MAX: Final = 1024  # of 32 devices any two


class Gap(NamedTuple):
    """Who said something, and who did not get it."""

    said: PeerId
    missed: PeerId

    def __str__(self) -> str:
        return f"{short(self.missed)} does not get what {short(self.said)} says"


class Apart:
    """The pairs that were found out of late, by all sessions of one node."""

    def __init__(self) -> None:
        self._until: dict[Pair, float] = {}  # the latest found last

    def note(self, one: PeerId, other: PeerId, now: float) -> None:
        """Pass this pair over for a while."""
        pair = frozenset((one, other))
        self._until.pop(pair, None)
        self._until[pair] = now + LASTS_S
        while len(self._until) > PAIRS_MAX:
            del self._until[next(iter(self._until))]

    def pairs(self, now: float) -> Collection[Pair]:
        """Return those that are passed over now."""
        self._until = {pair: until for pair, until in self._until.items() if until > now}
        return self._until.keys()

    def forget_one(self, among: Collection[PeerId]) -> bool:
        """Let the pair of these be tried again that was found out longest ago; false when there is none."""
        oldest = next((pair for pair in self._until if pair <= set(among)), None)
        if oldest is None:
            return False
        del self._until[oldest]
        return True


def find_gap(
    route: Sequence[PeerId], answers: Mapping[PeerId, Alive], *, epoch: int, given: int | None, tokens: int
) -> Gap | None:
    """Return between which stages something of this epoch got lost; None when it was between a stage and the asker.

    ``given`` is up to which position the asker itself sent tokens to the first stage, None when it was not asked for
    them; ``tokens`` is how many it has now. All stages have answered, and none has anything to do.
    """
    said = [answers[peer] for peer in route]
    hops = list(zip(route, route[1:], said, said[1:], strict=False))
    for before, behind, _, alive in hops:
        if alive.epoch < epoch or alive.state == "unknown":
            return Gap(before, behind)  # the opening
    for before, behind, alive, _ in reversed(hops):
        if not alive.asked:
            return Gap(behind, before)  # that input is needed
    if given is None:
        return None
    for before, behind, alive, next_ in hops:
        if next_.length < alive.length:
            return Gap(before, behind)  # a step
    if hops and given <= said[0].length < tokens:
        return Gap(route[-1], route[0])  # the token that was drawn
    return None
