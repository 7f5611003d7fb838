"""One node's rounds of one task, one after another: keeps what comes early, learns how long to wait, tells the late.

Invariant: at most one round runs, rounds only go up, and what is kept for later is bounded in messages and in bytes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .codecs import codec
from .config import Config
from .errors import BadSetup
from .events import Behind, Expired, Finished, PeerDown, Ready, Received, Report, Send
from .gate import Gate
from .groups import GROUP_SIZE, group_of
from .messages import Contribution, Message, payload_size_bytes
from .patience import Patience
from .round import Phase, Round
from .terms import Terms

Event = Ready | Received | PeerDown | Expired
Effect = Send | Finished | Behind

BUFFERED_BYTES_MIN = 1 << 20  # for tiny models: their parts' sizes are rounded up, and a megabyte costs nothing
PAST_ROUNDS = 2  # finished rounds whose late messages still teach us to wait longer


@dataclass(slots=True)
class Counts:
    """What was not averaged since this node began; none of it is an error of ours."""

    late: int = 0
    """Messages of rounds that were over."""

    dropped: int = 0
    """Early messages for which there was no room, or that were never used."""

    duplicates: int = 0
    """Second early messages of one kind, peer and round."""

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
        config: Config | None = None,
    ) -> None:
        """Average vectors of float32 (dimension,). `rng_seed`, not negative, decides all rounding at random.

        Raises:
            UnknownCodec: there is no codec of this name.
        """
        self.round = first_round
        """The round that is running, or that comes next."""
        self.counts = Counts()
        self._me, self._task, self._mesh, self._dimension = me, task, mesh, dimension
        self._codec, self._group_size, self._rng_seed = codec(codec_name), group_size, rng_seed
        self._model_size_bytes = self._codec.size_bytes(dimension)
        self._config = config or Config.lan()
        self._gate = Gate(self._config)
        self._contribution_patience, self._mean_patience = Patience(self._config), Patience(self._config)
        self._running: Round | None = None
        self._past: dict[int, Round] = {}
        self._early: dict[tuple[int, str, str], Message] = {}  # by round, peer and kind, in the order of arrival
        self._early_bytes = 0
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
        self._running = self._new_round(ready)
        self._enter(ready.round)
        early = self._early_events()
        effects = self._after(self._running.start(now)) + self._forward(early, now)
        for peer in sorted({peer for round_, peer, _ in self._early if round_ > ready.round}):
            effects += self._wait_no_more(peer, now)
        return effects

    def _new_round(self, ready: Ready) -> Round:
        members = group_of(self._mesh, self._task, ready.round, self._me, ready.members, self._group_size)
        terms = Terms(
            mesh=self._mesh,
            task=self._task,
            round=ready.round,
            members=members,
            dimension=self._dimension,
            codec=self._codec.name,
        )
        return Round(
            self._me,
            terms,
            ready.vector,
            ready.weight,
            gate=self._gate,
            rng=np.random.default_rng([self._rng_seed, ready.round]),
            config=self._config,
            contribution_wait_s=self._contribution_patience.wait_s,
            mean_wait_s=self._mean_patience.wait_s,
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
                self._past[effect.round] = self._running
                self._running = None
                self._enter(effect.round + 1)
        return list(effects)

    def _learn(self, report: Report) -> None:
        self._contribution_patience.record(report.round, report.contributions_s)
        self._mean_patience.record(report.round, report.means_s)

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
            self._note_late(peer, message, now)
        elif ahead == 0 and self._running:
            self._note_late_contribution(peer, message, now)
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

    def _note_late(self, peer: str, message: Message, now: float) -> None:
        self.counts.late += 1
        past = self._past.get(message.round)
        if past and past.expects(peer, message):
            self._stretch(past, message, now)

    def _note_late_contribution(self, peer: str, message: Message, now: float) -> None:
        running = self._running
        late = running and running.phase is Phase.MEANS and isinstance(message, Contribution)
        if running and late and running.expects(peer, message):
            self._stretch(running, message, now)

    def _stretch(self, round_: Round, message: Message, now: float) -> None:
        """Learn that a little more patience would have got this message into the mean."""
        if isinstance(message, Contribution):
            self._contribution_patience.record(message.round, now - round_.started_s)
        else:
            self._mean_patience.record(message.round, now - round_.averaged_s)

    # What came early

    def _early_events(self) -> list[Received]:
        keys = [key for key in self._early if key[0] == self.round]
        return [Received(key[1], self._forget(key, used=True)) for key in keys]

    def _keep(self, peer: str, message: Message) -> None:
        key = (message.round, peer, type(message).__name__)
        if key in self._early:
            self.counts.duplicates += 1
            return
        if payload_size_bytes(message) > self._model_size_bytes:  # no part is as large: it would only push out others
            self.counts.dropped += 1
            return
        self._early[key] = message
        self._early_bytes += payload_size_bytes(message)
        while self._too_full():
            self._forget(next(iter(self._early)))

    def _too_full(self) -> bool:
        size_bytes_max = max(self._config.buffered_copies_max * self._model_size_bytes, BUFFERED_BYTES_MIN)
        return len(self._early) > self._config.buffered_count_max or self._early_bytes > size_bytes_max

    def _forget(self, key: tuple[int, str, str], *, used: bool = False) -> Message:
        message = self._early.pop(key)
        self._early_bytes -= payload_size_bytes(message)
        self.counts.dropped += not used
        return message
