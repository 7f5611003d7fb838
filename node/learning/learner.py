"""The shell that learns: one task on one node. Local steps in a thread, then an exchange through the averaging machine.

Nobody coordinates: who takes part follows from the records, who exchanges with whom from a pure function of those.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import trio
from torch import nn

from ...gossip.averager import Averager, name_of
from ...gossip.events import Behind, Ready, Report
from ...gossip.part import Reference
from ...gossip.private.averager import TOO_FEW
from ...mesh import limits
from ...mesh.calls import Answer, Empty, Incoming
from ...mesh.errors import LeptonError, PeerError, UsageError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..models import ModelSpec, Vector, build, check_sizes
from ..picture import TRAINER, TaskRecord, TrainerRecord
from .begun import Begun
from .checkpoint import Checkpoint, CheckpointStore
from .data import Dataset
from .donors import Donation, ask, judge
from .ending import Ending
from .exchange import Exchange
from .ledger import Ledger
from .losses import Metrics, accuracy_of
from .messages import State, StateWanted
from .policies import WIRES, Machine, check_policy, is_whole, machine_for, why_nothing
from .settings import require_no_baseline
from .trainer import Trainer, train_alone

_PROGRESS_INTERVAL_S = 0.5  # records travel to everyone: two a second are enough for a live table
_EVALUATE_INTERVAL_S = 0.5
_CHECKPOINT_INTERVAL_S = 2.0
_PASSED_S = 1.0  # a message of a round that its sender has long finished arrives within this, or never
_ROUNDS_AHEAD_MAX = 2  # as the averaging machine has it: further on, others do not wait for this node
_SECOND_DONOR_S = 2.0  # with one model at hand, so long for the second: meanwhile the others go on
_SHUNNED_ROUNDS = 10  # who gave a bad model is not asked again so soon: it may have been in trouble itself
_LEAVE_S = 1.0  # the last round's messages get this long to arrive before the task is called done

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Where this node stands in a task, for its owner to see."""

    task: str
    state: str = "preparing"
    round: int = 0
    rounds: int = 0
    members: int = 1
    samples: int = 0
    accuracy: float | None = None
    accuracy_alone: float | None = None
    r2: float | None = None
    r2_alone: float | None = None
    loss: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    bytes_sent: int = 0
    deadline_misses: int = 0
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def score(self) -> float | None:
        """What is the better the higher: accuracy, or R2 where values are predicted."""
        return self.accuracy if self.r2 is None else self.r2


class Learner:
    """One node's part in one task."""

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        task: TaskRecord,
        dataset: Dataset,
        checkpoints: CheckpointStore,
        *,
        begun: Begun | None = None,
        make_model: Callable[[ModelSpec], nn.Module] = build,
        on_trained: Callable[[Trainer], Awaitable[None]],
        ledger: Ledger | None = None,
    ) -> None:
        """``begun`` keeps a private task's rounds, ``ledger`` what one with differential privacy has spent.

        Raises UsageError when task or data contradict themselves.
        """
        check_sizes(task.spec)
        check_policy(task)
        assert (ledger is None) == (task.settings.dp is None)  # without one, nobody would count
        if task.baseline:
            require_no_baseline(task.settings)
        self.name = name
        self.task = task
        self.progress = Progress(name, rounds=task.rounds, samples=len(dataset.y))
        self._mesh = mesh
        self._dataset = dataset
        self._checkpoints = checkpoints
        self._on_trained = on_trained
        self._ledger = ledger
        self._untrained = ""  # why this node takes no more steps
        if ledger is not None:
            self.progress.epsilon, self.progress.delta = ledger.epsilon, ledger.delta
        self._make_model = make_model
        self._trainer = Trainer(
            task.spec,
            dataset,
            task.settings,
            steps=task.rounds * task.settings.local_steps,
            parts=task.parts,
            model=make_model(task.spec),
        )
        if task.structure is not None and task.structure != self._trainer.structure:
            raise UsageError(
                f"the model that {task.spec.factory} makes here is not the one of this task: its parameters have "
                "other names or shapes; have the same version of it on all nodes"
            )
        check_policy(task, self._trainer.dimension)
        self._begun = begun
        self._ending = Ending(task.budget, task.stop)
        self._began_s = 0.0
        self._round = self._first_round = 0
        self._shared: Vector | None = None  # what a joiner may take: the model as of the last finished round
        self._name = b""  # what that is called, where a round agreed on it
        self._exchange: Exchange | None = None
        self._told_at = self._evaluated_at = self._saved_at = -np.inf
        self._bad_donors: dict[PeerId, int] = {}  # in which round each was refused
        self._evaluated_round = self._saved_round = -1

    # -- what peers ask -----------------------------------------------------------------------------------------------

    async def take_messages(self, call: Incoming[Empty]) -> None:
        """Hand a peer's messages of rounds to the machine. Raises PeerError when one is malformed."""
        async for item in call.items:
            if self._exchange is not None:  # else the peer will say it again
                self._exchange.take(call.caller, item)

    def give_state(self, call: Incoming[StateWanted]) -> Answer[State]:
        """Give a joiner the model to begin with. Raises UsageError while there is none of this version."""
        if self._shared is None or call.message.version != self.task.version:
            msg = f"This node has no model of {self.name!r} to give yet."
            raise UsageError(msg)
        return Answer(State(round=self._round, reference=self._name), [self._shared])

    def peer_left(self, peer: PeerId) -> None:
        if self._exchange is not None:
            self._exchange.peer_left(peer)

    # -- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until the budget is used up. Raises LeptonError when this node cannot go on."""
        async with trio.open_nursery() as nursery:
            self._tell("preparing", force=True)
            self._resume()
            if self._begun is not None:  # never again in a round that was begun
                self._round = self._first_round = max(self._round, self._begun.last + 1)
            await self._train_alone()
            exchange = self._exchange = Exchange(
                self._mesh.calls, nursery, self._new_machine(), scope=self.name, wire=WIRES[self.task.policy]
            )
            if self._shared is None:
                vector = self._trainer.vector()  # every node begins with this one
                self._refer_to(Reference(name_of(vector), vector))
            if not self._ahead():
                self._tell("ready", force=True)
                await self._gather()
            else:  # nobody waits for this node yet
                await self._join()
            exchange.machine.skip_to(self._round)
            self._tell("training")
            nursery.start_soon(self._notice_passed, exchange)
            self._began_s = trio.current_time()
            while not self._is_over():
                await self._one_round(exchange)
            await self._finish()
            nursery.cancel_scope.deadline = trio.current_time() + _LEAVE_S
        self._exchange = None

    def _resume(self) -> None:
        """Go on from the newest checkpoint of this version of the task, if there is one."""
        loaded = self._checkpoints.load_latest()
        if loaded is None:
            return
        for note in loaded.skipped:
            log.warning("task %s: %s; using the one before it", self.name, note)
            self.progress.notes.append(note)
        self._trainer.restore(loaded.checkpoint.vector, loaded.checkpoint.trainer_state)
        if self._ledger is not None:
            self._ledger.require_steps(self._trainer.step)
        self._round = self._first_round = self._saved_round = loaded.checkpoint.round + 1
        if self._begun is None:
            self._shared = loaded.checkpoint.vector
        log.info("task %s goes on after round %d", self.name, loaded.checkpoint.round)

    async def _train_alone(self) -> None:
        if self.task.baseline and self._round == 0:
            steps = self.task.rounds * self.task.settings.local_steps
            alone = await trio.to_thread.run_sync(self._metrics_alone, steps)
            self.progress.accuracy_alone, self.progress.r2_alone = accuracy_of(alone), alone.r2

    def _metrics_alone(self, steps: int) -> Metrics:
        spec = self.task.spec
        alone = train_alone(spec, self._dataset, self.task.settings, steps, model=self._make_model(spec))
        return alone.evaluate()

    async def _gather(self) -> None:
        """Wait until as many are ready as the task asks for, or for as long as it says; nobody waits for a late one."""
        with trio.move_on_after(self.task.start_wait_s):
            while True:
                changed = self._mesh.changed
                records = self._records()
                begun = any(record.state == "training" for record in records.values())
                if begun or self._round > 0 or len(self._members(records)) >= self.task.members_min:
                    return
                await changed.wait()

    async def _join(self) -> None:
        """Take the model of whoever is furthest as soon as there is one: a random one would pull the mean down."""
        with trio.move_on_after(self.task.start_wait_s):
            while True:
                changed = self._mesh.changed
                ahead = self._ahead()
                if await self._adopt_from(ahead):
                    # The round that it is in has begun without this node, and what was sent in it is lost to it.
                    self._round = self._first_round = min(self._round + 1, self.task.rounds)
                    return
                if not ahead:
                    return
                await changed.wait()

    def _ahead(self) -> list[PeerId]:
        """Return who is under way and not behind this node, the furthest first; nobody who just gave a bad model."""
        found = [
            (record.round, peer)
            for peer, record in self._records().items()
            if peer != self._mesh.me
            and self._round >= self._bad_donors.get(peer, -_SHUNNED_ROUNDS) + _SHUNNED_ROUNDS
            and record.state in {"training", "done"}
            and self._round <= record.round <= self.task.rounds
            and self._mesh.authority(peer).allows(f"train:{self.name}")
        ]
        return [peer for _, peer in sorted(found, reverse=True)]

    async def _adopt_from(self, peers: Sequence[PeerId]) -> bool:
        """Take the better model of the first two that have one, and part in the round that its giver is in.

        In a later round, two who adopt from each other would leapfrog for ever.
        """
        for first in range(0, len(peers), 2):
            pair = peers[first : first + 2]
            found = [donation for donation in await self._ask(pair) if donation.round > self._round]
            best, refused = await trio.to_thread.run_sync(judge, self._trainer, found) if found else (None, {})
            for peer, why in refused.items():
                self._refuse_model(peer, why)
            if best is not None:
                self._adopt(best)
                return True
        return False

    async def _ask(self, peers: Sequence[PeerId]) -> list[Donation]:
        """Ask peers for their models, at once; those of them that answer with one."""
        found: list[Donation] = []

        async def ask_one(peer: PeerId) -> None:
            try:
                found.append(await ask(
                    self._mesh.calls, peer, scope=self.name, version=self.task.version,
                    dimension=self._trainer.dimension, rounds=self.task.rounds,
                ))  # fmt: skip
            except PeerError as error:
                self._refuse_model(peer, str(error))
            except LeptonError as error:
                log.info("task %s: no model from %s: %s", self.name, short(peer), error)
            if found:
                nursery.cancel_scope.deadline = trio.current_time() + _SECOND_DONOR_S

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask_one, peer)
        return found

    def _refuse_model(self, peer: PeerId, why: str) -> None:
        self._bad_donors[peer] = self._round
        text = f"the model of {short(peer)} was refused: {why}"
        log.warning("task %s: %s", self.name, text)
        self.progress.notes = [*self.progress.notes[-19:], text]

    def _adopt(self, given: Donation) -> None:
        self._trainer.adopt(given.vector)
        self._shared, self._name = given.vector, given.reference
        self._refer_to(Reference(given.reference, given.vector) if given.reference else None)
        self._round = self._first_round = given.round
        log.info("task %s: took the model of %s, round %d", self.name, short(given.peer), self._round)

    def _new_machine(self) -> Machine:
        return machine_for(
            self.task,
            f"{self.name}/{self.task.version}",  # what is left of an older version's rounds is of another task
            self._mesh.identity,
            mesh=self._mesh.root.encode(),
            dimension=self._trainer.dimension,
            first_round=self._round,
        )

    def _refer_to(self, reference: Reference | None) -> None:
        """Count from this model on, where the policy sends differences."""
        if self._exchange is not None and isinstance(self._exchange.machine, Averager):
            self._exchange.machine.refer_to(reference)

    # -- one round ----------------------------------------------------------------------------------------------------

    async def _one_round(self, exchange: Exchange) -> None:
        self.progress.loss = await trio.to_thread.run_sync(self._run_steps)
        if self._ledger is not None:
            self.progress.epsilon = self._ledger.epsilon
        self._tell("training")
        members = tuple(sorted(self._members(self._records())))
        self.progress.members = len(members)
        if self._begun is not None:
            await trio.to_thread.run_sync(self._begun.mark, self._round)
        exchange.begin(Ready(self._round, self._trainer.vector(), float(self._trainer.samples), members))
        while isinstance(came := await exchange.outcome(), Behind):
            if await self._adopt_from(self._really_ahead(PeerId(came.peer))):
                self._tell("training", force=True)
                exchange.machine.skip_to(self._round)
                return
        self.progress.bytes_sent = exchange.bytes_sent
        await self._finished(came.round, came.vector, came.report)

    def _really_ahead(self, claims: PeerId) -> list[PeerId]:
        """Return who is ahead as the picture has it, whoever claims it first; nobody if that one's record denies it.

        A record may be some rounds old. A claim that is true stands in it soon, and then `_notice_passed` sees it.
        """
        ahead = self._ahead()
        record = self._records().get(claims)
        if claims not in ahead or record is None or record.round <= self._round:
            log.info("task %s: %s claims to be far ahead; its record does not say so", self.name, short(claims))
            return []
        return [claims, *(peer for peer in ahead if peer != claims)]

    def _is_over(self) -> bool:
        """Whether that was the last round, as the budget, the rules and what the others have named say."""
        records, ending = self._records(), self._ending
        if self.task.policy != "robust":  # there, one that lies could end it for all
            ending.follow([record.last for record in records.values()], self._round)
        scores = [record.score for peer, record in records.items() if peer != self._mesh.me]
        if ending.decide(
            self._round,
            seconds=trio.current_time() - self._began_s,
            bytes_sent=self.progress.bytes_sent,
            scores=[*scores, self.progress.score],
        ):
            log.info("task %s ends after round %d: %s", self.name, ending.rounds, ending.why)
            self._tell(self.progress.state, force=True)
        self.progress.rounds = ending.rounds
        return self._round >= ending.rounds

    def _run_steps(self) -> float | None:
        """Take a round's local steps; their mean loss, None where it tells of single records.

        A node whose privacy budget is used up takes none and goes on averaging: what it sends is then made of what it
        was given, and costs nothing more. If it left, a mesh that was killed and went on might end with nobody.
        """
        steps, private = self.task.settings.local_steps, self._trainer.private
        if private is None or self._ledger is None:
            return self._trainer.run_steps(steps)
        if self._ledger.spend(noise=private.noise, rate=private.rate, steps=steps):
            self._trainer.run_steps(steps)
        elif not self._untrained:
            self._untrained = "its privacy budget is used up; it averages on without training"
            log.warning("task %s, round %d: %s", self.name, self._round, self._untrained)
        return None

    async def _notice_passed(self, exchange: Exchange) -> None:
        """Read in the records that others have left this node behind: who does not count it in sends it nothing."""
        before: set[tuple[int, PeerId]] = set()
        while True:
            await trio.sleep(_PASSED_S)
            passed = {
                (self._round, peer)
                for peer, record in self._records().items()
                if record.state == "done" or record.round > self._round + _ROUNDS_AHEAD_MAX
            }
            both = passed & before
            others = len(self._records()) - (self._mesh.me in self._records())
            if self.task.policy == "robust" and 2 * len(both) <= others:
                both = set()  # what a few say of themselves moves nobody
            for _, peer in sorted(both):
                exchange.notice_passed(peer, by=_ROUNDS_AHEAD_MAX + 1)
            before = passed

    async def _finished(self, round_: int, vector: Vector, report: Report) -> None:
        self._trainer.adopt(vector, averaged=True)
        if self._begun is None or is_whole(report):  # what is not a sum is this node's own, and not for others
            self._shared, self._name = vector, report.reference
        self._round = round_ + 1
        self.progress.round = self._round
        self.progress.deadline_misses += len({absence.peer for absence in report.missing} - {self._mesh.me})
        self._say_what_came_of_it(report)
        for refusal in report.refused:
            text = f"round {round_}: {short(refusal.peer)}'s {refusal.what} was refused: {refusal.why}"
            log.warning("task %s, %s", self.name, text)
            self.progress.refusals = [*self.progress.refusals[-19:], text]
        now, last = trio.current_time(), self._round >= self._ending.rounds
        if last or now - self._evaluated_at >= _EVALUATE_INTERVAL_S:
            self._evaluated_at = now
            self._note(await trio.to_thread.run_sync(self._trainer.evaluate))
            others = [record.score for peer, record in self._records().items() if peer != self._mesh.me]
            self._ending.evaluated([*others, self.progress.score])
        self._log_round(round_)
        # Steps that a crash undoes are paid for twice where privacy is counted: there each round is kept.
        if last or self._ledger is not None or now - self._saved_at >= _CHECKPOINT_INTERVAL_S:
            await self._save(vector)

    def _say_what_came_of_it(self, report: Report) -> None:
        why = why_nothing(self.task.policy, self._mesh.me, report)
        if why and why != self.progress.reason:
            log.warning("task %s, round %d: nothing was averaged: %s", self.name, report.round, why)
        self.progress.reason = why or self._untrained

    async def _save(self, vector: Vector) -> None:
        self._saved_at, self._saved_round = trio.current_time(), self._round
        checkpoint = Checkpoint(round=self._round - 1, vector=vector, trainer_state=self._trainer.state())
        await trio.to_thread.run_sync(self._checkpoints.save, checkpoint)

    def _log_round(self, round_: int) -> None:
        said = self.progress
        score = "accuracy not yet known"
        if said.score is not None:
            score = f"accuracy {said.accuracy:.1%}" if said.r2 is None else f"R2 {said.r2:.3f}"
        loss = f"{said.loss:.4f}" if said.loss is not None else "not told"
        log.info(
            "task %s, round %d of %d: loss %s, %s, %d members, %d bytes sent, %d misses",
            self.name, round_ + 1, said.rounds, loss, score, said.members, said.bytes_sent,
            said.deadline_misses,
        )  # fmt: skip

    async def _finish(self) -> None:
        if self._begun is not None:
            if self._shared is None:
                raise LeptonError(f"no private round came to a sum here, so there is no model to show: {TOO_FEW}")
            self._trainer.adopt(self._shared)  # what came after the last sum is this node's own
        if self._evaluated_round != self._round:
            self._note(await trio.to_thread.run_sync(self._trainer.evaluate))
        if self._saved_round != self._round and self._round > 0:  # nobody knew that this would be the last
            await self._save(self._trainer.vector())
        await self._on_trained(self._trainer)
        self._tell("done", force=True)

    def _note(self, metrics: Metrics) -> None:
        self._evaluated_round = self._round
        self.progress.accuracy, self.progress.r2 = accuracy_of(metrics), metrics.r2

    # -- the picture --------------------------------------------------------------------------------------------------

    def _records(self) -> dict[PeerId, TrainerRecord]:
        return {
            record.owner: trainer
            for record, trainer in self._mesh.live(TRAINER, TrainerRecord)
            if record.name == self.name and trainer.version == self.task.version
        }

    def _members(self, records: dict[PeerId, TrainerRecord]) -> set[PeerId]:
        """Return who takes part in this round: oneself, and whoever is here, permitted, not too late and not done."""
        return {self._mesh.me} | {
            peer
            for peer, record in records.items()
            if record.state in {"ready", "training"}
            and record.first_round <= self._round
            and self._mesh.authority(peer).allows(f"train:{self.name}")
        }

    def _tell(self, state: str, *, force: bool = False) -> None:
        now = trio.current_time()
        force = force or state != self.progress.state
        self.progress.state = state
        self.progress.round = self._round
        if not force and now - self._told_at < _PROGRESS_INTERVAL_S:
            return
        self._told_at = now
        said = self.progress
        record = TrainerRecord(
            state=said.state,  # type: ignore[arg-type]
            version=self.task.version,
            round=self._round,
            first_round=self._first_round,
            last=self._ending.named,
            samples=said.samples,
            accuracy=said.accuracy,
            accuracy_alone=said.accuracy_alone,
            r2=said.r2,
            r2_alone=said.r2_alone,
            loss=said.loss,
            epsilon=said.epsilon,
            delta=said.delta,
            bytes_sent=said.bytes_sent,
            deadline_misses=said.deadline_misses,
            reason=said.reason[: limits.KIB],
        )
        self._mesh.publish(TRAINER, self.name, record)
