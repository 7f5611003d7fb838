"""Pulling: in each round a member asks a few peers of its own choice for their models and mixes what comes.

Whoever is asked answers with the model that it has at the moment, so nobody waits for anybody's view of the round.
Pull and not push, because what counts is chosen by who receives: an attacker that sends more is not heard more. (Random
peers anew in every round: epidemic learning, de Vos et al. 2023.)

Invariants: a member mixes at most one model a round of each peer that it asked; the vector handed in is never written
to; a round ends at its deadline at the latest; a peer is answered at most once in each of one's own rounds.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
import numpy as np

from .codecs import Floats, codec
from .config import Config
from .errors import BadContribution, BadSetup
from .events import Absence, Expired, Finished, PeerDown, Ready, Received, Refusal, Report, Run, Send
from .gate import check_vector
from .messages import Name, RoundNumber
from .patience import Patience
from .robust import PEERS, Mixed
from .wire import Wire

ROUNDS_APART_MAX = 2  # a model of more rounds ago, or ahead, is of another stage of training
TASK_ROUND_ANSWERS_MAX = 256  # peers that are answered in one round: the members of a mesh

Event = Ready | Received | PeerDown | Expired
Effect = Send | Finished
Mix = Callable[[Floats, Mapping[str, Floats]], Mixed]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, tag="pull_wanted", forbid_unknown_fields=True):
    """The sender asks for the receiver's model, for a round of its own."""

    task: Name
    round: RoundNumber
    payload: bytes = b""


class Offered(msgspec.Struct, frozen=True, kw_only=True, tag="pull_offered", forbid_unknown_fields=True):
    """The answer to `Wanted`: the sender's model, as of its own round."""

    task: Name
    round: RoundNumber
    wanted: Annotated[int, msgspec.Meta(ge=0)]  # the asker's round
    payload: bytes = b""


Message = Wanted | Offered

_wire: Wire[Message] = Wire(Message, "a pull")
pack, unpack = _wire.pack, _wire.unpack


class Puller:
    """One node's side of one task: mixes its own rounds, and answers others'."""

    def __init__(
        self,
        me: str,
        task: str,
        *,
        dimension: int,
        mix: Mix,
        codec_name: str = "int8",
        peers: int = PEERS,
        rng_seed: int = 0,
        first_round: int = 0,
        config: Config | None = None,
    ) -> None:
        """Mix vectors of float32 (dimension,). `rng_seed` decides whom to ask, so others should not know it.

        Raises:
            UnknownCodec: there is no codec of this name.
            BadSetup: it would ask nobody.
        """
        if peers < 1:
            raise BadSetup(f"a pull asks at least one peer; got {peers}")
        self.round = first_round
        self.deadline = math.inf
        self._me, self._task, self._dimension, self._mix = me, task, dimension, mix
        self._codec, self._peers, self._rng_seed = codec(codec_name), peers, rng_seed
        self._config = config or Config.lan()
        self._patience = Patience(self._config)
        self._running: _Asking | None = None
        self._offer: tuple[int, bytes] | None = None  # of which round, and the encoded model
        self._served: set[str] = set()
        self._waiting: dict[str, Wanted] = {}  # who asked before there was anything new to offer

    @property
    def running(self) -> bool:
        """Whether a round is on."""
        return self._running is not None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event and return what to do about it.

        Raises:
            BadSetup: Ready came during a round, or for one that is over.
            BadContribution: Ready's own vector is one that nobody would accept.
        """
        match event:
            case Ready():
                return self._begin(event, now)
            case Received(peer, Wanted() as wanted):
                return self._answer(peer, wanted)
            case Received(peer, Offered() as offered) if self._running:
                self._running.take(peer, offered, now)
            case PeerDown(peer) if self._running:
                self._running.gone.add(peer)
            case _:
                pass
        return self._advance(now)

    def skip_to(self, round_: int) -> None:
        """Give up the round that runs, if one does, and go on with a later one, whose model was adopted."""
        self._running, self.deadline = None, math.inf
        self.round = max(round_, self.round)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _begin(self, ready: Ready, now: float) -> list[Effect]:
        if self._running or ready.round < self.round:
            state = "is running" if self._running else "comes next"
            raise BadSetup(f"round {ready.round} of task {self._task!r} cannot begin: round {self.round} {state}")
        check_vector(self._me, ready.vector, self._dimension)
        rng = np.random.default_rng([self._rng_seed, ready.round])
        asked = choose(self._me, ready.members, self._peers, rng)
        self.round, self._served = ready.round, set()
        self._offer = ready.round, bytes(self._codec.encode(ready.vector, rng))
        self._running = _Asking(self, ready, asked, now)
        self.deadline = now + self._patience.wait_s
        waiting, self._waiting = self._waiting, {}
        effects: list[Effect] = [Send(peer, Wanted(task=self._task, round=ready.round)) for peer in asked]  # type: ignore[arg-type]
        for peer, wanted in waiting.items():
            effects += self._answer(peer, wanted)
        return effects + self._advance(now)

    def _advance(self, now: float) -> list[Effect]:
        asking = self._running
        if asking is None or not (asking.settled or now >= self.deadline):
            return []
        self._patience.record(asking.ready.round, max(asking.last_s, asking.started_s) - asking.started_s)
        if not asking.settled:  # it counts with all of its wait, so that a deadline once too short does not stay so
            self._patience.record(asking.ready.round, now - asking.started_s)
        self._running, self.deadline, self.round = None, math.inf, asking.ready.round + 1
        mixed = self._mix(asking.ready.vector, asking.models)
        return [Finished(asking.ready.round, mixed.vector, asking.report(mixed, now))]

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, peer: str, wanted: Wanted) -> list[Effect]:
        if wanted.task != self._task or peer == self._me:
            return []
        if self._offer is None or peer in self._served:  # it is told in the next round: so nobody runs far ahead
            if len(self._waiting) < TASK_ROUND_ANSWERS_MAX:
                self._waiting[peer] = wanted
            return []
        self._served.add(peer)
        round_, payload = self._offer
        offered = Offered(task=self._task, round=round_, wanted=wanted.round, payload=payload)
        return [Send(peer, offered)]  # type: ignore[arg-type]

    def decode(self, peer: str, payload: bytes) -> Floats:
        """Decode and check a model. Raises BadContribution that names the peer."""
        try:
            vector = self._codec.decode(payload, self._dimension)
        except BadContribution as error:
            raise error.of(peer) from None
        check_vector(peer, vector, self._dimension)
        return vector


class _Asking:
    """One round: who was asked, and what came."""

    def __init__(self, puller: Puller, ready: Ready, asked: tuple[str, ...], now: float) -> None:
        self.ready, self.asked = ready, asked
        self.models: dict[str, Floats] = {}
        self.gone: set[str] = set()
        self.refused: list[Refusal] = []
        self.started_s, self.last_s = now, now
        self._puller = puller
        self._ignored = self._bytes = 0

    @property
    def settled(self) -> bool:
        """Whether there is nobody left to wait for."""
        return set(self.asked) <= set(self.models) | self.gone | {refusal.peer for refusal in self.refused}

    def take(self, peer: str, offered: Offered, now: float) -> None:
        """Take in a model that was asked for in this round, once."""
        self._bytes += memoryview(offered.payload).nbytes
        answered = peer in self.models or any(refusal.peer == peer for refusal in self.refused)
        if peer not in self.asked or offered.wanted != self.ready.round or answered:
            self._ignored += 1
            return
        self.last_s = now
        try:
            apart = offered.round - self.ready.round
            if abs(apart) > ROUNDS_APART_MAX:
                raise BadContribution(
                    f"its model is {apart:+d} rounds away; at most {ROUNDS_APART_MAX} are mixed", peer
                )
            self.models[peer] = self._puller.decode(peer, offered.payload)
        except BadContribution as error:
            self.refused.append(Refusal(peer, "model", str(error)))

    def report(self, mixed: Mixed, now: float) -> Report:
        """Say who counted with what: a model that was dropped for its distance counts 0."""
        contributors = tuple(sorted({self._puller._me: 1.0, **mixed.counted}.items()))  # noqa: SLF001 - its own part
        missing = [peer for peer in self.asked if peer not in self.models]
        return Report(
            task=self._puller._task,  # noqa: SLF001
            round=self.ready.round,
            members=tuple(sorted({self._puller._me, *self.asked})),  # noqa: SLF001
            agreed=False,
            reference=b"",
            base=b"",
            parts=((Run(0, self.ready.vector.size, contributors),),),
            missing=tuple(Absence(peer, "model", self._why(peer)) for peer in missing),
            refused=tuple(self.refused),
            ignored=self._ignored,
            bytes_sent=0,  # what others fetched is counted by the shell that sent it
            bytes_received=self._bytes,
            opening_s=0.0,
            exchange_s=self.last_s - self.started_s,
            agreement_s=now - self.last_s,
            complete=not missing,
        )

    def _why(self, peer: str) -> str:
        if any(refusal.peer == peer for refusal in self.refused):
            return "it was refused"
        return "the peer went down" if peer in self.gone else "it did not come by the deadline"


def choose(me: str, members: tuple[str, ...], k: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Return k of the other members at random, or all if there are fewer."""
    others = sorted(set(members) - {me})
    picked = rng.permutation(len(others))[:k]
    return tuple(others[index] for index in sorted(picked))
