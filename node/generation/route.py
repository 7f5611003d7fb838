"""Which peers a session goes through: a pure choice out of who serves what now."""

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


class Route(NamedTuple):
    """One peer for each run of layers, in order."""

    peers: tuple[PeerId, ...]
    runs: tuple[Run, ...]


# Whom to avoid, whom to keep, and who must not be beside each other.
Choose = Callable[[Serving, Collection[PeerId], Collection[PeerId], Collection[Pair]], Route | None]


def choose(
    serving: Serving,
    layers: int,
    *,
    avoid: Collection[PeerId] = (),
    keep: Collection[PeerId] = (),
    apart: Collection[Pair] = (),
    load_s: Callable[[PeerId, Run], float | None] = lambda _peer, _run: None,
) -> Route | None:
    """Return the route of the least expected time for a token, None when none leads through all layers.

    ``load_s`` is what a step of a peer takes now, None when it never said. Who is in ``keep`` has the session's cache.
    Two that are ``apart`` are not put beside each other; the last stage is beside the first, which it sends what it
    draws.
    """
    entangled = frozenset(peer for pair in apart for peer in pair)
    # The best up to a layer, for each first and last stage on which it depends how it may go on.
    best: dict[int, dict[tuple[PeerId, ...], tuple[float, Route]]] = {0: {(): (0.0, Route((), ()))}}
    for run in sorted(serving):
        first, end = run
        able = [(peer, _cost_s(peer, run, keep, load_s)) for peer in sorted(serving[run]) if peer not in avoid]
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
    """Return the first layer that nobody serves behind those before it."""
    end = 0
    for first, last in sorted(serving):
        if first <= end < last and serving[first, last]:
            end = last
    return min(end, layers)


def _may_follow(peer: PeerId, route: Route, apart: Collection[Pair], *, closes: bool) -> bool:
    beside = {route.peers[-1], route.peers[0]} if closes and route.peers else set(route.peers[-1:])
    return not any(frozenset((peer, other)) in apart for other in beside)


def _cost_s(peer: PeerId, run: Run, keep: Collection[PeerId], load_s: Callable[[PeerId, Run], float | None]) -> float:
    said = load_s(peer, run)
    return HOP_S + (LAYER_S * (run[1] - run[0]) if said is None else said) + _REBUILD_S * (peer not in keep)
