"""One node's private rounds of one task, one after another: groups, what comes early, how long to wait.

Invariants: at most one round runs; a round is begun once, and rounds only go up, so that no member signs twice for one
round. Over a restart the program has to hold that: it notes a round for good before it hands `Ready` in, and begins
anew after the last one that it noted (`first_round`).
"""

import math
from collections.abc import Callable
from typing import Any

from ..config import Config
from ..errors import BadSetup
from ..events import Absence, Behind, Expired, Finished, PeerDown, Ready, Received, Report, Send
from ..gate import check_vector
from ..groups import GROUP_SIZE, group_of
from ..patience import Patience
from ..terms import Terms
from .attempt import Verify
from .messages import Hello, Message
from .round import PrivateRound
from .survivors import survivors_min

GROUP_SIZES = (8, 16)  # the larger where more than two of eight may collude
MEMBERS_MIN = 3  # of two, each would learn the other's values
TOO_FEW = f"a private task needs {MEMBERS_MIN} members"

Event = Ready | Received | PeerDown | Expired
Effect = Send | Finished | Behind


class PrivateAverager:
    """One member's side of all its private rounds of one task."""

    def __init__(
        self,
        me: str,
        task: str,
        *,
        mesh: bytes,
        dimension: int,
        secret: Callable[[], bytes],
        sign: Callable[[bytes], bytes],
        verify: Verify,
        group_size: int = GROUP_SIZE,
        first_round: int = 0,
        config: Config | None = None,
    ) -> None:
        """Average vectors of float32 (dimension,) with equal weights.

        ``secret`` gives 32 fresh random bytes at every call, never the same after a restart.

        Raises:
            BadSetup: groups of another size than 8 or 16; a smaller one could split into groups that hide nobody.
        """
        if group_size not in GROUP_SIZES:
            raise BadSetup(f"private groups have 8 or 16 members, got {group_size}")
        self.round = first_round
        """The round that is running, or that comes next."""
        self._me, self._task, self._mesh, self._dimension = me, task, mesh, dimension
        self._secret, self._sign, self._verify = secret, sign, verify
        self._group_size = group_size
        self._config = config or Config.lan()
        self._patience = Patience(self._config)
        self._running: PrivateRound | None = None
        self._early: dict[tuple[int, str, int], Hello] = {}  # by round, peer and attempt, in the order of arrival
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
            BadContribution: Ready's own vector is one that cannot travel.
        """
        match event:
            case Ready():
                return self._begin(event, now)
            case Received(peer, message):
                return self._receive(peer, message, now)  # type: ignore[arg-type]
            case _ if self._running:
                return self._after(self._running.handle(event, now))
            case _:
                return []

    def skip_to(self, round_: int) -> None:
        """Give up the round that runs, if one does, for good, and go on with a later one."""
        if self._running:
            round_ = max(round_, self.round + 1)
        self._running = None
        self._enter(max(round_, self.round))

    # -- a round ------------------------------------------------------------------------------------------------------

    def _begin(self, ready: Ready, now: float) -> list[Effect]:
        if self._running or ready.round < self.round:
            state = "is running" if self._running else "comes next"
            raise BadSetup(f"round {ready.round} of task {self._task!r} cannot begin: round {self.round} {state}")
        group = group_of(self._mesh, self._task, ready.round, self._me, ready.members, self._group_size)
        if len(group) < survivors_min(len(group)):
            check_vector(self._me, ready.vector, self._dimension)
            self._enter(ready.round + 1)
            return [self._nothing(ready, group)]
        machine = self._new_round(ready, group)
        self._enter(ready.round)
        self._running = machine
        early = [(key, hello) for key, hello in self._early.items() if key[0] == ready.round]
        effects = self._after(machine.start(now))
        for key, hello in early:
            del self._early[key]
            effects += self._receive(key[1], hello, now)
        for peer in sorted({peer for _, peer, _ in self._early}):  # they are in later rounds
            effects += self._wait_no_more(peer, now)
        return effects

    def _new_round(self, ready: Ready, group: tuple[str, ...]) -> PrivateRound:
        terms = Terms(
            mesh=self._mesh,
            task=self._task,
            round=ready.round,
            members=group,
            dimension=self._dimension,
            codec="float32",  # words of 32 bits
        )
        return PrivateRound(
            self._me,
            terms,
            ready.vector,
            1.0,
            secret=self._secret,
            sign=self._sign,
            verify=self._verify,
            wait_s=self._patience.wait_s,
        )

    def _nothing(self, ready: Ready, group: tuple[str, ...]) -> Finished:
        """Keep one's own values: the sum of a group so small would show them."""
        why = f"{TOO_FEW}; this round has {len(group)}"
        report = Report(
            task=self._task, round=ready.round, members=group, agreed=False, reference=b"", base=b"", parts=(),
            missing=(Absence(self._me, "mean", why),), refused=(), ignored=0, bytes_sent=0, bytes_received=0,
            opening_s=0.0, exchange_s=0.0, agreement_s=0.0, complete=False,
        )  # fmt: skip
        return Finished(ready.round, ready.vector.copy(), report)

    def _after(self, effects: list[Any]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Finished):
                self._patience.record(effect.round, effect.report.exchange_s)
                self._running = None
                self._enter(effect.round + 1)
        return effects

    def _enter(self, round_: int) -> None:
        if round_ > self.round:
            self._told_behind.clear()
        self.round = round_
        self._early = {key: hello for key, hello in self._early.items() if key[0] >= round_}

    # -- messages -----------------------------------------------------------------------------------------------------

    def _receive(self, peer: str, message: Message, now: float) -> list[Effect]:
        ahead = message.round - self.round
        if message.task != self._task or ahead < 0:
            return []
        if ahead == 0 and self._running:
            return self._after(self._running.handle(Received(peer, message), now))  # type: ignore[arg-type]
        if ahead > self._config.rounds_ahead_max:
            return self._tell_behind(peer, ahead)
        if isinstance(message, Hello):  # nobody sends anything else before it has heard of this node
            self._early.setdefault((message.round, peer, message.attempt), message)
            while len(self._early) > self._config.buffered_count_max:
                del self._early[next(iter(self._early))]
        return self._wait_no_more(peer, now)

    def _wait_no_more(self, peer: str, now: float) -> list[Effect]:
        """Finish without a peer that is in a later round."""
        return self._after(self._running.wait_no_more(peer, now)) if self._running else []

    def _tell_behind(self, peer: str, by: int) -> list[Effect]:
        if peer in self._told_behind:
            return []
        self._told_behind.add(peer)
        return [Behind(by, peer)]
