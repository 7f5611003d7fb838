"""One request on its way through the stages: a machine without I/O that finds a route, and another when one breaks.

Invariant: a session ends exactly once, with the result or with a reason; a result is taken whichever attempt brought
it (stages compute the same values), and no peer known to be gone is on a new route.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Run = tuple[int, int]  # layers [first, end)
Route = tuple[str, ...]  # one peer per stage, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How patient a session is."""

    # An attempt that brings nothing for this long is repeated elsewhere; a batch on a Pi takes tens of milliseconds.
    attempt_timeout_s: float = 2.0
    retry_pause_s: float = 0.2  # when there is no route: the time in which a dead peer is noticed or a stage loaded
    deadline_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Picture:
    """Who serves what now: for each run of layers, the peers that have it loaded."""

    serving: Mapping[Run, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Arrived:
    """The last stage sent the result."""


@dataclass(frozen=True, slots=True)
class Broke:
    """A peer of the route is gone, refused, or could not pass on the work of this attempt."""

    peer: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A peer has left the mesh."""

    peer: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send the input to the first peer of this route."""

    route: Route
    stages: tuple[Run, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Done:
    """The result is here."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no result; the reason is for people."""

    reason: str


Event = Picture | Arrived | Broke | Absent | Expired
Effect = Ask | Done | Failed


@dataclass(slots=True)
class Session:
    """One request. Start it with the first ``Picture``."""

    layers: int
    rng: random.Random
    started_at: float
    config: Config = field(default_factory=Config)
    attempt: int = 0
    over: bool = False
    deadline: float = 0.0
    _serving: Mapping[Run, Sequence[str]] = field(default_factory=dict)
    _route: Route = ()
    _avoid: set[str] = field(default_factory=set)
    _last_trouble: str = ""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; ``now`` in monotonic seconds. Sets ``deadline``, when ``Expired`` is due."""
        if self.over:
            return []
        match event:
            case Picture(serving):
                self._serving = serving
            case Arrived():
                self.over = True
                return [Done()]
            case Broke(peer, attempt, reason):
                if attempt != self.attempt or not self._route:
                    return []  # of an attempt that was given up already
                self._give_up(peer, reason)
            case Absent(peer):
                self._forget(peer)
            case Expired() if now < self.deadline:
                return []
            case Expired() if self._route:
                self._give_up(None, f"brought no answer within {self.config.attempt_timeout_s:g} s")
        return [] if self._route else self._try(now)

    def _forget(self, peer: str) -> None:
        """Take a peer that is gone out of the picture, which may be older than the news."""
        self._serving = {run: [p for p in peers if p != peer] for run, peers in self._serving.items()}
        if peer in self._route:
            self._give_up(peer, "left the mesh")

    def _give_up(self, peer: str | None, reason: str) -> None:
        """Leave this route. When nobody is to blame in particular, all of it is avoided while there is another."""
        self._avoid |= {peer} if peer is not None else set(self._route)
        self._last_trouble = f"{peer or 'the route ' + ' > '.join(self._route)} {reason}"
        self._route = ()

    def _try(self, now: float) -> list[Effect]:
        end = self.started_at + self.config.deadline_s
        if now >= end:
            self.over = True
            return [Failed(f"No answer within {self.config.deadline_s:g} s: {self._diagnosis()}.")]
        found = self._find(self._avoid)
        if found is None:
            self._avoid.clear()  # after a pause anyone may be asked again: a busy peer is not a dead one
            self.deadline = min(now + self.config.retry_pause_s, end)
            return []
        self.attempt += 1
        stages, self._route = found
        self.deadline = min(now + self.config.attempt_timeout_s, end)
        return [Ask(self._route, stages, self.attempt)]

    def _diagnosis(self) -> str:
        reached = max(self._reach(set()))
        if reached < self.layers:
            lacking = f"nobody who is here serves layer {reached} of {self.layers}"
            return f"{lacking}; {self._last_trouble}" if self._last_trouble else lacking
        return f"{self.attempt} attempts, the last failed: {self._last_trouble}"

    def _find(self, avoid: set[str]) -> tuple[tuple[Run, ...], Route] | None:
        """Find the fewest stages that follow one another from the first layer to the last, and a peer for each."""
        stages = self._reach(avoid).get(self.layers)
        if not stages:
            return None
        return stages, tuple(
            self.rng.choice([p for p in sorted(self._serving[stage]) if p not in avoid]) for stage in stages
        )

    def _reach(self, avoid: set[str]) -> dict[int, tuple[Run, ...]]:
        """How far one gets from the first layer without these peers, and by which stages."""
        paths: dict[int, tuple[Run, ...]] = {0: ()}
        for first, end in sorted(self._serving):
            usable = any(peer not in avoid for peer in self._serving[first, end])
            if usable and first in paths and (end not in paths or len(paths[end]) > len(paths[first]) + 1):
                paths[end] = (*paths[first], (first, end))
        return paths
