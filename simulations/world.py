"""Virtual time: a queue of things to happen, one seed for all chance, and the story of what happened.

Invariant: what happens is a function of the seed and of what was scheduled. No clock is read, no global generator is
drawn from, and things due at the same moment happen in the order in which they were scheduled.
"""

import hashlib
import heapq
import random
from collections.abc import Callable

import numpy as np

from ..mesh.identity import PeerId

Action = Callable[[], None]

# Things that may happen at one moment: a busy one of ten devices has some hundred.
_EVENTS_AT_ONCE_MAX = 100_000

# What virtual second 0 is called where a grant needs Unix seconds; any moment would do.
UNIX_EPOCH_S = 1_750_000_000


class Violation(Exception):
    """Something happened that the machines promise never happens."""


class World:
    """The clock, the dice and the transcript that all devices of one run share."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0  # virtual seconds
        self.events = 0  # how many things have happened
        self.transcript: list[str] = []
        self._names: dict[PeerId, str] = {}
        self._queue: list[tuple[float, int, Action]] = []
        self._scheduled = 0

    @property
    def unix_s(self) -> float:
        """The moment as a device's calendar has it: grants expire by it."""
        return UNIX_EPOCH_S + self.now

    def dice(self, purpose: str) -> random.Random:
        """Return a generator of its own for one purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{purpose}")  # a text is hashed with SHA-512, the same in every process

    def numbers(self, purpose: str) -> np.random.Generator:
        """Return a generator of arrays for one purpose."""
        return np.random.default_rng(int.from_bytes(self.secret(purpose)[:8], "big"))

    def secret(self, purpose: str) -> bytes:
        """Return 32 bytes for one purpose: the seed of an identity."""
        return hashlib.sha256(f"lepton-simulation/{self.seed}/{purpose}".encode()).digest()

    # -- time ---------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Action) -> None:
        """Let something happen ``delay_s`` from now."""
        self._scheduled += 1
        heapq.heappush(self._queue, (self.now + max(delay_s, 0.0), self._scheduled, action))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due by then. Raises Violation when a machine wants to be called for ever."""
        at_once = 0
        while self._queue and self._queue[0][0] <= until_s:
            due_s, _, action = heapq.heappop(self._queue)
            at_once = at_once + 1 if due_s == self.now else 0
            if at_once > _EVENTS_AT_ONCE_MAX:
                raise Violation("a machine has a deadline that has passed, and keeps it: time stands still")
            self.now = due_s
            self.events += 1
            action()
        self.now = until_s

    # -- the story ----------------------------------------------------------------------------------------------------

    def name(self, peer: PeerId, name: str) -> None:
        """Call a peer by a short name in the transcript."""
        self._names[peer] = name

    def called(self, peer: str) -> str:
        return self._names.get(PeerId(peer), peer[-8:])

    def in_words(self, text: str) -> str:
        """Replace the peer ids in a text, whole or short as errors have them, by names."""
        for peer, name in self._names.items():
            text = text.replace(peer, name).replace(peer[-8:], name)
        return text

    def tell(self, who: str, what: str) -> None:
        """Add a line to the transcript."""
        self.transcript.append(f"{self.now:10.3f}  {who:<10}  {what}")
