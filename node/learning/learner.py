"""The shell that learns: one task on one node. Local steps in a thread, then an exchange through the averaging machine.

Nobody coordinates: who takes part follows from the records, who exchanges with whom from a pure function of those.
"""

import logging
from collections.abc import Awaitable, Callable

import trio
from torch import nn

from ...gossip.averager import Averager, name_of
from ...gossip.events import Behind, Ready, Report
from ...gossip.part import Reference
from ...gossip.private.averager import TOO_FEW
from ...mesh.calls import Answer, Empty, Incoming
from ...mesh.errors import LeptonError, UsageError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..models import build
from ..picture import TaskRecord
from ..shapes import ModelSpec, Vector, check_sizes
from .begun import Begun
from .checkpoint import CheckpointStore
from .data import Dataset
from .donors import Donation
from .ending import Ending
from .exchange import Exchange
from .joining import Joining
from .keeping import Keeping
from .ledger import Ledger
from .local import Steps
from .losses import accuracy_of
from .messages import State, StateWanted
from .policies import WIRES, Machine, check_policy, is_whole, machine_for, why_nothing
from .settings import require_no_baseline
from .telling import ROUNDS_AHEAD_MAX, Progress, RoundSaid, Telling, said_of_round
from .trainer import Trainer

_PASSED_S = 1.0  # a message of a round that its sender has long finished arrives within this, or never
_LEAVE_S = 1.0  # the last round's messages get this long to arrive before the task is called done

_LAST_MODEL_S = (
    5.0  # whose last round failed waits so long for others to be done: they are in that round too, or past it
)

log = logging.getLogger(__name__)


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
        on_round: Callable[[RoundSaid], None] = lambda _: None,
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
        self._on_trained = on_trained
        self._ledger = ledger
        self._on_round = on_round
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
            distil=task.distil,
            prune=task.prune,
        )
        if task.structure is not None and task.structure != self._trainer.structure:
            raise UsageError(
                f"the model that {task.spec.factory} makes here is not the one of this task: its parameters have "
                "other names or shapes; have the same version of it on all nodes"
            )
        check_policy(task, self._trainer.dimension)
        self._telling = Telling(mesh, name, task.version, self.progress)
        self._joining = Joining(mesh, name, task, self._trainer, self._telling)
        self._steps = Steps(task, self._trainer, ledger, name=name)
        self._keeping = Keeping(self._trainer, checkpoints, self.progress, always=ledger is not None)
        self._begun = begun
        self._ending = Ending(task.budget, task.stop)
        self._began_s = 0.0
        self._round = self._first_round = 0
        self._shared: Vector | None = None  # what a joiner may take: the model as of the last finished round
        self._name = b""  # what that is called, where a round agreed on it
        self._exchange: Exchange | None = None
        self._with: set[str] = set()  # whose values have come into this node's model, its own among them
        self._alone_why = ""  # why nothing but its own did in the last round
        self._shares_last = True  # whether the model of the last round is one that others have too

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
        return Answer(State(round=self._round, reference=self._name), bulk=self._shared)

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
            if not self._joining.ahead(self._round):
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
        loaded = self._keeping.load()
        if loaded is None:
            return
        if self._ledger is not None:
            self._ledger.require_steps(self._trainer.step)
        self._round = self._first_round = loaded.checkpoint.round + 1
        if self._begun is None:
            self._shared = loaded.checkpoint.vector
        log.info("task %s goes on after round %d", self.name, loaded.checkpoint.round)

    async def _train_alone(self) -> None:
        if self.task.baseline and self._round == 0:
            alone = await trio.to_thread.run_sync(self._steps.alone, self._dataset, self._make_model)
            self.progress.accuracy_alone, self.progress.r2_alone = accuracy_of(alone), alone.r2

    async def _gather(self) -> None:
        """Wait until as many are ready as the task asks for, or for as long as it says; nobody waits for a late one."""
        with trio.move_on_after(self.task.start_wait_s):
            while True:
                changed = self._telling.changed
                records = self._telling.records()
                begun = any(record.state == "training" for record in records.values())
                if begun or self._round > 0 or len(self._telling.members(self._round)) >= self.task.members_min:
                    return
                await changed.wait()

    async def _join(self) -> None:
        """Take the model of whoever is furthest as soon as there is one: a random one would pull the mean down."""
        with trio.move_on_after(self.task.start_wait_s):
            while True:
                changed = self._telling.changed
                ahead = self._joining.ahead(self._round)
                given = await self._joining.take(ahead, round_=self._round)
                if given is not None:
                    self._adopt(given)
                    # The round that it is in has begun without this node, and what was sent in it is lost to it.
                    self._round = self._first_round = min(self._round + 1, self.task.rounds)
                    return
                if not ahead:
                    return
                await changed.wait()

    def _adopt(self, given: Donation) -> None:
        self._trainer.adopt(given.vector)
        self._shared, self._name = given.vector, given.reference
        self._refer_to(Reference(given.reference, given.vector) if given.reference else None)
        self._shares_last = True
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
        self._trainer.hold_zeros(self._round)
        self.progress.loss = await trio.to_thread.run_sync(self._steps.run, self._round)
        if self._ledger is not None:
            self.progress.epsilon = self._ledger.epsilon
        self._tell("training")
        members = tuple(sorted(self._telling.members(self._round)))
        self.progress.members = len(members)
        if self._begun is not None:
            await trio.to_thread.run_sync(self._begun.mark, self._round)
        exchange.begin(Ready(self._round, self._trainer.vector(), float(self._trainer.samples), members))
        while isinstance(came := await exchange.outcome(), Behind):
            ahead = self._joining.really_ahead(PeerId(came.peer), self._round)
            if (given := await self._joining.take(ahead, round_=self._round)) is not None:
                self._adopt(given)
                self._tell("training", force=True)
                exchange.machine.skip_to(self._round)
                return
        self.progress.bytes_sent = exchange.bytes_sent
        await self._finished(came.round, came.vector, came.report)

    def _is_over(self) -> bool:
        """Whether that was the last round, as the budget, the rules and what the others have named say."""
        records, ending = self._telling.records(), self._ending
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

    async def _notice_passed(self, exchange: Exchange) -> None:
        """Read in the records that others have left this node behind: who does not count it in sends it nothing."""
        before: set[tuple[int, PeerId]] = set()
        while True:
            await trio.sleep(_PASSED_S)
            passed = {(self._round, peer) for peer in self._telling.passed(self._round)}
            both = passed & before
            if self.task.policy == "robust" and 2 * len(both) <= len(self._telling.others()):
                both = set()  # what a few say of themselves moves nobody
            for _, peer in sorted(both):
                exchange.notice_passed(peer, by=ROUNDS_AHEAD_MAX + 1)
            before = passed

    async def _finished(self, round_: int, vector: Vector, report: Report) -> None:
        vector = self._pruned(vector, round_ + 1, report)
        self._trainer.adopt(vector, averaged=True)
        if self._begun is None or is_whole(report):  # what is not a sum is this node's own, and not for others
            self._shared, self._name = vector, report.reference
        self._shares_last = report.agreed and len(report.contributors) > 1
        self._round = round_ + 1
        self.progress.round = self._round
        self.progress.deadline_misses += len({absence.peer for absence in report.missing} - {self._mesh.me})
        self._say_what_came_of_it(report)
        for refusal in report.refused:
            text = f"{short(refusal.peer)}'s {refusal.what} was refused: {refusal.why}"
            self._telling.refusal(f"round {round_}: {text}")
        last = self._round >= self._ending.rounds
        if evaluated := await self._keeping.evaluate(self._round, last=last):
            others = [record.score for record in self._telling.others().values()]
            self._ending.evaluated([*others, self.progress.score])
        self._telling.log_round(round_)
        self._on_round(said_of_round(self.progress, evaluated=evaluated))
        await self._keeping.save(self._round, vector, last=last)

    def _pruned(self, vector: Vector, rounds: int, report: Report) -> Vector:
        """Make of a round's model what all who have it make of it, and count differences from that."""
        if self._trainer.sparse is None:
            return vector
        common = is_whole(report) if self._begun is not None else report.agreed
        vector = self._trainer.sparse.thinned(vector, rounds, common=common)
        if common and report.reference:
            self._refer_to(Reference(report.reference, vector))
        return vector

    def _say_what_came_of_it(self, report: Report) -> None:
        self._with |= report.contributors | {self._mesh.me}
        whys = sorted({absence.why for absence in report.missing})
        self._alone_why = "; ".join(whys) or "nobody else took part"
        why = why_nothing(self.task.policy, self._mesh.me, report)
        if why and why != self.progress.reason:
            log.warning("task %s, round %d: nothing was averaged: %s", self.name, report.round, why)
        self.progress.reason = why or self._steps.untrained

    async def _finish(self) -> None:
        if self._begun is not None:
            if self._shared is None:
                raise LeptonError(f"no private round came to a sum here, so there is no model to show: {TOO_FEW}")
            self._trainer.adopt(self._shared)  # what came after the last sum is this node's own
        elif self.task.policy == "trusted" and not self._shares_last:
            await self._take_last()
        await self._keeping.complete(self._round)
        if (sparse := self._trainer.sparse) is not None:
            share = 100 * sparse.share_in(self._trainer.vector())
            log.info("task %s: %.1f %% of the numbers in its large matrices are zeros", self.name, share)
        await self._on_trained(self._trainer)
        if self._with == {self._mesh.me}:
            why = f"it averaged with nobody: {self.progress.reason or self._alone_why}"
            log.warning("task %s is done, but %s", self.name, why)
            self.progress.reason = why
        self._tell("done", force=True)

    async def _take_last(self) -> None:
        """Take the model of someone who is done and whose last round was agreed: what is here is this node's own."""
        asked: set[PeerId] = set()
        with trio.move_on_after(_LAST_MODEL_S):
            while True:
                changed = self._telling.changed
                peers = [peer for peer in self._telling.done() if peer not in asked]
                if (given := await self._joining.take_last(peers, round_=self._round)) is not None:
                    self._adopt(given)
                    self._keeping.forget()
                    self._telling.note(f"the last round was not agreed here: took the model of {short(given.peer)}")
                    return
                asked.update(peers)
                if not peers and not self._telling.anyone_under_way():
                    return
                await changed.wait()

    def _tell(self, state: str, *, force: bool = False) -> None:
        self._telling.tell(
            state, round_=self._round, first_round=self._first_round, last=self._ending.named, force=force
        )
