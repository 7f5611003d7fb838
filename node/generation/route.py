"""Which peers a session goes through: a pure choice out of who serves what now, by the smallest expected step.

Load rides on replies, so reports are some seconds old and many askers choose at once. While all reports on a run of
layers are fresh the best peer is taken; when one is old or there is none, the better of two drawn at random
(Mitzenmacher 2001), so that not everybody runs to the one that was idle some time ago.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ...mesh.identity import PeerId
from .apart import Pair

Run = tuple[int, int]  # layers [first, end)
Serving = Mapping[Run, Sequence[PeerId]]

HOP_S = 0.001  # what one more stage costs a token on a LAN (measured: 0.5 to 3 ms)
# A step whose time nobody has told yet, for each layer: a guess between a laptop and a Pi. Equal for all, it decides
# nothing but that of two routes the shorter is taken.
LAYER_S = 0.001
_REBUILD_S = 0.05  # a stage that has to rebuild its cache, spread over the tokens to come: those that have it stay


FRESH_S = 3.0  # older reports are hearsay (simulated: reports of one second cost nothing)


class Load(NamedTuple):
    """What a peer's step takes, as it said some time ago."""

    step_s: float
    age_s: float = 0.0


class Route(NamedTuple):
    """One peer for each run of layers, in order."""

    peers: tuple[PeerId, ...]
    runs: tuple[Run, ...]


LoadOf = Callable[[PeerId, Run], Load | None]  # None: it never said
# Whom to avoid, whom to keep, and who must not be beside each other.
Choose = Callable[[Serving, Collection[PeerId], Collection[PeerId], Collection[Pair]], Route | None]


def choose(
    serving: Serving,
    layers: int,
    *,
    rng: random.Random,
    avoid: Collection[PeerId] = (),
    keep: Collection[PeerId] = (),
    apart: Collection[Pair] = (),
    load: LoadOf = lambda _peer, _run: None,
) -> Route | None:
    """Return the route of the least expected time for a token, None when none leads through all layers.

    Who is in ``keep`` has the session's cache. Two that are ``apart`` are not put beside each other; the last
    stage is beside the first, which it sends what it draws.
    """
    everybody = {run: [peer for peer in sorted(peers) if peer not in avoid] for run, peers in sorted(serving.items())}
    drawn = {run: _drawn(run, peers, keep, load, rng) for run, peers in everybody.items()}
    # Two at random may be the wrong two for a way around those who are apart.
    return _best(drawn, layers, keep, apart, load) or _best(everybody, layers, keep, apart, load)


def _drawn(
    run: Run, peers: Sequence[PeerId], keep: Collection[PeerId], load: LoadOf, rng: random.Random
) -> Sequence[PeerId]:
    """Return who is asked for a run of layers, in any order: of equals the first is taken."""
    mixed = rng.sample(peers, len(peers))
    said = [load(peer, run) for peer in peers]
    if all(one is not None and one.age_s <= FRESH_S for one in said):
        return mixed
    return [*mixed[:2], *(peer for peer in mixed[2:] if peer in keep)]


def _best(
    serving: Serving, layers: int, keep: Collection[PeerId], apart: Collection[Pair], load: LoadOf
) -> Route | None:
    entangled = frozenset(peer for pair in apart for peer in pair)
    # The best up to a layer, for each first and last stage on which it depends how it may go on.
    best: dict[int, dict[tuple[PeerId, ...], tuple[float, Route]]] = {0: {(): (0.0, Route((), ()))}}
    for run in sorted(serving):
        first, end = run
        able = [(peer, _cost_s(peer, run, keep, load)) for peer in serving[run]]
        for before_s, route in list(best.get(first, {}).values()) if end > first else ():
            for peer, cost_s in able:
                if peer in route.peers or not _may_follow(peer, route, apart, closes=end == layers):
                    continue
                longer = Route((*route.peers, peer), (*route.runs, run))
                ends = tuple(one for one in (longer.peers[0], peer) if one in entangled)
                known = best.setdefault(end, {}).get(ends)
                if known is None or before_s + cost_s < known[0]:
                    best[end][ends] = (before_s + cost_s, longer)
    return min(best[layers].values())[1] if layers in best else None


def reached(serving: Serving, layers: int) -> int:
    """Return the first layer that nobody serves behind what is served before it; ``layers`` when none is lacking."""
    ends = {0}
    for first, end in sorted(run for run, peers in serving.items() if peers):
        if first in ends:
            ends.add(end)
    return max(end for end in ends if end <= layers)


def _may_follow(peer: PeerId, route: Route, apart: Collection[Pair], *, closes: bool) -> bool:
    beside = {route.peers[-1], route.peers[0]} if closes and route.peers else set(route.peers[-1:])
    return not any(frozenset((peer, other)) in apart for other in beside)


def _cost_s(peer: PeerId, run: Run, keep: Collection[PeerId], load: LoadOf) -> float:
    said = load(peer, run)
    return HOP_S + (LAYER_S * (run[1] - run[0]) if said is None else said.step_s) + _REBUILD_S * (peer not in keep)
