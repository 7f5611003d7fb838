"""One node's rounds of one task, one after another: keeps what comes early, learns how long to wait, tells the late.

Invariant: at most one round runs, rounds only go up, and what is kept for later is bounded and small.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .codecs import Floats, codec
from .config import Config
from .errors import BadSetup
from .events import Behind, Expired, Finished, PeerDown, Ready, Received, Report, Send
from .forming import Formed
from .gate import Gate
from .groups import GROUP_SIZE
from .hashing import digest
from .meeting import Meeting
from .messages import Message, Status
from .part import Reference
from .patience import Patience
from .plan import CHUNK_BYTES
from .round import Round
from .terms import Terms

PAST_ROUNDS = 2  # finished rounds whose late messages still teach us to wait longer; the last one answers them too

Event = Ready | Received | PeerDown | Expired
Effect = Send | Finished | Behind


@dataclass(slots=True)
class Counts:
    """What was not averaged since this node began; none of it is an error of ours."""

    late: int = 0
    """Messages of rounds that were over."""

    dropped: int = 0
    """Early messages for which there was no room, that were never used, or that nobody sends so early."""

    duplicates: int = 0
    """Second early messages of one peer and round."""

    misdirected: int = 0
    """Messages of another task."""

    behind: int = 0
    """Messages of rounds too far ahead."""


class Averager:
    """Sequences the rounds of one task on one node."""

    def __init__(
        self,
        me: str,
        task: str,
        *,
        mesh: bytes,
        dimension: int,
        codec_name: str = "int8",
        group_size: int = GROUP_SIZE,
        rng_seed: int = 0,
        first_round: int = 0,
        instance: int = 1,
        chunk_bytes: int = CHUNK_BYTES,
        config: Config | None = None,
    ) -> None:
        """Average vectors of float32 (dimension,). `rng_seed`, not negative, decides all rounding at random.

        `instance`, positive, is another one for each life of this process; else one that dies and comes back within
        a round could give two means of one part. All members have the same `chunk_bytes`.

        Raises:
            UnknownCodec: there is no codec of this name.
        """
        self.round = first_round
        """The round that is running, or that comes next."""
        self.counts = Counts()
        self._me, self._task, self._mesh, self._dimension = me, task, mesh, dimension
        self._codec, self._group_size, self._rng_seed = codec(codec_name), group_size, rng_seed
        self._instance, self._chunk_bytes = instance, chunk_bytes
        self._config = config or Config.lan()
        self._gate = Gate(self._config)
        self._opening_patience, self._exchange_patience = Patience(self._config), Patience(self._config)
        self._reference: Reference | None = None
        self._running: Meeting | None = None
        self._past: dict[int, Meeting] = {}
        self._early: dict[tuple[int, str], Status] = {}  # by round and peer, in the order of arrival
        self._told_behind: set[str] = set()

    @property
    def deadline(self) -> float:
        """When `handle(Expired(), ...)` has to be called next; infinite between rounds."""
        return self._running.deadline if self._running else math.inf

    @property
    def running(self) -> bool:
        """Whether a round is on."""
        return self._running is not None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event and return what to do about it.

        Raises:
            BadSetup: Ready came during a round, or for one that is over, or without this node among the members.
            BadContribution: Ready's own vector or weight is one that nobody would accept.
        """
        match event:
            case Ready():
                return self._begin(event, now)
            case Received(peer, message):
                return self._receive(peer, message, now)
            case _:  # PeerDown or Expired
                return self._forward([event], now)

    @property
    def reference(self) -> Reference | None:
        """The last model that others have too: what rounds agreed on, or what was said by `refer_to`."""
        return self._reference

    def refer_to(self, reference: Reference | None) -> None:
        """From the next round on, take differences to this model, which others know by the same name: `name_of` of
        the model that all begin with, or of one that was adopted the name that its giver had for it.
        """
        self._reference = reference

    def skip_to(self, round_: int) -> None:
        """Give up the round that runs, if one does, and go on with a later one, whose model was adopted.

        What is known of the others stays: how long they take, and what they have sent for that round already. A
        machine made anew would wait for those messages as long as for a slow start, and be overtaken again.
        """
        self._running = None
        self._enter(max(round_, self.round))

    # A round

    def _begin(self, ready: Ready, now: float) -> list[Effect]:
        if self._running or ready.round < self.round:
            state = "is running" if self._running else "comes next"
            raise BadSetup(f"round {ready.round} of task {self._task!r} cannot begin: round {self.round} {state}")
        self._running = self._new_meeting(ready)
        self._enter(ready.round)
        early = self._early_events()
        effects = self._after(self._running.start(now)) + self._forward(early, now)
        for peer in sorted({peer for round_, peer in self._early if round_ > ready.round}):
            effects += self._wait_no_more(peer, now)
        return effects

    def _new_meeting(self, ready: Ready) -> Meeting:
        def terms(formed: Formed) -> Terms:
            return Terms(
                mesh=self._mesh,
                task=self._task,
                round=ready.round,
                members=formed.members,
                dimension=self._dimension,
                codec=self._codec.name,
                chunk_bytes=self._chunk_bytes,
                leader=formed.leader,
            )

        return Meeting(
            self._me,
            ready,
            size=self._group_size,
            terms=terms,
            new_round=lambda terms: self._new_round(ready, terms),
            wait_s=self._opening_patience.wait_s,
            nudge_s=self._config.nudge_s,
            instance=self._instance,
        )

    def _new_round(self, ready: Ready, terms: Terms) -> Round:
        return Round(
            self._me,
            terms,
            ready.vector,
            ready.weight,
            instance=self._instance,
            reference=self._reference,
            gate=self._gate,
            rng=np.random.default_rng([self._rng_seed, ready.round]),
            config=self._config,
            opening_wait_s=self._opening_patience.wait_s,
            stall_s=self._exchange_patience.wait_s,
            into=ready.into,
        )

    def _forward(self, events: Iterable[Received | PeerDown | Expired], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for event in events:
            if self._running:
                effects += self._after(self._running.handle(event, now))
        return effects

    def _after(self, effects: list[Send | Finished]) -> list[Effect]:
        """Note what the round wants done; if it has finished, learn from it and get ready for the next."""
        for effect in effects:
            if isinstance(effect, Finished) and self._running:
                self._learn(effect.report)
                if effect.report.agreed:
                    self._reference = Reference(effect.report.reference, effect.vector)
                for past in self._past.values():
                    past.release()
                self._past[effect.round] = self._running
                self._running = None
                self._enter(effect.round + 1)
        return list(effects)

    def _learn(self, report: Report) -> None:
        self._opening_patience.record(report.round, report.opening_s)
        self._exchange_patience.record(report.round, report.exchange_s)

    def _enter(self, round_: int) -> None:
        if round_ > self.round:
            self._told_behind.clear()
        self.round = round_
        for key in [key for key in self._early if key[0] < round_]:
            self._forget(key)
        self._past = {past: machine for past, machine in self._past.items() if past >= round_ - PAST_ROUNDS}

    # Messages

    def _receive(self, peer: str, message: Message, now: float) -> list[Effect]:
        ahead = message.round - self.round
        if message.task != self._task:
            self.counts.misdirected += 1
        elif ahead < 0:
            return self._answer_late(peer, message, now)
        elif ahead == 0 and self._running:
            if self._running.is_late(peer, message):
                self._opening_patience.record(message.round, now - self._running.started_s)
            return self._forward([Received(peer, message)], now)
        elif ahead <= self._config.rounds_ahead_max:
            self._keep(peer, message)
            return self._wait_no_more(peer, now)
        else:
            return self._tell_behind(peer, ahead)
        return []

    def _wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Finish without a peer that is in a later round; to wait for it only makes this node fall behind further."""
        return self._after(self._running.wait_no_more(peer, now)) if self._running else []

    def _tell_behind(self, peer: str, by: int) -> list[Effect]:
        self.counts.behind += 1
        if peer in self._told_behind:
            return []
        self._told_behind.add(peer)
        return [Behind(by, peer)]

    def _answer_late(self, peer: str, message: Message, now: float) -> list[Effect]:
        """Tell one that has not finished a round that is over here what came of it, and learn to wait a little."""
        self.counts.late += 1
        past = self._past.get(message.round)
        if past is None:
            return []
        if past.is_late(peer, message):
            self._opening_patience.record(message.round, now - past.started_s)
        return list(past.handle(Received(peer, message), now))

    # What came early

    def _early_events(self) -> list[Received]:
        keys = [key for key in self._early if key[0] == self.round]
        return [Received(key[1], self._forget(key, used=True)) for key in keys]

    def _keep(self, peer: str, message: Message) -> None:
        if not isinstance(message, Status):  # nobody sends anything else before it has heard of this node
            self.counts.dropped += 1
            return
        key = (message.round, peer)
        self.counts.duplicates += key in self._early
        self._early[key] = message
        while len(self._early) > self._config.buffered_count_max:
            self._forget(next(iter(self._early)))

    def _forget(self, key: tuple[int, str], *, used: bool = False) -> Status:
        self.counts.dropped += not used
        return self._early.pop(key)


def name_of(vector: Floats) -> bytes:
    """Name a model by its content, so that all who begin with the same one can take differences to it."""
    return digest("lepton-model", vector.astype("<f4", copy=False).tobytes())
