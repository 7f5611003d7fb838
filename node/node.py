"""The node: one device's place in a mesh, and what a program can do with it. The embedding API.

async with Node("~/.lepton") as node:
    result = await node.train("digits", data="digits", model="mlp", rounds=60)
    probabilities = await node.predict("digits", x)
"""

import functools
import logging
import platform
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
import trio

from ..gossip.codecs import codec
from ..gossip.errors import GossipError, UnknownCodec
from ..mesh.calls import Answer, Empty, Incoming, Method
from ..mesh.errors import LeptonError, LinkError, UsageError
from ..mesh.grants import allows
from ..mesh.identity import PeerId, short
from ..mesh.mesh import Mesh, MeshConfig, open_mesh
from ..mesh.messages import Name
from ..mesh.records import RecordStore
from .blobs import BlobStore
from .config import Config, did_you_mean, load_config
from .home import Home
from .inference.requests import Requests
from .inference.serving import Serving
from .inference.view import View
from .inference.weights import Weights
from .learning.checkpoint import CheckpointStore
from .learning.data import TEST_SEED, TEST_SHARE, DataFile, Dataset, data_file, hold_out
from .learning.learner import Learner, Progress
from .learning.messages import RoundMessage, State, StateWanted
from .learning.trainer import Trainer, TrainSettings, settings_for
from .models import ModelSpec, build, check_spec, load_vector
from .picture import PROFILE, TASK, TRAINER, ModelRecord, Profile, TaskRecord, TrainerRecord, newest

_SAVE_INTERVAL_S: Final = 2.0
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

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


class Node:
    """One device. Use it as ``async with Node(folder) as node``; everything it started ends with the block."""

    def __init__(
        self,
        home: str | Path,
        *,
        config: Config | None = None,
        data: Mapping[str, Dataset | str | Path] | None = None,
        **overrides: Any,  # noqa: ANN401 - the keys of node.toml, checked by load_config
    ) -> None:
        """Take the folder's configuration; keyword arguments override keys of `node.toml`.

        ``data`` names data sets that exist in memory, or files. Raises UsageError that names what is wrong.
        """
        self.home = Home(home)
        self.config = config or load_config(self.home.path / "node.toml", overrides)
        self._datasets: dict[str, Dataset | DataFile] = {
            name: data_file(text, self.home.path) for name, text in self.config.data.items()
        }
        for name, given in (data or {}).items():
            _require_name(name, "data set")
            self._datasets[name] = given if isinstance(given, Dataset) else data_file(str(given), Path())
        self._learners: dict[str, Learner] = {}
        self._learning: dict[str, trio.CancelScope] = {}
        self._stack = AsyncExitStack()
        self.mesh: Mesh
        self.view: View
        self.weights: Weights
        self.serving: Serving
        self.requests: Requests
        self._nursery: trio.Nursery
        self._mesh_name = ""

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            await self._stack.enter_async_context(self._running())
        except BaseExceptionGroup as group:
            raise _single(group) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._stack.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise _single(group) from None

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        identity, credentials = self.home.identity(), self.home.credentials()
        memory_bytes = self.config.memory_bytes
        for source in self._datasets.values():  # a wrong file is told now, not when a task comes
            if isinstance(source, DataFile):
                await trio.to_thread.run_sync(source.load)
        with self.home.locked():
            store = RecordStore(identity, self.home.next_incarnation(), self.home.records())
            invites = self.home.invites()
            mesh_config = MeshConfig(listen=self.config.listen, interfaces=self.config.interfaces)
            async with (
                open_mesh(identity, credentials, store, invites, mesh_config) as mesh,
                trio.open_nursery() as nursery,
            ):
                mesh.door.on_invite_used = lambda: self.home.save_invites(invites)
                self.mesh, self._nursery, self._mesh_name = mesh, nursery, credentials.mesh_name
                self.view = View(mesh)
                self.weights = Weights(mesh, self.view, BlobStore(self.home.folder("blobs")))
                self.serving = Serving(mesh, self.view, self.weights, memory_bytes)
                self.requests = Requests(mesh, self.view)
                self._serve_learning()
                mesh.publish(
                    PROFILE,
                    "self",
                    Profile(device=self.device, memory_bytes=memory_bytes, data=tuple(sorted(self._datasets))),
                )
                nursery.start_soon(self.serving.run)
                nursery.start_soon(self.requests.run)
                nursery.start_soon(self._follow_tasks)
                nursery.start_soon(self._keep_records)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
                    self.home.save_records(store.durable())

    @property
    def device(self) -> str:
        """What people call this device."""
        return self.config.name or platform.node() or "device"

    # -- joining --------------------------------------------------------------------------------------------------

    def invite(self, *, role: str = "member", uses: int = 1, lifetime_s: float = 3600.0) -> str:
        """Open an invite and return its code. Raises Refused when this node may not, UsageError for bad values."""
        invite = self.mesh.invite(self._mesh_name, role=role, uses=uses, lifetime_s=lifetime_s)
        self.home.save_invites(self.mesh.door.invites)
        return invite.code()

    # -- learning -------------------------------------------------------------------------------------------------

    async def train(
        self,
        name: str,
        *,
        data: str,
        model: str | ModelSpec = "mlp",
        rounds: int = 60,
        settings: TrainSettings | None = None,
        codec_name: str = "int8",
        members_min: int | None = None,
        baseline: bool = False,
        copies: int = 2,
        hidden: int = 64,
        hidden_activation: str = "sigmoid",
        classes: int | None = None,
        seed: int = 0,
        on_progress: Callable[[Mapping[PeerId, TrainerRecord]], None] | None = None,
    ) -> TrainResult:
        """Start a task with every node that has a data set of this name, and wait until its model is there.

        ``model`` is an architecture ("mlp", "cnn") or a whole description. Raises UsageError for bad values, Refused
        without the grant, LeptonError when this node's own part failed.
        """
        task = await self._task(
            name,
            data=data,
            model=model,
            rounds=rounds,
            settings=settings,
            codec_name=codec_name,
            members_min=members_min,
            baseline=baseline,
            copies=copies,
            hidden=hidden,
            hidden_activation=hidden_activation,
            classes=classes,
            seed=seed,
        )
        self.mesh.publish(TASK, name, task, durable=True)
        return await self.wait_trained(name, task.version, on_progress)

    async def wait_trained(
        self, name: str, version: int, on_progress: Callable[[Mapping[PeerId, TrainerRecord]], None] | None = None
    ) -> TrainResult:
        """Wait until this version's model is in the picture and everyone who is here is done with the task.

        Raises LeptonError when this node, or everyone who took part, had to give up.
        """
        while True:
            changed = self.mesh.changed
            nodes = self.trainers(name, version)
            if on_progress is not None:
                on_progress(nodes)
            own = nodes.get(self.mesh.me)
            if own is not None and own.state == "failed":
                raise LeptonError(f"This node could not go on with {name!r}: {own.reason}")
            model = self.view.models().get(name)
            trained = model is not None and model.version >= version
            if trained and all(node.state in {"done", "failed"} for node in nodes.values()):
                rounds = max((node.round for node in nodes.values()), default=0)
                return TrainResult(task=name, version=version, rounds=rounds, nodes=nodes)
            if nodes and not trained and all(node.state == "failed" for node in nodes.values()):
                reasons = "; ".join(f"{short(peer)}: {node.reason}" for peer, node in sorted(nodes.items()))
                raise LeptonError(f"No node could go on with {name!r}: {reasons}")
            await changed.wait()

    def trainers(self, name: str, version: int) -> dict[PeerId, TrainerRecord]:
        """Return where everyone who is here stands in a task."""
        return {
            record.owner: trainer
            for record, trainer in self.mesh.live(TRAINER, TrainerRecord)
            if record.name == name and trainer.version == version
        }

    async def _task(
        self,
        name: str,
        *,
        data: str,
        model: str | ModelSpec,
        rounds: int,
        settings: TrainSettings | None,
        codec_name: str,
        members_min: int | None,
        baseline: bool,
        copies: int,
        hidden: int,
        hidden_activation: str,
        classes: int | None,
        seed: int,
    ) -> TaskRecord:
        _require_name(name, "task")
        self.mesh.authority(self.mesh.me).require(f"train:{name}", 0.0)
        have = self._who_has(data)
        if not have:
            known = sorted({other for profile in self._profiles().values() for other in profile.data})
            raise UsageError(f"No node that is here has a data set {data!r}.{did_you_mean(data, known)}")
        learners = [peer for peer in have if self._may(peer, f"train:{name}")]
        if isinstance(model, ModelSpec):
            spec = model
        else:
            described = functools.partial(
                self._spec, data, model, hidden=hidden, hidden_activation=hidden_activation, classes=classes, seed=seed
            )
            spec = await trio.to_thread.run_sync(described)  # it reads the data file
        check_spec(spec)
        try:
            codec(codec_name)
        except UnknownCodec as error:
            raise UsageError(str(error)) from error
        versions = [task.version for record, task in self.mesh.live(TASK, TaskRecord) if record.name == name]
        task = TaskRecord(
            spec=spec,
            settings=settings or settings_for(spec, seed=seed),
            data=data,
            rounds=rounds,
            codec=codec_name,
            members_min=members_min if members_min is not None else max(1, len(learners)),
            baseline=baseline,
            copies=copies,
            version=max(versions, default=0) + 1,
        )
        try:
            return msgspec.convert(msgspec.to_builtins(task), TaskRecord)
        except msgspec.ValidationError as error:
            raise UsageError(f"The task {name!r} is not valid: {error}.") from error

    def _spec(
        self, data: str, architecture: str, *, hidden: int, hidden_activation: str, classes: int | None, seed: int
    ) -> ModelSpec:
        """Describe a model that fits this node's own part of the data."""
        if data not in self._datasets:
            msg = f"This node has no data set {data!r} to read the model's size from; start the task on one that has."
            raise UsageError(msg)
        dataset = self._dataset(data, classes)
        described = {
            "architecture": architecture,
            "inputs": dataset.feature_shape,
            "classes": max(classes or 0, dataset.classes),
            "hidden": hidden,
            "hidden_activation": hidden_activation,
            "seed": seed,
        }
        try:
            return msgspec.convert(described, ModelSpec)
        except msgspec.ValidationError as error:
            raise UsageError(f"There is no such model: {error}. Architectures are 'mlp' and 'cnn'.") from error

    def _dataset(self, name: str, classes: int | None) -> Dataset:
        source = self._datasets[name]
        if isinstance(source, DataFile):
            return source.load(classes)
        return source if source.x_test is not None else hold_out(source, TEST_SHARE, TEST_SEED)

    def _profiles(self) -> dict[PeerId, Profile]:
        return {record.owner: profile for record, profile in self.mesh.live(PROFILE, Profile)}

    def _who_has(self, data: str) -> list[PeerId]:
        return sorted(peer for peer, profile in self._profiles().items() if data in profile.data)

    async def _follow_tasks(self) -> None:
        """Take part in every task that this node has the data and the grant for."""
        mine = self.mesh.authority(self.mesh.me).capabilities
        taken: dict[str, int] = {}
        while True:
            changed = self.mesh.changed
            done = {name: model.version for name, model in self.view.models().items()}
            for name, (record, task) in newest(self.mesh.live(TASK, TaskRecord)).items():
                over = task.version <= max(done.get(name, 0), taken.get(name, 0))
                if (
                    not over
                    and task.data in self._datasets
                    and allows(mine, f"train:{name}")
                    and self._may(record.owner, f"train:{name}")  # whoever started it
                ):
                    taken[name] = task.version
                    if name in self._learning:
                        self._learning[name].cancel()  # a newer version of the task takes the place of the older
                    self._learning[name] = scope = trio.CancelScope()
                    self._nursery.start_soon(self._learn, scope, name, record.owner, task)
            await changed.wait()

    def _may(self, peer: PeerId, capability: str) -> bool:
        """Whether a peer has the grant for something; false for one that is not known."""
        try:
            return self.mesh.authority(peer).allows(capability)
        except KeyError:
            return False

    async def _learn(self, scope: trio.CancelScope, name: str, owner: PeerId, task: TaskRecord) -> None:
        async def trained(trainer: Trainer) -> None:
            await self._publish(name, owner, task, trainer)

        with scope:
            try:
                dataset = await trio.to_thread.run_sync(self._dataset, task.data, task.spec.classes)
                checkpoints = CheckpointStore(self.home.folder("tasks", name, str(task.version)))
                learner = Learner(self.mesh, name, task, dataset, checkpoints, on_trained=trained)
                self._learners[name] = learner
                await learner.run()
            except BaseExceptionGroup as group:
                error = _single(group)
                if not isinstance(error, LeptonError | GossipError):
                    raise
                self._give_up(name, task, error)
            except (LeptonError, GossipError) as error:
                self._give_up(name, task, error)

    def _give_up(self, name: str, task: TaskRecord, error: BaseException) -> None:
        log.error("task %s: %s", name, error)
        self.mesh.publish(TRAINER, name, TrainerRecord(state="failed", version=task.version, reason=str(error)[:1000]))

    async def _publish(self, name: str, owner: PeerId, task: TaskRecord, trainer: Trainer) -> None:
        """Keep the trained layers; the task's owner makes them the model to serve, or whoever comes first after it."""
        chain = build(task.spec)
        load_vector(chain, trainer.vector())
        self.weights.keep(task.spec, chain)
        self._nursery.start_soon(self._publish_when_due, name, owner, task, chain)

    async def _publish_when_due(self, name: str, owner: PeerId, task: TaskRecord, chain: Any) -> None:  # noqa: ANN401
        while True:
            changed = self.mesh.changed
            model = self.view.models().get(name)
            if model is not None and model.version >= task.version:
                return
            taking_part = {
                peer for peer, trainer in self.trainers(name, task.version).items() if trainer.state != "failed"
            }
            first = owner if owner in taking_part else min(taking_part, default=self.mesh.me)
            if first == self.mesh.me:
                self.weights.publish(name, task.spec, chain, version=task.version, copies=task.copies)
                return
            await changed.wait()

    def _serve_learning(self) -> None:
        self.mesh.calls.serve(
            Method(
                name="train.round", needs="train", takes=RoundMessage, handler=self._take_round,
                body_bytes_max=_ANSWER_BYTES_MAX,
            ),
            Method(name="train.state", needs="train", takes=StateWanted, handler=self._give_state),
        )  # fmt: skip
        self.mesh.on_absent.append(self._peer_left)

    async def _take_round(self, call: Incoming[RoundMessage]) -> Answer[Empty]:
        return self._learner(call.scope).take_message(call)

    async def _give_state(self, call: Incoming[StateWanted]) -> Answer[State]:
        return self._learner(call.scope).give_state(call)

    def _learner(self, task: str) -> Learner:
        if task not in self._learners:
            raise UsageError(f"This node takes no part in the task {task!r}.")
        return self._learners[task]

    def _peer_left(self, peer: PeerId) -> None:
        for learner in self._learners.values():
            learner.peer_left(peer)

    # -- answering ------------------------------------------------------------------------------------------------

    async def predict(self, model: str, x: Sequence[Any] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the class probabilities, float32 (B, classes), of samples (B, *inputs), answered by the mesh.

        Raises UsageError for an unknown model or another shape, LinkError when nobody could answer in time.
        """
        return await self.requests.predict(model, np.asarray(x, dtype=np.float32))

    async def wait_served(self, model: str, *, timeout_s: float = 60.0) -> None:
        """Wait until every layer of a model is loaded somewhere. Raises LinkError that says what is missing."""
        with trio.move_on_after(timeout_s):
            while not self.is_served(model):
                changed = self.mesh.changed
                if not self.is_served(model):
                    await changed.wait()
            return
        why = self.serving.trouble.get(model, "its layers are not all loaded")
        raise LinkError(f"The model {model!r} is not served after {timeout_s:g} s: {why}.")

    def is_served(self, name: str) -> bool:
        """Whether every layer of a model is loaded somewhere, as many times as its plan says."""
        model = self.view.models().get(name)
        plan = self.view.plans().get(name)
        if model is None or plan is None or not plan.stages:
            return False
        serving = self.view.serving(name, model.version)
        return all(set(plan.replicas(stage)) <= set(serving.get(stage, ())) for stage in plan.stages)

    # -- seeing ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what this node knows, as plain data: mesh, peers, models, tasks, refusals."""
        profiles = self._profiles()
        return {
            "mesh": self._mesh_name,
            "mesh_id": self.mesh.root,
            "me": self.mesh.me,
            "addresses": list(self.mesh.addresses),
            "capabilities": list(self.mesh.authority(self.mesh.me).capabilities),
            "peers": [
                {
                    "id": peer,
                    "device": profiles[peer].device if peer in profiles else "?",
                    "memory_bytes": profiles[peer].memory_bytes if peer in profiles else 0,
                    "data": list(profiles[peer].data) if peer in profiles else [],
                    "here": peer == self.mesh.me,
                }
                for peer in sorted({self.mesh.me, *self.mesh.present})
            ],
            "models": [self._model_status(name, model) for name, model in sorted(self.view.models().items())],
            "tasks": [
                {"name": name, "version": task.version, "rounds": task.rounds, "nodes": {
                    peer: msgspec.to_builtins(trainer) for peer, trainer in self.trainers(name, task.version).items()
                }}
                for name, (_, task) in sorted(newest(self.mesh.live(TASK, TaskRecord)).items())
            ],
            "refusals": dict(self.mesh.refusals),
            "requests": {
                "asked": self.requests.counts.asked,
                "failed": self.requests.counts.failed,
                "rerouted": self.requests.counts.reroutes,
                "stages_run": self.serving.pieces_done,
            },
        }  # fmt: skip

    def _model_status(self, name: str, model: ModelRecord) -> dict[str, Any]:
        serving = self.view.serving(name, model.version)
        return {
            "name": name,
            "version": model.version,
            "layers": len(model.layers),
            "served": self.is_served(name),
            "stages": [
                {"first": first, "end": end, "peers": sorted(peers)} for (first, end), peers in sorted(serving.items())
            ],
            "trouble": self.serving.trouble.get(name, ""),
        }

    def progress(self, task: str) -> Progress | None:
        """Return where this node stands in a task that it takes part in."""
        learner = self._learners.get(task)
        return learner.progress if learner is not None else None

    async def _keep_records(self) -> None:
        """Save what must outlive this process, soon after it changes."""
        saved: list[Any] | None = None
        while True:
            changed = self.mesh.changed
            durable = self.mesh.store.durable()
            if durable != saved:
                await trio.to_thread.run_sync(self.home.save_records, durable)
                saved = durable
                await trio.sleep(_SAVE_INTERVAL_S)
            else:
                await changed.wait()


def _require_name(name: str, what: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        msg = f"{name!r} cannot name a {what}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first."
        raise UsageError(msg) from error


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception inside nested groups, so that callers can catch what they know; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
