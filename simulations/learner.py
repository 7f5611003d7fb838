"""One device's part in the task: local steps towards its own optimum, then rounds of the deployed averaging machine.

Wired as `node/learning/learner.py` is: messages wait while the device trains, a joiner takes the model of whoever is
furthest, who takes part follows from the records. The local objective is ||x - c||^2 / 2 with a c of each device's
own, so the optimum of all together is known: the weighted mean of the c's.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..gossip import messages as wire
from ..gossip.averager import Averager, name_of
from ..gossip.averager import Event as RoundEvent
from ..gossip.codecs import Floats
from ..gossip.config import Config
from ..gossip.errors import BadContribution
from ..gossip.events import Behind, Expired, Finished, PeerDown, Ready, Received, Report, Send
from ..gossip.part import Reference
from ..mesh.errors import LeptonError, PeerError, UsageError
from ..mesh.identity import PeerId
from ..node.learning.messages import RoundMessage, State, StateWanted
from .calls import Answer, Empty, Incoming, Method
from .device import Device
from .picture import TASK_NAME, TRAINER, TrainerRecord
from .scenario import Task

_EVENTS_MAX = 1024  # as in node/learning/learner.py, like all below but the last
_SEND_TIMEOUT_S = 20.0
_PROGRESS_INTERVAL_S = 0.5
_CHECKPOINT_INTERVAL_S = 2.0
_PASSED_S = 1.0
_ROUNDS_AHEAD_MAX = 2
_VERSION = 1
_RESEND_S = 0.5  # here alone: what these links lose is gone for good


class RoundWatch(Protocol):
    """Who hears of rounds: the ledger that their results are checked against."""

    def known(self, name: bytes, vector: Floats) -> None: ...
    def offered(self, me: PeerId, round_: int, vector: Floats, weight: float) -> None: ...
    def finished(self, me: PeerId, report: Report, vector: Floats) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one device's data says: where its own optimum is, and how much its voice counts."""

    optimum: Floats  # (D,)
    weight: float


class Learner:
    """One device's rounds, one after another, until the task's are used up."""

    def __init__(self, device: Device, task: Task, share: Share, *, members_min: int, watch: RoundWatch) -> None:
        self.vector: Floats = np.zeros(task.dimension, dtype=np.float32)
        self.round = self._first_round = 0
        self.state = "new"
        self._device, self._task, self._share, self._watch = device, task, share, watch
        self._members_min = members_min
        self._shared: Floats | None = None
        self._name = b""  # of the shared model, if a round agreed on it
        self._behind: PeerId | None = None
        self._averager: Averager | None = None
        self._inbox: deque[RoundEvent | Behind] = deque()
        self._asking = False  # for a model to begin with
        self._exchanging = False  # a round's machine runs, and nothing is being adopted
        self._armed: tuple[Averager | None, float] = (None, 0.0)  # the deadline that a timer is set for
        self._gather_until = device.now + task.start_wait_s
        self._told_at = self._saved_at = -np.inf
        device.calls.serve("train.round", Method("train", RoundMessage, self._take_message))
        device.calls.serve("train.state", Method("train", StateWanted, self._give_state))
        device.on_absent.append(lambda peer: self._event(PeerDown(peer)))
        device.records.on_change.append(self._look)

    @property
    def in_round(self) -> bool:
        return self._exchanging and self._averager is not None and self._averager.running

    def start(self) -> None:
        """Go on from the checkpoint, if there is one; join who is under way, or begin when enough others are ready."""
        if self._device.disk.checkpoint is not None:
            done, self.vector = self._device.disk.checkpoint
            self.round = self._first_round = done + 1
            self._shared = self.vector
        self._device.after(self._task.start_wait_s, self._look)
        self._tell("preparing" if self._ahead() else "ready")  # nobody waits for who is preparing
        self._look()

    # -- what peers ask -----------------------------------------------------------------------------------------------

    def _take_message(self, call: Incoming) -> Answer:
        try:
            message = wire.unpack(call.message.header, call.body)
        except BadContribution as error:
            raise PeerError(str(error)) from error
        self._event(Received(call.caller, message))
        return Answer(Empty())

    def _give_state(self, _call: Incoming) -> Answer:
        if self._shared is None:
            raise UsageError(f"This node has no model of {TASK_NAME!r} to give yet.")
        return Answer(State(round=self.round, reference=self._name), self._shared.tobytes())

    def _event(self, event: RoundEvent | Behind) -> None:
        if len(self._inbox) < _EVENTS_MAX:
            self._inbox.append(event)
        self._drain()

    # -- before the first round ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See whether what this device waits for has come: enough others, or a model to begin with."""
        waited = self._device.now >= self._gather_until
        if self.state == "ready":
            begun = any(record.state == "training" for record in self._records().values())
            if begun or waited or self.round > 0 or len(self._members()) >= self._members_min:
                self._begin()
        elif self.state == "preparing" and not self._asking:
            ahead = self._ahead()
            if waited or not ahead:
                self._begin()
            else:
                self._join(ahead)

    def _begin(self) -> None:
        self._averager = self._new_averager()
        if self._shared is None:
            self._name = name_of(self.vector)  # what all begin with
            self._watch.known(self._name, self.vector)
        self._refer()
        self._tell("training")
        self._device.after(_PASSED_S, lambda: self._notice_passed(set()))
        self._train()

    def _join(self, ahead: list[PeerId]) -> None:
        """Take the model of whoever is furthest and gives it; a model that nobody trained would pull the mean down."""

        def done(adopted: bool) -> None:  # noqa: FBT001 - an answer, not a setting
            if adopted:  # the round that it is in has begun without this device
                self.round = self._first_round = min(self.round + 1, self._task.rounds)
                self._begin()
            else:
                self._join(ahead[1:])

        self._asking = bool(ahead)
        if ahead:
            self._adopt_from(ahead[0], done)

    def _ahead(self) -> list[PeerId]:
        """Return who is under way and not behind this device, whoever is furthest first."""
        found = [
            (record.round, peer)
            for peer, record in self._records().items()
            if peer != self._device.me and record.state in {"training", "done"} and record.round >= self.round
        ]
        return [peer for _, peer in sorted(found, reverse=True)]

    def _notice_passed(self, before: set[tuple[int, PeerId]]) -> None:
        """Read in the records that others have left this device behind: who does not count it in sends it nothing."""
        passed = {
            (self.round, peer)
            for peer, record in self._records().items()
            if record.state == "done" or record.round > self.round + _ROUNDS_AHEAD_MAX
        }
        for _, peer in sorted(passed & before):
            self._event(Behind(_ROUNDS_AHEAD_MAX + 1, peer))
        if self.state != "done":
            self._device.after(_PASSED_S, lambda: self._notice_passed(passed))

    def _adopt_from(self, peer: PeerId, done: Callable[[bool], None]) -> None:
        def answered(result: Answer | LeptonError) -> None:
            adopted = not isinstance(result, LeptonError) and self._adopt(result)
            if adopted:
                self._device.tell(f"takes the model of {peer}, round {self.round}")
            done(adopted)

        wanted = StateWanted(version=_VERSION)
        self._device.call(peer, "train.state", wanted, State, answered, scope=TASK_NAME)

    def _adopt(self, answer: Answer) -> bool:
        if answer.message.round <= self.round or len(answer.body) != 4 * self._task.dimension:
            return False
        self.vector = self._shared = np.frombuffer(answer.body, dtype=np.float32)
        self._name = answer.message.reference
        self._refer()
        self.round = self._first_round = min(answer.message.round, self._task.rounds)
        return True

    def _refer(self) -> None:
        if self._averager is not None:
            self._averager.refer_to(Reference(self._name, self.vector) if self._name else None)

    def _new_averager(self) -> Averager:
        return self._device.machines.averager(
            self._device.me,
            f"{TASK_NAME}/{_VERSION}",
            mesh=b"simulated",
            dimension=self._task.dimension,
            codec_name=self._task.codec,
            group_size=self._task.group_size,
            rng_seed=0,
            first_round=self.round,
            instance=self._device.disk.incarnation,
            config=Config(
                wait_s_initial=self._task.wait_s_initial,
                wait_s_max=self._task.wait_s_max,
                resend_s=_RESEND_S,
            ),
        )

    # -- one round ----------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        if self.round >= self._task.rounds:
            self._tell("done")
            return
        took_s = self._task.step_s * self._device.dice.uniform(0.8, 1.2)
        self._device.work(took_s, self._exchange)

    def _exchange(self) -> None:
        pull = np.float32(self._task.pull)
        self.vector = self.vector + pull * (self._share.optimum - self.vector)  # (D,)
        self._tell("training")
        members = tuple(sorted(self._members()))
        self._watch.offered(self._device.me, self.round, self.vector, self._share.weight)
        self._exchanging = True
        self._handle(Ready(self.round, self.vector, self._share.weight, members))
        self._drain()

    def _drain(self) -> None:
        """Let the machine have what came. Between rounds too: some may ask for what came of the last one."""
        while self._averager is not None and self._inbox:
            self._handle(self._inbox.popleft())
        if self._exchanging and self._averager is not None:
            if self._behind is not None:
                self._catch_up(self._behind)
            elif self._averager.running:
                self._arm(self._averager, self._averager.deadline)
            else:
                self._exchanging = False
                self._train()

    def _arm(self, averager: Averager, deadline: float) -> None:
        def expire() -> None:
            if averager is self._averager and averager.deadline == deadline:
                self._armed = (None, 0.0)
                self._event(Expired())

        if self._armed != (averager, deadline):
            self._armed = (averager, deadline)
            self._device.after(max(deadline - self._device.now, 0.0), expire)

    def _handle(self, event: RoundEvent | Behind) -> None:
        if isinstance(event, Behind):
            self._behind = PeerId(event.peer)
            return
        assert self._averager is not None
        for effect in self._averager.handle(event, self._device.now):
            match effect:
                case Send(peer, message):
                    self._send(PeerId(peer), message)
                case Finished(_, vector, report):
                    self._finished(vector, report)
                case Behind(_, peer):
                    self._behind = PeerId(peer)

    def _catch_up(self, peer: PeerId) -> None:
        self._exchanging, self._behind = False, None

        def done(adopted: bool) -> None:  # noqa: FBT001 - an answer, not a setting
            assert self._averager is not None
            if adopted:
                self._tell("training", force=True)
                self._averager.skip_to(self.round)
                self._train()
            else:
                self._exchanging = True
                self._drain()

        self._adopt_from(peer, done)

    def _send(self, peer: PeerId, message: wire.Message) -> None:
        header, payload = wire.pack(message)
        sent = RoundMessage(header=header)
        self._device.call(
            peer, "train.round", sent, Empty, scope=TASK_NAME, body=bytes(payload), timeout_s=_SEND_TIMEOUT_S
        )

    def _finished(self, vector: Floats, report: Report) -> None:
        self._watch.finished(self._device.me, report, vector)
        self.vector = self._shared = vector
        self._name = report.reference
        self.round = report.round + 1
        named = min((len(run.contributors) for runs in report.parts for run in runs), default=0)
        came = f"{named} of {len(report.members)} in all parts" if report.agreed else "not agreed"
        self._device.tell(f"finished round {report.round}: {came}, members {len(report.members)}")
        now, last = self._device.now, self.round == self._task.rounds
        if last or now - self._saved_at >= _CHECKPOINT_INTERVAL_S:
            self._saved_at = now
            self._device.disk.checkpoint = (report.round, vector)

    # -- the picture --------------------------------------------------------------------------------------------------

    def _records(self) -> dict[PeerId, TrainerRecord]:
        return {record.owner: said for record, said in self._device.records.live(TRAINER, TrainerRecord)}

    def _members(self) -> set[PeerId]:
        taking_part = {"ready", "training"}
        return {self._device.me} | {
            peer
            for peer, record in self._records().items()
            if record.state in taking_part
            and record.first_round <= self.round
            and self._device.authority(peer).allows(f"train:{TASK_NAME}")
        }

    def _tell(self, state: str, *, force: bool = False) -> None:
        now, news = self._device.now, force or state != self.state
        self.state = state
        if news or now - self._told_at >= _PROGRESS_INTERVAL_S:
            self._told_at = now
            record = TrainerRecord(state=state, round=self.round, first_round=self._first_round)  # type: ignore[arg-type]
            self._device.records.publish(TRAINER, TASK_NAME, record)
