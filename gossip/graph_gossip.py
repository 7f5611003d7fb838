"""Gossip on a given graph: a member mixes what its neighbours of a round send in it (D-PSGD, Lian et al. 2017).

For comparisons and papers: under skewed data and loss groups do better at fewer bytes (`groups.py`). The weight of a
neighbour whose values do not come goes to oneself.

Invariants: with all messages the mean of all members is kept (to the codec's error), since the graph's weights are
doubly stochastic; a round ends at its deadline at the latest; what is kept for later rounds is bounded.
"""

import math

import msgspec
import numpy as np

from .codecs import BLOCK, Floats, codec
from .config import Config
from .errors import BadContribution, BadSetup
from .events import Absence, Expired, Finished, PeerDown, Ready, Received, Refusal, Report, Run, Send
from .gate import check_vector
from .graphs import Graph
from .messages import Name, RoundNumber
from .patience import Patience

ROUNDS_AHEAD_MAX = 2  # values of so many rounds ahead are kept until this member gets there

Event = Ready | Received | PeerDown | Expired
Effect = Send | Finished


class Values(msgspec.Struct, frozen=True, kw_only=True, tag="graph_values", forbid_unknown_fields=True):
    """The sender's values in one round."""

    task: Name
    round: RoundNumber
    payload: bytes = b""


class GraphGossip:
    """One member's side of one task."""

    def __init__(
        self,
        me: str,
        task: str,
        *,
        dimension: int,
        graph: Graph,
        codec_name: str = "int8",
        rng_seed: int = 0,
        first_round: int = 0,
        config: Config | None = None,
    ) -> None:
        """Mix vectors of float32 (dimension,). Raises UnknownCodec."""
        self.round = first_round
        self.deadline = math.inf
        self._me, self._task, self._dimension, self._graph = me, task, dimension, graph
        self._codec, self._rng_seed = codec(codec_name), rng_seed
        self._config = config or Config.lan()
        self._patience = Patience(self._config)
        self._ready: Ready | None = None
        self._weights: dict[str, float] = {}
        self._arrived: dict[str, Floats] = {}
        self._gone: set[str] = set()
        self._refused: list[Refusal] = []
        self._early: dict[tuple[int, str], Values] = {}
        self._started_s = self._last_s = 0.0
        self._ignored = self._bytes_sent = self._bytes_received = 0

    @property
    def running(self) -> bool:
        """Whether a round is on."""
        return self._ready is not None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event and return what to do about it.

        Raises:
            BadSetup: Ready came during a round, or for one that is over, or without this member among the members.
            BadContribution: Ready's own vector is one that nobody would accept.
        """
        match event:
            case Ready():
                return self._begin(event, now)
            case Received(peer, Values() as values):
                self._receive(peer, values, now)
            case PeerDown(peer):
                self._gone.add(peer)
            case _:
                pass
        return self._advance(now)

    def skip_to(self, round_: int) -> None:
        """Give up the round that runs, if one does, and go on with a later one, whose model was adopted."""
        self._ready, self.deadline = None, math.inf
        self.round = max(round_, self.round)

    # -- a round ------------------------------------------------------------------------------------------------------

    def _begin(self, ready: Ready, now: float) -> list[Effect]:
        if self._ready is not None or ready.round < self.round or self._me not in ready.members:
            raise BadSetup(f"round {ready.round} of task {self._task!r} cannot begin: round {self.round} is due")
        check_vector(self._me, ready.vector, self._dimension)
        self._ready, self.round = ready, ready.round
        self._weights = dict(self._graph.heard_by(self._me, ready.members, ready.round))
        self._arrived, self._gone, self._refused = {}, set(), []
        self._ignored = self._bytes_sent = self._bytes_received = 0
        self._started_s = self._last_s = now
        self.deadline = now + self._patience.wait_s
        sends = self._sends(ready)
        early, self._early = self._early, {}
        for (_, peer), values in early.items():
            self._receive(peer, values, now)
        return [*sends, *self._advance(now)]

    def _sends(self, ready: Ready) -> list[Effect]:
        rng = np.random.default_rng([self._rng_seed, ready.round])
        payload = bytes(self._codec.encode(ready.vector, rng))
        hearing = self._graph.hearing(self._me, ready.members, ready.round)
        self._bytes_sent = len(hearing) * len(payload)
        values = Values(task=self._task, round=ready.round, payload=payload)
        return [Send(peer, values) for peer in hearing]  # type: ignore[arg-type]

    def _receive(self, peer: str, values: Values, now: float) -> None:
        ahead = values.round - self.round
        if values.task != self._task or not 0 <= ahead <= ROUNDS_AHEAD_MAX:
            self._ignored += 1
        elif ahead or self._ready is None:
            self._keep(peer, values)
        elif peer not in self._weights or peer in self._arrived or self._is_refused(peer):
            self._ignored += 1
        else:
            self._take(peer, values, now)

    def _keep(self, peer: str, values: Values) -> None:
        """Keep what came early: one of a peer and round, of as many peers as a config keeps messages."""
        if len(self._early) < self._config.buffered_count_max:
            self._early.setdefault((values.round, peer), values)

    def _take(self, peer: str, values: Values, now: float) -> None:
        self._bytes_received += memoryview(values.payload).nbytes
        self._last_s = now
        try:
            vector = self._codec.decode(values.payload, self._dimension)
            check_vector(peer, vector, self._dimension)
        except BadContribution as error:
            self._refused.append(Refusal(peer, "values", str(error.of(peer))))
        else:
            self._arrived[peer] = vector

    def _is_refused(self, peer: str) -> bool:
        return any(refusal.peer == peer for refusal in self._refused)

    def _advance(self, now: float) -> list[Effect]:
        ready = self._ready
        if ready is None:
            return []
        waiting = {peer for peer in self._weights if peer not in self._arrived and not self._is_refused(peer)}
        if waiting - self._gone and now < self.deadline:
            return []
        self._patience.record(ready.round, (now if waiting - self._gone else self._last_s) - self._started_s)
        finished = Finished(ready.round, self._mixed(ready.vector), self._report(ready, now))
        self._ready, self._arrived, self.deadline = None, {}, math.inf
        self.round = ready.round + 1
        return [finished]

    def _mixed(self, own: Floats) -> Floats:
        peers = sorted(self._arrived)
        rest = 1.0 - sum(self._weights[peer] for peer in peers)
        mixed = np.empty_like(own)
        for start in range(0, own.size, BLOCK):
            block = slice(start, start + BLOCK)
            total = rest * own[block].astype(np.float64)
            for peer in peers:
                total += np.multiply(self._arrived[peer][block], self._weights[peer], dtype=np.float64)
            mixed[block] = total
        return mixed

    def _report(self, ready: Ready, now: float) -> Report:
        weights = {peer: self._weights[peer] for peer in self._arrived}
        contributors = tuple(sorted({self._me: 1.0 - sum(weights.values()), **weights}.items()))
        missing = sorted(set(self._weights) - set(self._arrived))
        return Report(
            task=self._task,
            round=ready.round,
            members=tuple(sorted({self._me, *self._weights})),
            agreed=False,
            reference=b"",
            base=b"",
            parts=((Run(0, ready.vector.size, contributors),),),
            missing=tuple(Absence(peer, "values", self._why(peer)) for peer in missing),
            refused=tuple(self._refused),
            ignored=self._ignored,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            opening_s=0.0,
            exchange_s=self._last_s - self._started_s,
            agreement_s=now - self._last_s,
            complete=not missing,
        )

    def _why(self, peer: str) -> str:
        if self._is_refused(peer):
            return "it was refused"
        return "the peer went down" if peer in self._gone else "it did not come by the deadline"
