"""The tasks of one node: starts them, takes part in every one that it has the data and the grant for, publishes.

Which tasks there are is for the picture to say; one ``Learner`` does this node's part in each.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from ...gossip.errors import GossipError
from ...gossip.groups import GROUP_SIZE
from ...gossip.robust import PEERS
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import LeptonError, UsageError, single
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ...mesh.records import Record
from ..config import did_you_mean
from ..files import write_whole
from ..home import Home
from ..inference.view import View
from ..inference.weights import Weights
from ..objective import Objective
from ..picture import PROFILE, TASK, TRAINER, Profile, TaskRecord, TrainerRecord, newest
from ..shapes import ModelSpec, check_sizes
from . import donors, exchange
from .allowed import Factories
from .begun import Begun
from .circle import Circle
from .circles import Circles
from .data import TEST_SEED, TEST_SHARE, Dataset, DataSource, hold_out, outputs_of
from .ledger import Ledger
from .messages import RoundMessage, State, StateWanted
from .policies import CODEC, WORDS, check_policy
from .settings import bits_of
from .task import Task, task_from
from .taught import Teachers
from .telling import Progress, RoundSaid

if TYPE_CHECKING:
    from .learner import Learner
    from .trainer import Trainer

WHOLE: Final = "model.safetensors"  # beside the checkpoints: a trained model that is not served from layers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What came of a task: accuracies on each node's own test part, by peer."""

    task: str
    version: int
    rounds: int
    nodes: Mapping[PeerId, TrainerRecord]

    @property
    def accuracy_worst(self) -> float:
        """The worst node's accuracy; NaN when nobody evaluated."""
        return min((node.accuracy for node in self.nodes.values() if node.accuracy is not None), default=float("nan"))

    @property
    def r2_worst(self) -> float:
        """The worst node's R2, where values are predicted; NaN when nobody evaluated."""
        return min((node.r2 for node in self.nodes.values() if node.r2 is not None), default=float("nan"))


class Tasks:
    """What one node learns, and what it knows of what the others do."""

    def __init__(
        self,
        mesh: Mesh,
        view: View,
        weights: Weights,
        home: Home,
        datasets: Mapping[str, Dataset | DataSource],
        nursery: trio.Nursery,
        factories: Factories,
        teachers: Teachers,
    ) -> None:
        self._mesh, self._view, self._weights, self._home = mesh, view, weights, home
        self._datasets = datasets
        self._factories = factories
        self._teachers = teachers
        self._nursery = nursery
        self._learners: dict[str, Learner] = {}
        self._learning: dict[str, trio.CancelScope] = {}
        self._listening: dict[tuple[str, int], list[Callable[[RoundSaid], None]]] = defaultdict(list)
        self.circles = Circles(mesh, nursery)
        self._serve()

    def profiles(self) -> dict[PeerId, Profile]:
        return {record.owner: profile for record, profile in self._mesh.live(PROFILE, Profile)}

    def _who_has(self, data: str) -> list[PeerId]:
        return sorted(peer for peer, profile in self.profiles().items() if data in profile.data)

    async def wait(
        self, name: str, version: int, on_progress: Callable[[Mapping[PeerId, TrainerRecord]], None] | None = None
    ) -> TrainResult:
        """Wait until this version's model is in the picture and everyone who is here is done with the task.

        A model that is not served never is: there it is enough that all are done.

        Raises LeptonError when this node, or everyone who took part, had to give up.
        """
        while True:
            changed = self._mesh.changed
            nodes = self.trainers(name, version)
            if on_progress is not None:
                on_progress(nodes)
            own = nodes.get(self._mesh.me)
            if own is not None and own.state == "failed":
                raise LeptonError(f"This node could not go on with {name!r}: {own.reason}")
            model = self._view.models().get(name)
            trained = model is not None and model.version >= version
            if nodes and not self._is_served(name, version):
                trained = any(node.state == "done" for node in nodes.values())
            if trained and all(node.state in {"done", "failed"} for node in nodes.values()):
                rounds = max((node.round for node in nodes.values()), default=0)
                return TrainResult(task=name, version=version, rounds=rounds, nodes=nodes)
            failed = nodes and all(node.state == "failed" for node in nodes.values())
            if failed and not trained and (own is not None or not self._takes(name, version)):
                reasons = "; ".join(f"{short(peer)}: {node.reason}" for peer, node in sorted(nodes.items()))
                raise LeptonError(f"No node could go on with {name!r}: {reasons}")
            await changed.wait()

    @contextmanager
    def listening(self, name: str, version: int, on_round: Callable[[RoundSaid], None] | None) -> Iterator[None]:
        """Have each round that this node finishes told, as it does."""
        if on_round is None:
            yield
            return
        self._listening[name, version].append(on_round)
        try:
            yield
        finally:
            self._listening[name, version].remove(on_round)
            if not self._listening[name, version]:
                del self._listening[name, version]

    def _tell_round(self, name: str, version: int, said: RoundSaid) -> None:
        for listener in self._listening.get((name, version), ()):
            listener(said)

    def _is_served(self, name: str, version: int) -> bool:
        """Whether a task's model is served afterwards."""
        return all(task.is_served for _, task in self._stated(name, version))

    def _takes(self, name: str, version: int) -> bool:
        """Whether this node takes part in a task, or will as soon as it has come to it."""
        return any(self._may_take(record, task) for record, task in self._stated(name, version))

    def _stated(self, name: str, version: int) -> list[tuple[Record, TaskRecord]]:
        found = self._mesh.live(TASK, TaskRecord)
        return [(record, task) for record, task in found if record.name == name and task.version == version]

    def trainers(self, name: str, version: int) -> dict[PeerId, TrainerRecord]:
        """Return where everyone who is here stands in a task."""
        return {
            record.owner: trainer
            for record, trainer in self._mesh.live(TRAINER, TrainerRecord)
            if record.name == name and trainer.version == version
        }

    async def start(self, task: Task, *, spec: ModelSpec | None = None) -> TaskRecord:
        """State a task to all; see `Node.train` for what is raised.

        ``spec`` takes the place of its model's description. All is checked again: a program may have made the task
        without `task_from`.
        """
        name, task = task.name, task_from(msgspec.to_builtins(task), f"The task {task.name!r}")
        self._mesh.authority(self._mesh.me).require(f"train:{name}", 0.0)
        have = self._who_has(task.data)
        if not have:
            known = sorted({other for profile in self.profiles().values() for other in profile.data})
            raise UsageError(f"No node that is here has a data set {task.data!r}.{did_you_mean(task.data, known)}")
        if task.distil is not None:
            self._teachers.require(task.distil.teacher)
        if spec is None:
            spec = await trio.to_thread.run_sync(self._spec, task)  # it reads the data file
        check_sizes(spec)
        model = await trio.to_thread.run_sync(self._factories.make, spec)
        from .factories import structure  # they came with the model
        from .shared import Shared
        from .sparse import Sparse
        from .trainer import settings_for

        shared = Shared(model, task.parts)  # do its patterns fit?
        if task.prune is not None:
            Sparse(task.prune, model, shared)  # is there anything to prune?
        learners = [peer for peer in have if self._may(peer, f"train:{name}") and self._makes(peer, spec)]
        versions = [said.version for record, said in self._mesh.live(TASK, TaskRecord) if record.name == name]
        averaging = task.averaging
        stated = TaskRecord(
            spec=spec,
            structure=structure(shared, model) if spec.architecture == "own" else None,
            settings=task.settings(
                settings_for(spec, optimiser=task.train.get("optimiser", "sgd"), taught=task.distil is not None)
            ),
            data=task.data,
            budget=task.budget,
            stop=task.stop,
            parts=task.parts,
            distil=task.distil,
            prune=task.prune,
            policy=task.policy,
            codec=averaging.codec or (WORDS if task.policy == "private" else CODEC),
            group_size=averaging.group_size or GROUP_SIZE,
            peers=averaging.peers or PEERS,
            members_min=averaging.members or max(1, len(learners)),
            start_wait_s=averaging.start_wait_s,
            baseline=task.baseline,
            copies=task.serve.copies,
            version=max(versions, default=0) + 1,
        )
        check_policy(stated, shared.size)
        self._mesh.publish(TASK, name, stated, durable=True)
        return stated

    def _spec(self, task: Task) -> ModelSpec:
        """Describe a model that fits this node's own part of the data."""
        if task.data not in self._datasets:
            msg = f"This node has no data set {task.data!r} to read the model's size from"
            raise UsageError(f"{msg}; start the task on one that has.")
        model = task.model
        announced = model.classes or self._teachers.outputs(task.distil.teacher if task.distil else "")
        dataset = self._dataset(task.data, announced or None, task.objective, task.distil is None)
        return ModelSpec(
            architecture=model.architecture,
            factory=model.factory,
            inputs=dataset.feature_shape,
            classes=outputs_of(dataset, task.objective, announced=announced),
            objective=task.objective,
            hidden=model.hidden,
            hidden_activation=model.hidden_activation,
            seed=task.seed,
        )

    def _dataset(self, name: str, classes: int | None, objective: Objective, labels: bool) -> Dataset:  # noqa: FBT001
        source = self._datasets[name]
        if isinstance(source, DataSource):
            return source.load(classes, objective, labels=labels)
        if labels and not source.labelled:
            raise UsageError(f"The data {name!r} have no labels: their model can only be taught by another ([distil]).")
        return source if source.x_test is not None else hold_out(source, TEST_SHARE, TEST_SEED)

    async def follow(self) -> None:
        """Take part in every task that this node has the data and the grant for."""
        taken: dict[str, int] = {}
        while True:
            changed = self._mesh.changed
            done = {name: model.version for name, model in self._view.models().items()}
            for name, (record, task) in newest(self._mesh.live(TASK, TaskRecord)).items():
                over = task.version <= max(done.get(name, 0), taken.get(name, 0))
                if not over and self._may_take(record, task):
                    taken[name] = task.version
                    if name in self._learning:
                        self._learning[name].cancel()  # a newer version of the task takes the place of the older
                    self._learning[name] = scope = trio.CancelScope()
                    self._nursery.start_soon(self._learn, scope, name, record.owner, task)
            await changed.wait()

    def _may_take(self, record: Record, task: TaskRecord) -> bool:
        """Whether this node has the data and the grant for a task, and whoever started it the grant."""
        return (
            record.name not in self.circles.open
            and task.data in self._datasets
            and self._may(self._mesh.me, f"train:{record.name}")
            and self._may(record.owner, f"train:{record.name}")
        )

    def _makes(self, peer: PeerId, spec: ModelSpec) -> bool:
        """Whether a peer can build this model, as its profile says."""
        return spec.architecture != "own" or spec.factory in self.profiles()[peer].models

    def _may(self, peer: PeerId, capability: str) -> bool:
        """Whether a peer has the grant for something; false for one that is not known."""
        try:
            return self._mesh.authority(peer).allows(capability)
        except KeyError:
            return False

    async def _learn(self, scope: trio.CancelScope, name: str, owner: PeerId, task: TaskRecord) -> None:
        async def trained(trainer: "Trainer") -> None:
            await self._publish(name, owner, task, trainer)

        with scope:
            try:
                dataset = await trio.to_thread.run_sync(
                    self._dataset, task.data, task.spec.classes, task.spec.objective, task.distil is None
                )
                if task.distil is not None:
                    folder = self._home.folder("tasks", name, str(task.version))
                    dataset = await self._teachers.taught(name, task, dataset, folder)
                make = functools.partial(self._learner_of, name, task, dataset, on_trained=trained)
                learner = await trio.to_thread.run_sync(make)  # to find out how much noise is needed takes a while
                self._learners[name] = learner
                await learner.run()
            except BaseExceptionGroup as group:
                ours, foreign = group.split((LeptonError, GossipError))
                if ours is not None:
                    self._give_up(name, task, single(ours))
                if foreign is not None:  # also: this node stops just now
                    raise foreign from None
            except (LeptonError, GossipError) as error:
                self._give_up(name, task, error)

    def _learner_of(
        self,
        name: str,
        task: TaskRecord,
        dataset: Dataset,
        *,
        on_trained: Callable[["Trainer"], Awaitable[None]],
    ) -> "Learner":
        from .checkpoint import CheckpointStore  # torch, in the thread that needs it
        from .learner import Learner

        checkpoints = CheckpointStore(self._home.folder("tasks", name, str(task.version)))
        dp, ledger = task.settings.dp, None
        if dp is not None:
            ledger = Ledger(self._home.folder("privacy", name) / f"{task.version}.json", dp)
        begun = None
        if task.policy == "private":
            begun = Begun(self._home.folder("begun") / f"{name}.{task.version}")
        return Learner(
            self._mesh, name, task, dataset, checkpoints,
            begun=begun, make_model=self._factories.make, on_trained=on_trained, ledger=ledger,
            on_round=functools.partial(self._tell_round, name, task.version),
        )  # fmt: skip

    def _give_up(self, name: str, task: TaskRecord, error: BaseException) -> None:
        log.error("task %s: %s", name, error)
        self._mesh.publish(TRAINER, name, TrainerRecord(state="failed", version=task.version, reason=str(error)[:1000]))

    async def _publish(self, name: str, owner: PeerId, task: TaskRecord, trainer: "Trainer") -> None:
        """Keep the trained layers; the task's owner makes them the model to serve, or whoever comes first after it."""
        from safetensors.torch import save  # who has trained has torch

        from ..models import build
        from .shared import Shared

        if task.spec.architecture == "own":
            path = self._home.folder("tasks", name, str(task.version)) / WHOLE
            await trio.to_thread.run_sync(lambda: write_whole(path, save(trainer.tensors())))
            log.info("task %s: the trained model is in %s", name, path)
        if not task.is_served:
            return  # a model without its personal layers is of no use to others, and they never leave
        chain = build(task.spec)
        Shared(chain, task.parts).write(trainer.vector())
        if bits := bits_of(task.settings):
            from ..compression.straight import Straight

            Straight(chain, bits).settle()
        self._weights.keep(task.spec, chain, bits=bits)
        self._nursery.start_soon(self._publish_when_due, name, owner, task, chain)

    async def _publish_when_due(self, name: str, owner: PeerId, task: TaskRecord, chain: Any) -> None:  # noqa: ANN401
        while True:
            changed = self._mesh.changed
            model = self._view.models().get(name)
            if model is not None and model.version >= task.version:
                return
            taking_part = {
                peer for peer, trainer in self.trainers(name, task.version).items() if trainer.state != "failed"
            }
            first = owner if owner in taking_part else min(taking_part, default=self._mesh.me)
            if first == self._mesh.me:
                bits = bits_of(task.settings)
                self._weights.publish(name, task.spec, chain, version=task.version, copies=task.copies, bits=bits)
                return
            await changed.wait()

    def _serve(self) -> None:
        self._mesh.calls.serve(
            Method(
                name=exchange.METHOD, needs="train", takes=Empty, handler=self._take_rounds, kind="client_stream",
                items=RoundMessage, body_bytes_max=exchange.MESSAGE_BYTES_MAX,
            ),
            Method(name=donors.METHOD, needs="train", takes=StateWanted, handler=self._give_state),
        )  # fmt: skip
        self._mesh.on_absent.append(self._peer_left)

    async def _take_rounds(self, call: Incoming[Empty]) -> None:
        await self._part_in(call.scope).take_messages(call)

    async def _give_state(self, call: Incoming[StateWanted]) -> Answer[State]:
        return self._part_in(call.scope).give_state(call)

    def _part_in(self, task: str) -> "Learner | Circle":
        part = self.circles.open.get(task) or self._learners.get(task)
        if part is None:
            raise UsageError(f"This node takes no part in the task {task!r}.")
        return part

    def _peer_left(self, peer: PeerId) -> None:
        parts: list[Learner | Circle] = [*self._learners.values(), *self.circles.open.values()]
        for part in parts:
            part.peer_left(peer)

    def progress(self, task: str) -> Progress | None:
        """Return where this node stands in a task that it takes part in."""
        learner = self._learners.get(task)
        return learner.progress if learner is not None else None
