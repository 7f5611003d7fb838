"""A world for machines: virtual time in an event queue, links with faults, crashes at any step. A seed is a history."""

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pytest
from lepton.gossip.events import Expired, PeerDown, Received, Send
from lepton.gossip.push_sum import ReceivedMass, SendMass


class Machine(Protocol):
    """Whatever has a deadline and handles events."""

    @property
    def deadline(self) -> float: ...

    def handle(self, event: Any, now: float) -> Iterable[Any]: ...


class World:
    """Runs machines until nothing is left to do. Every event and every send of a peer is one step of it."""

    def __init__(
        self,
        machines: Mapping[str, Machine],
        seed: int,
        *,
        loss: float = 0.0,
        duplication: float = 0.0,
        delay_s: tuple[float, float] = (0.001, 0.02),
        down_after_s: float | None = 0.03,
    ) -> None:
        """Links lose, double and delay messages; others hear of a crash `down_after_s` later, or never (None)."""
        self.machines = machines
        self.loss, self.duplication, self.delay_s, self.down_after_s = loss, duplication, delay_s, down_after_s
        self.now, self.history = 0.0, list[str]()
        self.outcomes: dict[str, list[Any]] = defaultdict(list)
        self.finished_s: dict[str, float] = {}
        self.steps: dict[str, int] = defaultdict(int)
        self.crash_at: dict[str, int] = {}
        self.freeze_at: dict[str, tuple[int, float]] = {}  # from which step on, and for how long
        self._frozen_until: dict[str, float] = {}
        self.crashed: set[str] = set()
        self.on_outcome: Callable[[str, Any], None] = lambda _name, _outcome: None
        self._rng = np.random.default_rng(seed)
        self._queue: list[tuple[float, int, str, Callable[[float], Iterable[Any]], str]] = []
        self._serial = 0
        self._woken: dict[str, float] = {}

    def at(self, time_s: float, name: str, action: Callable[[float], Iterable[Any]], words: str) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (time_s, self._serial, name, action, words))

    def event(self, time_s: float, name: str, event: Any) -> None:
        self.at(
            time_s, name, lambda now: self.machines[name].handle(event, now), re.sub(" at 0x[0-9a-f]+", "", repr(event))
        )

    def run(self, until_s: float = math.inf) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            self.now, _, name, action, words = heapq.heappop(self._queue)
            if self._is_frozen(name):
                self.at(self._frozen_until[name], name, action, words)
                continue
            if not self._step(name):
                continue
            self.history.append(f"{self.now:.9f} {name} {words}")
            for effect in action(self.now):
                self._apply(name, effect)
            self._wake(name)

    def _is_frozen(self, name: str) -> bool:
        step, for_s = self.freeze_at.get(name, (math.inf, 0.0))
        if name not in self._frozen_until and self.steps[name] >= step:
            self._frozen_until[name] = self.now + for_s
        return self.now < self._frozen_until.get(name, -math.inf)

    def _step(self, name: str) -> bool:
        """Count one step of a peer, and say whether it lives to do it."""
        if name not in self.crashed and self.steps[name] == self.crash_at.get(name):
            self.crashed.add(name)
            if self.down_after_s is not None:
                for other in self.machines:
                    self.event(self.now + self.down_after_s, other, PeerDown(name))
        self.steps[name] += 1
        return name not in self.crashed

    def _apply(self, name: str, effect: Any) -> None:
        if not self._step(name):
            return
        if isinstance(effect, Send):
            self._deliver(effect.peer, Received(name, effect.message))
        elif isinstance(effect, SendMass):
            self._deliver(effect.peer, ReceivedMass(name, effect.given))
        else:
            self.outcomes[name].append(effect)
            self.finished_s[name] = self.now
            self.on_outcome(name, effect)

    def _deliver(self, peer: str, event: Any) -> None:
        copies = int(self._rng.random() >= self.loss) + int(self._rng.random() < self.duplication)
        for _ in range(copies):
            self.event(self.now + self._rng.uniform(*self.delay_s), peer, event)

    def _wake(self, name: str) -> None:
        deadline = self.machines[name].deadline
        if math.isfinite(deadline) and self._woken.get(name) != deadline:
            self._woken[name] = deadline
            self.event(deadline, name, Expired())


@pytest.fixture(scope="session")
def world() -> type[World]:
    return World
