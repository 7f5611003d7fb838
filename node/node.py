"""The node: one device's place in a mesh, and what a program can do with it. The embedding API.

async with Node("~/.lepton") as node:
    result = await node.train("digits", data="digits", model="mlp", rounds=60)
    probabilities = await node.predict("digits", x)
"""

import logging
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar, TypeVarTuple, overload

import msgspec
import numpy as np
import trio

from ..mesh.errors import LinkError, UsageError, single
from ..mesh.identity import PeerId
from ..mesh.mesh import Mesh, MeshConfig, open_mesh
from ..mesh.records import RecordStore
from .authority import current_credentials, known_members, revoke_running, show_running, thrown_out
from .background import call, in_background
from .blobs.naming import Naming
from .blobs.sharing import Blobs
from .blobs.store import BlobStore
from .config import Config, load_config, require_name
from .deployed import described, is_loaded, passed_over
from .deploying import Deploying
from .deployments import Activations, DeploymentRecord, Precision
from .deployments import Objective as Aim
from .diagnosis.checkup import Checkup
from .encoders import Encoders
from .generation.sessions import Sessions
from .home import Home
from .inference.planner import Planner
from .inference.requests import Requests
from .inference.serving import Serving
from .inference.traced import Programs
from .inference.weights import Weights
from .learning.allowed import Factories
from .learning.data import Dataset, DataSource, data_source
from .learning.settings import Policy, TrainSettings, as_said
from .learning.task import Task, task_from
from .learning.tasks import Tasks, TrainResult
from .learning.taught import Teachers
from .learning.telling import Progress, RoundSaid
from .links import LINKS, LinksRecord, coarse_links
from .members import named
from .objective import Objective
from .picture import CIRCLE, PROFILE, TASK, CircleRecord, ModelRecord, Profile, TaskRecord, TrainerRecord, newest
from .placement import Plan
from .planning import SPEED
from .release import release
from .seeing.audit import invited
from .seeing.recent import RecentLog, kept
from .seeing.request import entering
from .seeing.seeing import Seeing
from .seeing.traces import tracing
from .services.bundling.environment import ENVIRONMENTS, make_environment
from .services.bundling.reflecting import describe
from .services.calling.client import Client, Stream
from .services.hosting import Instances
from .services.instances.pool import open_pool
from .services.outward import MeshOfInstances
from .services.services import Services
from .services.spec import Where
from .shapes import ModelSpec
from .speed import cache_file, known_speed, load_or_measure
from .stages import StageLoader
from .texts import TextModel, Texts
from .tokenizing import Tokenizers
from .web.dashboard.app import Dashboard
from .web.opening import Web, open_web
from .web.services import Services as WebServices
from .web.vital import vital_routes

if TYPE_CHECKING:
    from torch import Tensor, nn

_MEMBERS_INTERVAL_S: Final = 10.0  # what devices are called changes seldom; it is also saved at the end
_LINKS_INTERVAL_S: Final = 30.0  # each neighbour of a small mesh has been probed some times by then
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024

P = ParamSpec("P")
T = TypeVar("T")
Args = TypeVarTuple("Args")

log = logging.getLogger(__name__)


class Node:
    """One device. Use it as ``async with Node(folder) as node``; everything it started ends with the block."""

    def __init__(
        self,
        home: str | Path,
        *,
        config: Config | None = None,
        data: Mapping[str, Dataset | str | Path] | None = None,
        models: Sequence[str] = (),
        **overrides: Any,  # noqa: ANN401 - the keys of node.toml, checked by load_config
    ) -> None:
        """Take the folder's configuration; keyword arguments override keys of `node.toml`.

        ``data`` names data sets that exist in memory, or files; ``models`` functions of your own
        (``package.module:factory``) that tasks may train, besides those of the configuration. Raises UsageError that
        names what is wrong.
        """
        self.home = Home(home)
        self.config = config or load_config(self.home.path / "node.toml", overrides)
        self._datasets: dict[str, Dataset | DataSource] = {
            name: data_source(text, self.home.path) for name, text in self.config.data.items()
        }
        for name, given in (data or {}).items():
            require_name(name, "data set")
            self._datasets[name] = given if isinstance(given, Dataset) else data_source(str(given), Path())
        self.seeing = Seeing(self.home)
        self.factories = Factories([*self.config.models.allow, *models])
        self._stack = AsyncExitStack()
        self.mesh: Mesh
        self.recent: RecentLog
        self.view: Planner
        self.blobs: Blobs
        self.weights: Weights
        self.serving: Serving
        self.requests: Requests
        self.tasks: Tasks
        self.sessions: Sessions
        self.texts: Texts
        self.deploying: Deploying
        self.services: Services
        self.web: Web | None = None
        self.dashboard: Dashboard
        self._nursery: trio.Nursery
        self._mesh_name = ""
        self._token: trio.lowlevel.TrioToken | None = None

    @classmethod
    def in_background(cls, home: str | Path, **options: Any) -> AbstractContextManager[Self]:  # noqa: ANN401
        """Run a node in a thread, for scripts and notebooks: ``with Node.in_background(folder) as node:``.

        Takes what `Node` takes. Reach it by `call`. It ends with the block, which raises what went wrong in it.
        """
        return in_background(cls(home, **options))

    @overload
    def call(self, function: str, /, *args: object, **options: object) -> Coroutine[Any, Any, Any]: ...
    @overload
    def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **options: P.kwargs) -> T: ...
    @overload
    def call(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T: ...
    def call(self, function: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """Call a service of the mesh: ``await node.call("detector.detect", frame, least=0.7)``.

        Gives plain data and numpy arrays; `client` gives the author's own types. A parameter that is an asynchronous
        iterator is a client stream. Its time is the method's own, or less where a cancel scope says so. Raises
        UsageError for what does not fit, ServiceError for what the service raised, Refused without the grant
        service:NAME; NotHere or Busy when nobody took it in time, so it did not run; TooLate, InstanceLost or
        Uncertain when it is not known whether it ran.

        Or, from another thread, run a function of this node, as in ``node.call(node.predict, "digits", x)``, or in
        ``node.call(node.call, "detector.detect", frame)``. Raises what it raises; LeptonError when the node is closed
        meanwhile.
        """
        if isinstance(function, str):
            return self.services.clients.call(function, args, options)
        return call(self._token, function, *args, **options)

    def stream(self, method: str, /, *args: object, **options: object) -> Stream:
        """Iterate over what a service streams: ``async for alarm in node.stream("detector.watch", "yard"):``.

        Leave it early under ``async with``: that ends it. Raises like `call`, behind the last item that came.
        """
        return self.services.clients.stream(method, args, options)

    def client(
        self,
        service: type[Any] | str,
        *,
        version: str = "",
        timeout_s: float | None = None,
        where: Where = "anywhere",
    ) -> Client:
        """Return something with the methods of a service: ``await node.client(Detector).detect(frame)``.

        With the author's class parameters are checked here and results are of the types that its annotations name; with
        the service's name they are plain data. ``version`` insists on a release. With ``where="here"`` only instances
        on this device are asked: what is given to them does not leave it, and NotHere is raised where none runs.
        """
        return self.services.clients.client(service, version=version, timeout_s=timeout_s, where=where)

    async def run_loop(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run a training loop that is not asynchronous, in a thread, so that the node goes on beside it.

        Cancelled, it ends at the next round of a `GossipOptimizer` in it.
        """
        return await trio.to_thread.run_sync(function, *args)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            await self._stack.enter_async_context(self._running())
        except BaseExceptionGroup as group:
            raise single(group) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._stack.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise single(group) from None

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        identity, credentials = self.home.identity(), current_credentials(self.home, time.time())
        memory_bytes = self.config.memory_bytes
        self._token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self.factories.load)
        for source in self._datasets.values():  # a wrong file is told now, not when a task comes
            if isinstance(source, DataSource) and (why := await trio.to_thread.run_sync(source.check)):
                log.warning("%s", why)
        with self.home.locked(), kept() as self.recent:
            store = RecordStore(identity, self.home.next_incarnation(), self.home.records())
            invites = self.home.invites()
            mesh_config = MeshConfig(
                listen=self.config.listen, interfaces=self.config.interfaces, bootstrap=self.config.bootstrap
            )
            async with (
                open_mesh(
                    identity,
                    credentials,
                    store,
                    invites,
                    mesh_config,
                    revocations=self.home.revocations(),
                    root=self.home.root(),
                    keep=self.home.save_records,
                ) as mesh,
                trio.open_nursery() as nursery,
            ):
                mesh.revoking.keep(self.home.save_revocations)
                mesh.revoking.before_fall = lambda: self.home.save_members(known_members(self.home, mesh))
                mesh.renewing.save = self.home.save_chain
                mesh.admission.learn(
                    {PeerId(known.peer): known.chain for known in self.home.members() if known.chain}, time.time()
                )
                mesh.door.on_invites_changed = lambda: self.home.save_invites(invites)
                self.mesh, self._nursery, self._mesh_name = mesh, nursery, credentials.mesh_name
                self.seeing.attach(mesh)
                Checkup(mesh)  # answers peers
                self.view = Planner(mesh)
                blob_store = BlobStore(self.home.folder("blobs"), disk_bytes_max=self.config.blobs_bytes)
                naming = Naming(self.view, blob_store)
                self.blobs = Blobs(mesh, blob_store, naming)
                self.weights = Weights(mesh, self.view, self.blobs)
                programs = Programs(self.blobs)
                self.serving = Serving(mesh, self.view, self.weights, programs, memory_bytes)
                self.requests = Requests(mesh, self.view, programs)
                teachers = Teachers(mesh=mesh, view=self.view, requests=self.requests)
                self.tasks = Tasks(
                    mesh, self.view, self.weights, self.home, self._datasets, nursery, self.factories, teachers
                )
                self.sessions = Sessions(
                    mesh,
                    self.view,
                    StageLoader(self.blobs).load,
                    memory_bytes=memory_bytes,
                    measures=self.seeing.measures,
                )
                tokenizers = Tokenizers(self.blobs)
                encoders = Encoders(self.view, programs, tokenizers, self.predict)
                self.texts = Texts(self.view, self.sessions.generator, tokenizers, encoders, self._trouble)
                self.deploying = Deploying(mesh, self.view, self.blobs.store, self.home.folder("programs"))
                folder = self.home.folder("services")
                self.services = Services(
                    mesh,
                    self.config.services,
                    folder,
                    blob_store,
                    naming,
                    partial(describe, environments=folder / ENVIRONMENTS),
                    pool=self._open_pool,
                    environment=partial(make_environment, cache=folder / ENVIRONMENTS),
                    measures=self.seeing.measures,
                )
                mesh.publish(
                    PROFILE,
                    "self",
                    Profile(
                        device=self.device,
                        memory_bytes=memory_bytes,
                        data=tuple(sorted(self._datasets)),
                        models=self.factories.names,
                    ),
                )
                for work in (
                    self.view.run,
                    self.serving.run,
                    self.requests.run,
                    self.sessions.run,
                    self.tasks.follow,
                    self.services.run,
                    self._keep_members,
                    self._tell_speed,
                    self._tell_links,
                ):
                    nursery.start_soon(work)
                nursery.start_soon(self.seeing.run, self)
                try:
                    async with self._open_to_programs():
                        yield
                finally:
                    nursery.cancel_scope.cancel()
                    self.home.save_records(store.durable())
                    self.home.save_members(known_members(self.home, mesh))

    def _open_pool(self, logs: Path) -> AbstractAsyncContextManager[Instances]:
        """Open what runs instances of services; they ask the mesh through this node."""
        return open_pool(logs, MeshOfInstances(self.services.clients, self.predict, self.model))

    @asynccontextmanager
    async def _open_to_programs(self) -> AsyncIterator[None]:
        """Answer over HTTP as configured, until the block ends."""
        self.dashboard = Dashboard(self)
        services = WebServices(self.services.calling, mesh=self._mesh_name)
        with tracing(self.mesh.me, self.device), self.seeing.running(release()):
            async with open_web(
                self.texts,
                self.config.web,
                self.home,
                owner=self._mesh_name,
                more=(*vital_routes(self), *services.routes, *self.dashboard.routes),
                measures=self.seeing.measures,
                open_paths=self.dashboard.open_paths,
            ) as self.web:
                if self.web is not None:
                    self._nursery.start_soon(self.dashboard.run)
                try:
                    yield
                finally:
                    services.end()
                    self.dashboard.end()

    @property
    def device(self) -> str:
        """What people call this device."""
        return self.config.name or platform.node() or "device"

    # -- joining --------------------------------------------------------------------------------------------------

    def invite(self, *, role: str = "member", uses: int = 1, lifetime_s: float = 3600.0) -> str:
        """Open an invite and return its code. Raises Refused when this node may not, UsageError for bad values."""
        code = self.mesh.invite(role=role, uses=uses, lifetime_s=lifetime_s)
        self.home.save_invites(self.mesh.door.invites)
        self.seeing.audit.note("invited", detail=invited(role, uses, lifetime_s))
        return str(code)

    # -- learning -------------------------------------------------------------------------------------------------

    async def train(
        self,
        task: str | Task,
        *,
        data: str = "",
        model: str | ModelSpec = "mlp",
        rounds: int = 60,
        objective: Objective = "cross_entropy",
        policy: Policy = "trusted",
        settings: TrainSettings | None = None,
        codec_name: str | None = None,
        members_min: int | None = None,
        baseline: bool = False,
        copies: int = 2,
        hidden: int = 64,
        hidden_activation: str = "sigmoid",
        classes: int | None = None,
        seed: int = 0,
        on_progress: Callable[[Mapping[PeerId, TrainerRecord]], None] | None = None,
        on_round: Callable[[RoundSaid], None] | None = None,
    ) -> TrainResult:
        """Start a task with every node that has a data set of this name, and wait until its model is there.

        ``task`` is a whole one (as `load_task` reads it from a file; then the rest is in it), or a name. ``model`` is
        an architecture ("mlp", "cnn", "lstm", or "package.module:factory") or a whole description, which then says the
        objective too; ``policy`` is "trusted", "private" or "robust". Raises UsageError for bad values, Refused without
        the grant, LeptonError when this node's own part failed. ``on_round`` is told of each round of this node's own,
        ``on_progress`` what all say of themselves, which is twice a second at most.
        """
        if isinstance(task, str):
            said = {
                "name": task,
                "data": data,
                "objective": objective,
                "policy": policy,
                "seed": seed,
                "baseline": baseline,
                "train": as_said(settings) if settings else {},
                "averaging": {"codec": codec_name, "members": members_min},
                "budget": {"rounds": rounds},
                "serve": {"copies": copies},
            }
            if not isinstance(model, ModelSpec):
                described = {"hidden": hidden, "hidden_activation": hidden_activation, "classes": classes}
                said["model"] = {"architecture": model, **described}
            task = task_from(said, f"The task {task!r}")
        self.seeing.audit.note("command", name="train", detail=task.name)
        started = await self.tasks.start(task, spec=model if isinstance(model, ModelSpec) else None)
        with self.tasks.listening(task.name, started.version, on_round):
            return await self.tasks.wait(task.name, started.version, on_progress)

    async def wait_trained(
        self, name: str, version: int, on_progress: Callable[[Mapping[PeerId, TrainerRecord]], None] | None = None
    ) -> TrainResult:
        """Wait until this version's model is in the picture and everyone who is here is done with the task.

        Raises LeptonError when this node, or everyone who took part, had to give up.
        """
        return await self.tasks.wait(name, version, on_progress)

    def trainers(self, name: str, version: int) -> dict[PeerId, TrainerRecord]:
        """Return where everyone who is here stands in a task."""
        return self.tasks.trainers(name, version)

    # -- answering ------------------------------------------------------------------------------------------------

    async def predict(self, model: str, *inputs: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - what numpy takes
        """Return what a model says of samples (B, ...), one array for each of its inputs, answered by the mesh.

        A trained model takes float32 (B, *inputs) and gives class probabilities, or what else its objective says,
        float32 (B, classes). Raises UsageError for an unknown model or another shape, LinkError when nobody could
        answer in time.
        """
        found = await self.predict_all(model, *inputs)
        if len(found) != 1:
            raise UsageError(f"{model!r} gives {len(found)} arrays; ask it by `predict_all`.")
        return found[0]

    async def predict_all(self, model: str, *inputs: Any) -> list[np.ndarray[Any, Any]]:  # noqa: ANN401
        """Return all arrays that a model gives, where it gives several. Otherwise like `predict`."""
        with entering("predict"):
            return await self.requests.predict(model, [np.asarray(array) for array in inputs])

    async def serve(
        self,
        source: str | Path,
        *,
        name: str = "",
        replicas: int = 1,
        precision: Precision | Literal["auto"] = "auto",
        sessions: int = 4,
        positions: int | None = None,
        objective: Aim = "latency",
        activations: Activations = "float32",
    ) -> TextModel:
        """Have the mesh serve a language model: a folder in the Hugging Face layout, or a name on its Hub.

        Returns once it is deployed; `wait_served` waits until it is loaded. ``sessions`` of ``positions`` tokens each
        are promised memory. Raises UsageError for a model that is not understood or bad values, Refused without the
        grant ``train:NAME``, LinkError without the Hub, DoesNotFit (a LeptonError) when the devices cannot hold it.
        """
        terms = {
            "replicas": replicas,
            "precision": precision,
            "sessions": sessions,
            "positions": positions,
            "objective": objective,
            "activations": activations,
        }
        self.seeing.audit.note("command", name="serve", detail=f"{name} {source}".strip())
        offer = await self.deploying.offer(source, name=name, terms=terms)
        self.deploying.accept(offer)
        return self.model(offer.name)

    async def serve_module(
        self,
        module: "nn.Module",
        example: "Sequence[Tensor]",
        *,
        name: str,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        dims: Sequence[Mapping[int, str]] | None = None,
        replicas: int = 1,
    ) -> None:
        """Have the mesh serve any module that torch can export; `predict` asks it.

        ``example`` are tensors as its ``forward`` takes them, the batch first. ``dims`` names further dimensions that
        change from request to request, for each input ({1: "words"}), and ``sizes`` their bounds ({"words": (1, 99)}).
        Raises UsageError for a module that cannot be traced, or that draws random numbers; else as `serve`.
        """
        offer = await self.deploying.offer_module(
            module, example, name, sizes=sizes, dims=dims, terms={"replicas": replicas}
        )
        self.deploying.accept(offer)

    async def embed(self, model: str, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return a vector for each text, float32 (texts, width), from an encoder of the mesh.

        Raises UsageError for a model that is none, and for a text that is too long for it.
        """
        return (await self.texts.embed(model, texts)).values

    def unserve(self, name: str) -> None:
        """Serve a language model no longer that this node deployed. Raises UsageError when it did not."""
        self.seeing.audit.note("command", name="unserve", detail=name)
        self.deploying.withdraw(name)

    def model(self, name: str) -> TextModel:
        """Return a language model of the mesh, to be asked for text: ``async for part in model.generate(prompt)``."""
        return TextModel(self.texts, name)

    async def wait_served(self, model: str, *, timeout_s: float = 60.0) -> None:
        """Wait until every layer of a model is loaded somewhere. Raises LinkError that says what is missing."""
        with trio.move_on_after(timeout_s):
            while not self.is_served(model):
                changed = self.mesh.changed
                if not self.is_served(model):
                    await changed.wait()
            return
        why = self._trouble(model) or "its layers are not all loaded"
        raise LinkError(f"The model {model!r} is not served after {timeout_s:g} s: {why}.")

    def is_served(self, name: str) -> bool:
        """Whether every layer of a model is loaded somewhere, as many times as its plan says."""
        model = self.view.models().get(name) or self.view.deployments().get(name)
        return model is not None and is_loaded(self.view.plans().get(name), self.view.serving(name, model.version))

    def _trouble(self, name: str) -> str:
        said = self.serving.trouble.get(name) or self.sessions.host.trouble.get(name, "")
        plan = self.view.plans().get(name)
        barred = passed_over(name, len(self.view.barred(name))) if plan is not None and plan.missing_bytes else ""
        return f"{said}; {barred}" if said and barred else said

    # -- seeing ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what this node knows, as plain data: mesh, peers, models, tasks, what goes wrong."""
        profiles = self.tasks.profiles()
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
            "deployments": [self.deployment(name) for name in sorted(self.view.deployments())],
            "web": {"url": self.web.url, "remark": self.web.remark} if self.web else None,
            "tasks": [
                {"name": name, "version": task.version, "policy": task.policy, "rounds": task.rounds,
                 "served": task.is_served, "nodes": {
                    peer: msgspec.to_builtins(trainer) for peer, trainer in self.trainers(name, task.version).items()
                }}
                for name, (_, task) in sorted(newest(self.mesh.live(TASK, TaskRecord)).items())
            ] + self._loops(),
            "thrown_out": thrown_out(self.home, self.mesh),
            "bootstrap": [
                {"address": place.address, "peer": place.peer or "", "trouble": place.trouble}
                for place in self.mesh.finding.places
            ],
            "refusals": dict(self.mesh.refusals),
            "requests": {
                "asked": self.requests.counts.asked,
                "failed": self.requests.counts.failed,
                "rerouted": self.requests.counts.reroutes,
                "stages_run": self.serving.pieces_done,
            },
        }  # fmt: skip

    def _loops(self) -> list[dict[str, Any]]:
        """Return who averages models of their own training loops (`GossipOptimizer`), laid out as tasks."""
        loops: dict[tuple[str, str], dict[str, Any]] = {}
        for record, said in self.mesh.live(CIRCLE, CircleRecord):
            nodes = loops.setdefault((record.name, said.model), {})
            nodes[record.owner] = {"state": "in its own loop", "round": said.round, "first_round": said.first_round}
        return [
            {"name": name, "version": 0, "policy": "trusted", "rounds": None, "served": False, "nodes": nodes}
            for (name, _), nodes in sorted(loops.items())
        ]

    def _model_status(self, name: str, model: ModelRecord) -> dict[str, Any]:
        serving = self.view.serving(name, model.version)
        return {
            "name": name,
            "version": model.version,
            "layers": len(model.layers),
            "objective": model.spec.objective,
            "served": self.is_served(name),
            "stages": [
                {"first": first, "end": end, "peers": sorted(peers)} for (first, end), peers in sorted(serving.items())
            ],
            "trouble": self._trouble(name),
        }

    def deployment(self, name: str) -> dict[str, Any]:
        """Return what is known of a language model that is deployed, as plain data. Raises UsageError for no such."""
        record = self.view.deployments().get(name)
        if record is None:
            raise UsageError(f"No language model {name!r} is deployed in this mesh.")
        said = self.described(name, record, self.view.plans().get(name, Plan()))
        return said | {"served": self.is_served(name), "trouble": self._trouble(name)}

    def described(self, name: str, record: DeploymentRecord, plan: Plan) -> dict[str, Any]:
        """Return a deployment, or what would be one, with its plan, as plain data."""
        devices: dict[str, str] = {peer: profile.device for peer, profile in self.tasks.profiles().items()}
        return described(name, record, plan, devices, self.view.serving(name, record.version))

    def named(self, text: str) -> str:
        """Return a sentence with the names of devices in place of their peers' short ids."""
        return named(text, {peer: profile.device for peer, profile in self.tasks.profiles().items()})

    def dashboard_link(self) -> str:
        """Return the page's address with its owner's key; empty where nothing is served over HTTP."""
        return self.dashboard.owner.link(self.web.page) if self.web else ""

    def progress(self, task: str) -> Progress | None:
        """Return where this node stands in a task that it takes part in."""
        return self.tasks.progress(task)

    # -- authority ------------------------------------------------------------------------------------------------

    def show_mesh(self) -> dict[str, Any]:
        """Return who belongs to the mesh, through whom and until when, and who was thrown out, as plain data."""
        return show_running(self.home, self.mesh, self._mesh_name)

    def revoke(self, subject: str, *, reason: str = "", keep_invited: bool = False, disown: bool = False) -> None:
        """Throw a peer out of the mesh for good. Raises Refused when this node may not.

        Who came in through it is out as well, but for known members with ``keep_invited``. With ``disown`` nothing
        counts any more that it revoked; that takes the root key.
        """
        self.seeing.audit.note("command", name="revoke", who=subject, detail=reason)
        revoke_running(self.mesh, PeerId(subject), reason=reason, keep_invited=keep_invited, disown=disown)

    async def _tell_speed(self) -> None:
        """Say how fast this device is: at once if that is known, and when it has been measured, anew after a week."""
        known = await trio.to_thread.run_sync(known_speed, cache_file())
        if known is not None:
            self.mesh.publish(SPEED, "self", known)
        record = await trio.to_thread.run_sync(load_or_measure, cache_file(), time.time())
        if record != known:
            self.mesh.publish(SPEED, "self", record)

    async def _tell_links(self) -> None:
        """Say which neighbours are far away, whenever that has changed."""
        said = LinksRecord()
        while True:
            await trio.sleep(_LINKS_INTERVAL_S)
            seen = coarse_links(self.mesh.probing.round_trips_s, said.far)
            if seen != said:
                said = seen
                self.mesh.publish(LINKS, "self", seen)

    async def _keep_members(self) -> None:
        """Save what members are called, for when they are away."""
        saved = self.home.members()
        while True:
            known = known_members(self.home, self.mesh)
            if known != saved:
                self.seeing.appeared(self.mesh.me, known, saved)
                await trio.to_thread.run_sync(self.home.save_members, known)
                saved = known
            await trio.sleep(_MEMBERS_INTERVAL_S)
