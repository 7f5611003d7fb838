"""Which peers a session goes through: a pure choice out of who serves what now."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ...mesh.identity import PeerId

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


Choose = Callable[[Serving, Collection[PeerId], Collection[PeerId]], Route | None]  # whom to avoid, whom to keep


def choose(
    serving: Serving,
    layers: int,
    *,
    avoid: Collection[PeerId] = (),
    keep: Collection[PeerId] = (),
    load_s: Callable[[PeerId, Run], float | None] = lambda _peer, _run: None,
) -> Route | None:
    """Return the route of the least expected time for a token, None when none leads through all layers.

    ``load_s`` is what a step of a peer takes now, None when it never said. Who is in ``keep`` has the session's cache.
    """
    best: dict[int, tuple[float, Route]] = {0: (0.0, Route((), ()))}
    for run in sorted(serving):
        first, end = run
        if first not in best or end <= first:
            continue
        cost, route = best[first]
        found = _least(run, serving[run], {*avoid, *route.peers}, keep, load_s)
        if found is not None and cost + found[0] < best.get(end, (math.inf,))[0]:
            best[end] = (cost + found[0], Route((*route.peers, found[1]), (*route.runs, run)))
    return best[layers][1] if layers in best else None


def reached(serving: Serving, layers: int) -> int:
    """Return the first layer that nobody serves behind those before it."""
    end = 0
    for first, last in sorted(serving):
        if first <= end < last and serving[first, last]:
            end = last
    return min(end, layers)


def _least(
    run: Run,
    peers: Sequence[PeerId],
    avoid: Collection[PeerId],
    keep: Collection[PeerId],
    load_s: Callable[[PeerId, Run], float | None],
) -> tuple[float, PeerId] | None:
    best: tuple[float, PeerId] | None = None
    for peer in sorted(peers):
        if peer not in avoid:
            said = load_s(peer, run)
            cost = HOP_S + (LAYER_S * (run[1] - run[0]) if said is None else said)
            cost += _REBUILD_S * (peer not in keep)
            if best is None or cost < best[0]:
                best = (cost, peer)
    return best
