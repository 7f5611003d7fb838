"""One node's part in a circle: those who average one vector under a task's name, each with a training loop of its own.

Nobody states the task. Who is in it follows from the records: name, model (a hash), round. Loops run at their own
speeds, so rounds follow the many: a node that more than half of the others have passed goes on in their round with what
it has, or takes a model first if they are too far ahead. Rounds themselves are the averaging machine's.
"""

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import trio

from ...gossip.averager import Averager, name_of
from ...gossip.events import Finished, Ready, Report
from ...gossip.messages import INSTANCE_MAX
from ...gossip.part import Reference
from ...mesh.calls import Answer, Empty, Incoming
from ...mesh.errors import LeptonError, UsageError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..picture import CIRCLE, CircleRecord
from ..shapes import Vector
from .donors import Donation, ask
from .exchange import Exchange
from .messages import State, StateWanted

_ROUNDS_AHEAD_MAX: Final = 2  # as the averaging machine has it: who is further ahead is not averaged with
_TOLD_INTERVAL_S: Final = 0.5  # records travel to everyone
_DONORS: Final = 2
_MISSES_MAX: Final = 2  # who missed so many rounds in a row is not waited for until its record moves on
_LEAVE_S: Final = 1.0  # the last round's messages get this long to arrive
_ROUNDS_MAX: Final = 2**40  # nobody gets there; the wire allows no more than it can write

log = logging.getLogger(__name__)


class Circle:
    """One node's part in a circle. Everything here happens in the node's own thread."""

    def __init__(self, mesh: Mesh, name: str, *, model: str, start: Vector, codec_name: str, group_size: int) -> None:
        """``model`` is a hash of what the vector means; ``start`` the values that this node begins with.

        Raises UnknownCodec.
        """
        self.name = name
        self.failing: dict[PeerId, str] = {}  # whose model was refused or not to be had, and why
        self._mesh, self._model = mesh, model
        self._shared, self._reference = start, name_of(start)
        self._averager = Averager(
            mesh.me,
            f"{name}/own-{model[:16]}",
            mesh=mesh.root.encode(),
            dimension=len(start),
            codec_name=codec_name,
            group_size=group_size,
            rng_seed=secrets.randbits(32),
            instance=1 + secrets.randbelow(INSTANCE_MAX),
        )
        self._averager.refer_to(Reference(self._reference, start))
        self._exchange: Exchange | None = None
        self._first_round = 0
        self._entered = False
        self._told_s, self._told_round = -np.inf, 0
        self._missed: dict[PeerId, tuple[int, int]] = {}  # how often in a row, with a record of which round
        self._lock = trio.Lock()  # a loop that was interrupted may have left a round behind that runs to its end
        self._closing = trio.Event()
        self._waiting: set[trio.CancelScope] = set()

    @property
    def round(self) -> int:
        """The round that runs or comes next."""
        return self._averager.round

    @property
    def is_over(self) -> bool:
        """Whether it was left, or the node is closed."""
        return self._closing.is_set()

    # -- what peers ask -----------------------------------------------------------------------------------------------

    async def take_messages(self, call: Incoming[Empty]) -> None:
        """Hand a peer's messages of rounds to the machine. Raises PeerError when one is malformed."""
        async for item in call.items:
            if self._exchange is not None:
                self._exchange.take(call.caller, item)

    def give_state(self, _: Incoming[StateWanted]) -> Answer[State]:
        """Give a newcomer the model to begin with."""
        next_round = self.round + self._averager.running
        return Answer(State(round=next_round, reference=self._reference), bulk=self._shared)

    def peer_left(self, peer: PeerId) -> None:
        if self._exchange is not None:
            self._exchange.peer_left(peer)

    # -- in and out ---------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there until it is closed, or cancelled with the node."""
        try:
            async with trio.open_nursery() as nursery:
                self._exchange = Exchange(self._mesh.calls, nursery, self._averager, scope=self.name)
                nursery.start_soon(self._keep_telling)
                task_status.started()
                await self._closing.wait()
                self._mesh.withdraw(CIRCLE, self.name)
                await trio.sleep(_LEAVE_S)
                nursery.cancel_scope.cancel()
        finally:
            self._exchange = None
            self._closing.set()
            for scope in self._waiting:
                scope.cancel()

    def close(self) -> None:
        """Leave: from now on nobody waits for this node."""
        self._closing.set()

    def require_kin(self) -> None:
        """Raises UsageError when all who are in the circle train another model under this name."""
        strangers = self.strangers()
        if strangers and not self._others():
            peer, said = min(strangers.items())
            raise UsageError(
                f"{short(peer)} trains another model as {self.name!r}: it averages {said.dimension} numbers, this one "
                f"{len(self._shared)}, or they are named, shaped or stored otherwise. Give the same model, or another "
                "task name."
            )

    def enter(self) -> None:
        """Let the others count this node in from now on."""
        self._entered = True
        self._tell(force=True)

    async def wait_for(self, members: int, wait_s: float) -> int:
        """Wait until so many are in the circle, this node among them, but not for longer; how many there are."""
        with self._while_open(), trio.move_on_after(wait_s):
            while len(self._others()) + 1 < members:
                changed = self._mesh.changed
                if len(self._others()) + 1 < members:
                    await changed.wait()
        return len(self._others()) + 1

    # -- models -------------------------------------------------------------------------------------------------------

    async def models(self, *, entering: bool = False) -> list[Donation]:
        """Return models of two who are furthest, if this node has to take one: it enters, or was left behind."""
        others = self._others()
        self.failing.clear()
        if not (entering or _common(others) > self.round + _ROUNDS_AHEAD_MAX):
            return []
        found: list[Donation] = []
        with self._while_open():
            for peer in sorted(others, key=lambda peer: (others[peer].round, peer), reverse=True):
                if (donation := await self._ask(peer)) is not None:
                    found.append(donation)
                if len(found) == _DONORS:
                    break
        return found

    async def _ask(self, peer: PeerId) -> Donation | None:
        try:
            donation = await ask(
                self._mesh.calls, peer, scope=self.name, version=0, dimension=len(self._shared), rounds=_ROUNDS_MAX
            )
        except LeptonError as error:
            self.refuse(peer, str(error))
            return None
        return donation if donation.round >= self.round else None

    def refuse(self, peer: PeerId, why: str) -> None:
        """Note that a peer's model is not taken."""
        self.failing[peer] = why
        log.warning("task %s: no model from %s: %s", self.name, short(peer), why)

    def adopt(self, given: Donation) -> None:
        """Go on with a peer's model, in the round that it is in."""
        self._shared, self._reference = given.vector, given.reference
        self._averager.refer_to(Reference(given.reference, given.vector) if given.reference else None)
        self._averager.skip_to(given.round)
        self._first_round = self.round
        self._tell(force=True)
        log.info("task %s: took the model of %s, round %d", self.name, short(given.peer), self.round)

    def skip_to(self, round_: int) -> None:
        """Go on with a later round, as after a restart; an earlier one changes nothing."""
        self._averager.skip_to(round_)
        self._first_round = self.round
        self._tell(force=True)

    # -- a round ------------------------------------------------------------------------------------------------------

    async def average(self, vector: Vector, weight: float) -> Finished:
        """Average float32 (D,) with those who are there; nobody may write to it any more.

        Raises LeptonError when the node is closed meanwhile, BadContribution for values that nobody would accept.
        """
        with self._while_open():
            async with self._lock:
                finished = await self._one_round(vector, weight)
        return finished

    async def _one_round(self, vector: Vector, weight: float) -> Finished:
        exchange = self._exchange
        assert exchange is not None
        common = _common(self._others())
        if self.round < common:  # by little, or nobody gave a model: with what it has, rather than never with others
            self._averager.skip_to(common)
        self._tell()
        exchange.begin(Ready(self.round, vector, weight, self._members()))
        while not isinstance(came := await exchange.outcome(), Finished):
            log.info("task %s: %s claims to be %d rounds ahead", self.name, short(PeerId(came.peer)), came.by)
        self._shared, self._reference = came.vector, came.report.reference
        self._note_misses(came.report)
        self._tell()
        return came

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Let what waits here end with the circle. Raises LeptonError then."""
        if not self._closing.is_set():
            with trio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    yield
                finally:
                    self._waiting.discard(scope)
            if not scope.cancelled_caught:
                return
        raise LeptonError(f"The task {self.name!r} cannot go on: its optimizer or its node was closed.")

    # -- the picture --------------------------------------------------------------------------------------------------

    def strangers(self) -> dict[PeerId, CircleRecord]:
        """Return who trains another model under this name; they are not averaged with."""
        return {peer: said for peer, said in self._records().items() if said.model != self._model}

    def _others(self) -> dict[PeerId, CircleRecord]:
        """Return who else is here with the same model, permitted, and not away."""
        return {
            peer: said
            for peer, said in self._records().items()
            if said.model == self._model
            and said.dimension == len(self._shared)
            and self._mesh.authority(peer).allows(f"train:{self.name}")
            and not self._is_away(peer, said.round)
        }

    def _members(self) -> tuple[str, ...]:
        """Return who is in this round: oneself, and the others but for who comes later or is far ahead."""
        others = {
            peer
            for peer, said in self._others().items()
            if said.first_round <= self.round and said.round <= self.round + _ROUNDS_AHEAD_MAX
        }
        return tuple(sorted({self._mesh.me, *others}))

    def _is_away(self, peer: PeerId, round_: int) -> bool:
        """Whether a peer has stopped averaging, though it is here: its loop ended, or stands still in a debugger."""
        misses, said = self._missed.get(peer, (0, -1))
        return misses >= _MISSES_MAX and round_ == said

    def _note_misses(self, report: Report) -> None:
        """Count who did not come. A contribution that was refused is none of these: others may have taken it."""
        refused = {refusal.peer for refusal in report.refused}
        absent = {absence.peer for absence in report.missing if absence.what == "contribution"} - refused
        for peer, record in self._records().items():
            misses, said = self._missed.get(peer, (0, -1))
            if peer in absent:
                self._missed[peer] = (misses + 1 if said == record.round else 1, record.round)
            elif peer in report.members:
                self._missed.pop(peer, None)

    def _records(self) -> dict[PeerId, CircleRecord]:
        return {
            record.owner: said
            for record, said in self._mesh.live(CIRCLE, CircleRecord)
            if record.name == self.name and record.owner != self._mesh.me
        }

    async def _keep_telling(self) -> None:
        """Say how far this node got, where rounds came faster than records: its loop may be long in coming back."""
        while True:
            await trio.sleep(_TOLD_INTERVAL_S)
            if self._told_round != self.round:
                self._tell()

    def _tell(self, *, force: bool = False) -> None:
        now = trio.current_time()
        if self._entered and not self.is_over and (force or now - self._told_s >= _TOLD_INTERVAL_S):
            self._told_s, self._told_round = now, self.round
            said = CircleRecord(
                model=self._model, dimension=len(self._shared), round=self.round, first_round=self._first_round
            )
            self._mesh.publish(CIRCLE, self.name, said)


def _common(others: Mapping[PeerId, CircleRecord]) -> int:
    """Return the round that more than half of the others have reached; 0 without any."""
    rounds = sorted((said.round for said in others.values()), reverse=True)
    return rounds[len(rounds) // 2] if rounds else 0
