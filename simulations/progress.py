"""Whether sessions get on that could: who lives, serves and is heard by whom is looked up in the world itself.

Invariant: a session whose asker runs, and for which a whole route stands all the while, has its next token in time.
"""

import random
from collections.abc import Mapping
from itertools import combinations
from typing import Final

from ..mesh.identity import PeerId
from ..node.generation.route import Run, choose
from .answers import Answers
from .generating import Generating
from .network import Network
from .world import Violation, World

# Beyond what finding out takes that a device is dead, and a wait for memory, which is up to 30 s; less than the 60 s
# after which an asker gives up.
PATIENCE_S: Final = 45.0


class Progress:
    """How long each session of one run has been without a token for no reason."""

    def __init__(self, world: World, network: Network, answers: Answers) -> None:
        self._world, self._network, self._answers = world, network, answers
        self._since: dict[int, tuple[float, int]] = {}  # and how many tokens it had then

    def check(self, awake: Mapping[PeerId, Generating]) -> None:
        """Raises Violation when a session waits for too long. ``awake``: all members that run now."""
        found = dict[int, tuple[float, int]]()
        for asker, generating in awake.items():
            if generating.asking and self._has_route(asker, awake):
                for number in generating.numbers:
                    found[number] = self._waits(number)
        self._since = found

    def _waits(self, number: int) -> tuple[float, int]:
        now, tokens = self._world.now, self._answers.all[number].tokens
        since, before = self._since.get(number, (now, tokens))
        if tokens != before:
            return now, tokens
        if now - since >= PATIENCE_S:
            what = (
                f"session {number} has waited for token {tokens} since {since:.3f} s, and all along there was a route"
            )
            raise Violation(what)
        return since, before

    def _has_route(self, asker: PeerId, awake: Mapping[PeerId, Generating]) -> bool:
        serving = dict[Run, list[PeerId]]()
        layers = 0
        for peer, generating in awake.items():
            for loaded in generating.host.loaded:
                layers = loaded.engine.layers
                if not loaded.stage.draining and (peer == asker or self._network.reachable(asker, peer)):
                    serving.setdefault(loaded.run, []).append(peer)
        peers = {peer for some in serving.values() for peer in some}
        apart = [frozenset(pair) for pair in combinations(sorted(peers), 2) if not self._network.reachable(*pair)]
        return layers > 0 and choose(serving, layers, rng=random.Random(0), apart=apart) is not None
