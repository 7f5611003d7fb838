"""Which copy of each stage a session goes to: those with the smallest expected step, by what they last said.

Load rides on replies, so reports are some seconds old and many askers choose at once. While all reports on a stage are
fresh the best is taken; when one is old, the better of two drawn at random (Mitzenmacher 2001), so that not everybody
runs to the copy that was idle some time ago.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .placement import Run

FRESH_S: Final = 3.0  # older reports are hearsay (simulated: reports of one second cost nothing)
HOP_S: Final = 0.0012  # of a stage more: two processes' software and a switch
UNMEASURED_S: Final = 0.01  # of a stage that has not said what a step takes: a slow device's

Route = tuple[tuple[str, Run], ...]  # peer and layers, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One peer that serves a stage, and what it said of its load."""

    peer: str
    step_s: float = 0.0  # what a step takes with one session in it; 0: it has not said
    more_s: float | None = None  # what each further session adds; None: as much again
    sessions: int = 0  # in its steps
    heard_at: float = float("-inf")  # when it said so, on the clock of ``now``

    @property
    def expected_s(self) -> float:
        """What a step would take with one session more."""
        step_s = self.step_s or UNMEASURED_S
        return step_s + self.sessions * (step_s if self.more_s is None else self.more_s)


def choose_route(
    stages: Mapping[Run, Sequence[Replica]], layers: int, now: float, rng: random.Random, *, keep: Route = ()
) -> Route:
    """Return the route with the smallest expected step in all, or () when the stages do not cover all layers.

    A route that is mended ``keep``s what it can of the old one: a session's caches are there, and to replay it
    elsewhere costs more than a slow stage. Of such routes the one that keeps most layers is taken.
    """
    kept = {run: peer for peer, run in keep}
    best: dict[int, tuple[int, float, Route]] = {0: (0, 0.0, ())}
    for run in sorted(run for run, replicas in stages.items() if replicas):  # all ways to a first layer are known then
        first, end = run
        if first not in best or not first < end <= layers:
            continue
        peers = {replica.peer: replica for replica in stages[run]}
        held = kept.get(run) in peers
        chosen = peers[kept[run]] if held else _choose(stages[run], now, rng)
        lost, took_s, way = best[first]
        reached = (lost - (end - first) * held, took_s + chosen.expected_s + HOP_S, (*way, (chosen.peer, run)))
        if end not in best or reached[:2] < best[end][:2]:
            best[end] = reached
    return best[layers][2] if layers in best else ()


def _choose(replicas: Sequence[Replica], now: float, rng: random.Random) -> Replica:
    known = sorted(replicas, key=lambda replica: replica.peer)
    if any(now - replica.heard_at > FRESH_S for replica in known):
        known = rng.sample(known, min(2, len(known)))
    least = min(replica.expected_s for replica in known)
    return rng.choice([replica for replica in known if replica.expected_s == least])


def lacking(stages: Mapping[Run, Sequence[Replica]], layers: int) -> int | None:
    """Return the first layer that nobody serves behind what is served before it; None when nothing is lacking."""
    reached = {0}
    for first, end in sorted(run for run, replicas in stages.items() if replicas):
        if first in reached:
            reached.add(end)
    return None if layers in reached else max(layer for layer in reached if layer < layers)
