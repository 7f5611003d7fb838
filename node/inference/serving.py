"""The shell that answers: loads the stages that the plan gives this node, runs them, and sends requests on their way.

Work goes straight from stage to stage, the result from the last stage to the asker: no process sees all of a request
but the one that asked.
"""

import hashlib
import logging
import random
import secrets
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import trio

from ...mesh import limits, tensors
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import Busy, LeptonError, LinkError, PeerError, UsageError
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ...mesh.tensors import Array
from ..blobs import BlobStore, layer_blob, read_layer_blob
from ..config import did_you_mean
from ..models import (
    Chain,
    ModelSpec,
    build_layers,
    check_spec,
    layer_count,
    layer_input_shape,
    layer_output_shape,
    layer_schema,
    layer_sizes_bytes,
    layer_tensors,
    load_layer,
    run_layers,
)
from ..picture import MODEL, PROFILE, STAGE, ModelRecord, Profile, StageRecord, newest
from ..placement import Device, Plan, Run, place
from .messages import BlobWanted, StageBroke, StageResult, StageWork
from .session import Absent, Arrived, Ask, Broke, Config, Done, Expired, Failed, Picture, Session

_QUEUE_MAX = 64  # pieces of work that wait at one stage; beyond, whoever sends is told to go elsewhere
BATCH_MAX = 256  # samples of one request that travel together
_REQUESTS_AT_ONCE = 4  # of one `predict`: keeps two stages busy without filling their queues
# A layer that does not come at a megabyte a second, poor Wi-Fi, is asked of another peer, after this long at least.
_FETCH_TIMEOUT_S = 5.0
_FETCH_BYTES_PER_S = 1e6
_RETRY_S = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stage:
    """One loaded run of layers and the work that waits for it."""

    spec: ModelSpec
    version: int
    run: Run
    chain: Chain
    inbox: trio.MemorySendChannel["_Work"]
    outbox: trio.MemoryReceiveChannel["_Work"]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(frozen=True, slots=True)
class _Work:
    model: str
    message: StageWork
    x: Array


@dataclass(slots=True)
class _Waiting:
    """One request of this node: where its events go, and who may answer it."""

    events: trio.MemorySendChannel[object]
    classes: int
    samples: int
    last: set[PeerId] = field(default_factory=set)


@dataclass(slots=True)
class Counts:
    """What this node answered and asked."""

    served: int = 0
    asked: int = 0
    failed: int = 0
    reroutes: int = 0


class Serving:
    """One node's part in answering."""

    def __init__(self, mesh: Mesh, blobs: BlobStore, memory_bytes: int, config: Config | None = None) -> None:
        self.counts = Counts()
        self.trouble: dict[str, str] = {}  # model to why it cannot be served as asked
        self._mesh = mesh
        self._blobs = blobs
        self._memory_bytes = memory_bytes
        self._config = config or Config()
        self._stages: dict[str, _Stage] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._rng = random.Random(secrets.randbits(64))
        self._nursery: trio.Nursery
        mesh.calls.serve(
            Method(
                name="infer.run", needs="infer", takes=StageWork, handler=self._take_work,
                body_bytes_max=limits.BODY_BYTES_MAX,
            ),
            Method(
                name="infer.result", needs="infer", takes=StageResult, handler=self._take_result,
                body_bytes_max=limits.BODY_BYTES_MAX,
            ),
            Method(name="infer.broke", needs="infer", takes=StageBroke, handler=self._take_broke),
            Method(name="blob.get", needs="infer", takes=BlobWanted, handler=self._give_blob),
        )  # fmt: skip
        mesh.on_absent.append(self._left)

    async def run(self) -> None:
        """Follow the picture for ever: load what the plan gives this node, drop what it takes away."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_telling)
            while True:
                changed = self._mesh.changed
                pause_s = _RETRY_S if not await self._follow_plan() else float("inf")
                with trio.move_on_after(pause_s):
                    await changed.wait()

    async def _keep_telling(self) -> None:
        """Let requests that wait for a route look at every new picture, also while weights are being fetched."""
        while True:
            changed = self._mesh.changed
            for token in list(self._waiting):
                self._event(token, Picture({}))
            await changed.wait()

    # -- what is served -----------------------------------------------------------------------------------------------

    def models(self) -> dict[str, ModelRecord]:
        """Return the models that ought to be served, by name; a description out of bounds is passed over."""
        found = {}
        for name, (record, model) in newest(self._mesh.live(MODEL, ModelRecord)).items():
            try:
                check_spec(model.spec)
                _check_layers(model)
                found[name] = model
            except UsageError as error:
                log.warning("%s published a model %r out of bounds: %s", short(record.owner), name, error)
        return found

    def serving(self, name: str, version: int) -> dict[Run, list[str]]:
        """Return which peers have which run of a model's layers loaded now."""
        found: dict[Run, list[str]] = {}
        for record, stage in self._mesh.live(STAGE, StageRecord):
            if record.name == name and stage.version == version:
                found.setdefault((stage.first, stage.end), []).append(record.owner)
        return found

    def stages(self) -> dict[str, Run]:
        """Return the runs of layers that this node has loaded, by model."""
        return {name: stage.run for name, stage in self._stages.items()}

    def plans(self) -> dict[str, Plan]:
        """Compute who should load what, for all models in the order of their names, from the picture alone."""
        offers = {record.owner: profile.memory_bytes for record, profile in self._mesh.live(PROFILE, Profile)}
        stages = {(record.name, record.owner): stage for record, stage in self._mesh.live(STAGE, StageRecord)}
        plans = {}
        for name, model in sorted(self.models().items()):
            sizes = layer_sizes_bytes(model.spec)
            devices = []
            for peer, memory_bytes in offers.items():
                if not self._mesh.authority(peer).allows(f"infer:{name}"):
                    continue  # it could neither fetch the weights nor pass its results on
                held = stages.get((name, peer))
                holds = (held.first, held.end) if held else None
                devices.append(Device(peer=peer, memory_bytes=memory_bytes, holds=holds))
            plans[name] = plan = place(sizes, devices, copies=model.copies)
            for owner, (first, end) in plan.assigned.items():
                offers[PeerId(owner)] -= sum(sizes[first:end])
        return plans

    async def _follow_plan(self) -> bool:
        """Make this node's stages those of the plan; false when something could not be loaded yet."""
        models, done = self.models(), True
        plans = self.plans()
        for name in set(self._stages) - set(models):
            self._unload(name)
        for name, plan in plans.items():
            self.trouble.pop(name, None)
            if plan.missing_bytes:
                self.trouble[name] = (
                    f"no devices that are here can hold it: {plan.missing_bytes} B of memory for serving are missing"
                )
            wanted = plan.assigned.get(self._mesh.me)
            have = self._stages.get(name)
            if have is not None and (have.run, have.version) == (wanted, models[name].version):
                continue
            try:
                await self._replace(name, models[name], wanted)
            except LeptonError as error:
                log.warning("cannot load layers of %s yet: %s", name, error)
                self.trouble[name] = str(error)
                done = False
        return done

    async def _replace(self, name: str, model: ModelRecord, run: Run | None) -> None:
        if run is None:
            self._unload(name)
            return
        chain = await self._load(name, model, run)
        self._unload(name)
        inbox, outbox = trio.open_memory_channel[_Work](_QUEUE_MAX)
        stage = _Stage(model.spec, model.version, run, chain, inbox, outbox)
        self._stages[name] = stage
        self._nursery.start_soon(self._work, name, stage)
        self._mesh.publish(STAGE, name, StageRecord(version=model.version, first=run[0], end=run[1]))
        log.info("serving layers %d to %d of %s, version %d", run[0], run[1] - 1, name, model.version)

    def _unload(self, name: str) -> None:
        if (stage := self._stages.pop(name, None)) is not None:
            self._mesh.withdraw(STAGE, name)
            stage.inbox.close()  # what waits is still done

    async def _load(self, name: str, model: ModelRecord, run: Run) -> Chain:
        size = sum(layer_sizes_bytes(model.spec)[run[0] : run[1]])
        assert size <= self._memory_bytes, "the plan never gives more than a device offers"
        chain = build_layers(model.spec, *run)
        for index in range(*run):
            data = await self._fetch(name, model, index)
            load_layer(chain, index, read_layer_blob(data, layer_schema(model.spec, index)))
        return chain

    # -- weights ------------------------------------------------------------------------------------------------------

    def publish(self, name: str, spec: ModelSpec, chain: Chain, *, version: int, copies: int) -> None:
        """Make this model the one to serve under its name."""
        layers = self.keep(spec, chain)
        self._mesh.publish(
            MODEL, name, ModelRecord(spec=spec, version=version, layers=layers, copies=copies), durable=True
        )

    def keep(self, spec: ModelSpec, chain: Chain) -> tuple[str, ...]:
        """Put every layer into the blob store, for peers to fetch; returns their hashes."""
        return tuple(self._blobs.put(layer_blob(layer_tensors(chain, index))) for index in range(layer_count(spec)))

    async def weights(self, name: str) -> tuple[ModelSpec, list[bytes]]:
        """Return a whole model: its description and each layer's safetensors bytes, fetched from whoever has them.

        Raises UsageError when there is no such model, LinkError when nobody has a layer.
        """
        model = self._model(name)
        return model.spec, [await self._fetch(name, model, index) for index in range(len(model.layers))]

    def _model(self, name: str) -> ModelRecord:
        models = self.models()
        if name not in models:
            raise UsageError(f"No model {name!r} is served in this mesh.{did_you_mean(name, sorted(models))}")
        return models[name]

    async def _fetch(self, name: str, model: ModelRecord, index: int) -> bytes:
        """Return a layer from the store, or from whichever peer has it. Raises LinkError when nobody has."""
        digest = model.layers[index]
        if self._blobs.has(digest):
            try:
                return self._blobs.get(digest)
            except LeptonError as error:  # damaged, and removed for that
                log.warning("%s", error)
        timeout_s = _FETCH_TIMEOUT_S + layer_sizes_bytes(model.spec)[index] / _FETCH_BYTES_PER_S
        for peer in self._rng.sample(sorted(self._mesh.present), len(self._mesh.present)):
            try:
                answer = await self._mesh.calls.call(
                    peer, "blob.get", BlobWanted(digest=digest), Empty, scope=name, timeout_s=timeout_s
                )
            except LeptonError as error:
                log.debug("%s gives no blob %s: %s", short(peer), digest[:8], error)
                continue
            data = tensors.buffer_of(answer.arrays[0]).tobytes() if len(answer.arrays) == 1 else b""
            if hashlib.sha256(data).hexdigest() == digest:
                self._blobs.put(data)
                return data
            log.warning("%s sent something else for the blob %s", short(peer), digest[:8])
        msg = f"Nobody who is here has the weights {digest[:8]}… of {name!r}, layer {index}."
        raise LinkError(msg)

    async def _give_blob(self, call: Incoming[BlobWanted]) -> Answer[Empty]:
        model = self.models().get(call.scope)
        if model is None or call.message.digest not in model.layers or not self._blobs.has(call.message.digest):
            msg = f"This node has no blob {call.message.digest[:8]}… of {call.scope!r}."
            raise UsageError(msg)
        return Answer(Empty(), [np.frombuffer(self._blobs.get(call.message.digest), dtype=np.uint8)])

    # -- a stage at work ----------------------------------------------------------------------------------------------

    async def _take_work(self, call: Incoming[StageWork]) -> Answer[Empty]:
        work, stage = call.message, self._stages.get(call.scope)
        here = work.position < len(work.route) and work.route[work.position] == self._mesh.me
        if stage is None or not here or (stage.version, stage.run) != (work.version, work.stages[work.position]):
            msg = f"This node does not serve these layers of {call.scope!r} (any more)."
            raise UsageError(msg)
        if len(call.arrays) != 1:
            msg = f"Work for a stage carries one tensor; this one carries {len(call.arrays)}."
            raise PeerError(msg)
        shape = layer_input_shape(stage.spec, stage.run[0])
        if not 1 <= len(call.arrays[0]) <= BATCH_MAX:
            msg = f"A batch has 1 to {BATCH_MAX} samples."
            raise PeerError(msg)
        x = tensors.require(call.arrays[0], dtype="float32", shape=(None, *shape), what="the input of a stage")
        try:
            stage.inbox.send_nowait(_Work(call.scope, work, x))
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError) as error:
            msg = f"{_QUEUE_MAX} pieces of work wait here already."
            raise Busy(msg, 0.1) from error
        return Answer(Empty())

    async def _work(self, name: str, stage: _Stage) -> None:
        async for work in stage.outbox:
            y = await trio.to_thread.run_sync(_compute, stage, work.x)
            self.counts.served += 1
            self._nursery.start_soon(self._pass_on, name, work.message, y)

    async def _pass_on(self, name: str, work: StageWork, y: Array) -> None:
        """Give the output to the next stage, or to the asker if this was the last; tell the asker when that fails."""
        position = work.position + 1
        if position == len(work.route):
            target, method = work.asker, "infer.result"
            message: StageWork | StageResult = StageResult(session=work.session, attempt=work.attempt)
        else:
            target, method = work.route[position], "infer.run"
            message = StageWork(
                session=work.session, attempt=work.attempt, version=work.version, route=work.route,
                stages=work.stages, position=position, asker=work.asker,
            )  # fmt: skip
        try:
            await self._mesh.calls.call(target, method, message, Empty, scope=name, arrays=[y])
        except LeptonError as error:
            if target == work.asker:
                return  # it is gone, or has its answer already
            broke = StageBroke(session=work.session, attempt=work.attempt, peer=target, reason=str(error)[:500])
            try:
                await self._mesh.calls.call(work.asker, "infer.broke", broke, Empty, scope=name)
            except LeptonError as further:
                log.debug("could not tell the asker: %s", further)

    # -- asking -------------------------------------------------------------------------------------------------------

    async def predict(self, name: str, x: Array) -> Array:
        """Run samples ``x``, float32 (B, *inputs), through the mesh; returns float32 (B, classes).

        Raises UsageError for a model that is not there or samples of another shape, Refused without the grant,
        LinkError when no route brought an answer in time.
        """
        model = self._model(name)
        self._mesh.authority(self._mesh.me).require(f"infer:{name}", time.time())
        samples = _samples(x, model.spec)
        results: dict[int, Array] = {}
        limiter = trio.CapacityLimiter(_REQUESTS_AT_ONCE)

        async def one(start: int) -> None:
            async with limiter:
                results[start] = await self._request(name, model, samples[start : start + BATCH_MAX])

        try:
            async with trio.open_nursery() as nursery:
                for start in range(0, len(samples), BATCH_MAX):
                    nursery.start_soon(one, start)
        except* LeptonError as group:
            raise _first(group) from None
        return np.concatenate([results[start] for start in sorted(results)])

    async def _request(self, name: str, model: ModelRecord, x: Array) -> Array:
        """One batch: drive its session machine until it is done or has failed."""
        send, receive = trio.open_memory_channel[object](limits.CALLS_PER_PEER_MAX * 8)
        token = secrets.token_hex(16)
        waiting = _Waiting(send, layer_output_shape(model.spec, layer_count(model.spec) - 1)[0], len(x))
        self._waiting[token] = waiting
        session = Session(layer_count(model.spec), self._rng, trio.current_time(), self._config)
        self.counts.asked += 1
        try:
            async with trio.open_nursery() as nursery:
                event: object = Picture(self.serving(name, model.version))
                while True:
                    result = event if isinstance(event, np.ndarray) else None
                    known = Arrived() if result is not None else event
                    for effect in session.handle(known, trio.current_time()):  # type: ignore[arg-type]
                        match effect:
                            case Ask():
                                self.counts.reroutes += effect.attempt > 1
                                waiting.last.add(PeerId(effect.route[-1]))
                                nursery.start_soon(self._ask, name, model, token, effect, x)
                            case Done():
                                nursery.cancel_scope.cancel()
                                assert result is not None
                                return result
                            case Failed(reason):
                                self.counts.failed += 1
                                raise LinkError(reason)
                    event = Expired()
                    with trio.move_on_at(session.deadline):
                        event = await receive.receive()
                        if isinstance(event, Picture):
                            event = Picture(self.serving(name, model.version))
        finally:
            del self._waiting[token]

    async def _ask(self, name: str, model: ModelRecord, token: str, ask: Ask, x: Array) -> None:
        first = PeerId(ask.route[0])
        work = StageWork(
            session=token, attempt=ask.attempt, version=model.version, stages=ask.stages, position=0,
            route=tuple(PeerId(peer) for peer in ask.route), asker=self._mesh.me,
        )  # fmt: skip
        try:
            await self._mesh.calls.call(
                first, "infer.run", work, Empty, scope=name, arrays=[x], timeout_s=self._config.attempt_timeout_s
            )
        except LeptonError as error:
            self._event(token, Broke(first, ask.attempt, str(error)))

    async def _take_result(self, call: Incoming[StageResult]) -> Answer[Empty]:
        waiting = self._waiting.get(call.message.session)
        if waiting is None or call.caller not in waiting.last:
            return Answer(Empty())  # of a request that is over, or never was
        if len(call.arrays) != 1:
            msg = f"A result carries one tensor; this one carries {len(call.arrays)}."
            raise PeerError(msg)
        y = tensors.require(
            call.arrays[0], dtype="float32", shape=(waiting.samples, waiting.classes), what="the result of a request"
        )
        self._event(call.message.session, y)
        return Answer(Empty())

    async def _take_broke(self, call: Incoming[StageBroke]) -> Answer[Empty]:
        message = call.message
        self._event(message.session, Broke(message.peer, message.attempt, message.reason))
        return Answer(Empty())

    def _left(self, peer: PeerId) -> None:
        for token in list(self._waiting):
            self._event(token, Absent(peer))

    def _event(self, token: str, event: object) -> None:
        waiting = self._waiting.get(token)
        if waiting is not None:
            try:
                waiting.events.send_nowait(event)
            except trio.WouldBlock:  # the session is far behind; its deadline repeats the work
                log.debug("an event of a request was dropped")


def _check_layers(model: ModelRecord) -> None:
    if len(model.layers) != (count := layer_count(model.spec)):
        msg = f"it names {len(model.layers)} layers where its architecture has {count}"
        raise UsageError(msg)


def _compute(stage: _Stage, x: Array) -> Array:
    with torch.inference_mode():
        y = run_layers(stage.chain, *stage.run, torch.from_numpy(np.array(x)))
    return np.asarray(y.numpy(), dtype=np.float32)


def _samples(x: Array, spec: ModelSpec) -> Array:
    shape = layer_input_shape(spec, 0)
    samples = np.asarray(x, dtype=np.float32)
    if samples.size == 0 or samples.shape[1:] != shape:
        expected = " x ".join(str(size) for size in shape)
        msg = (
            f"Samples of this model have the shape ({expected}); these are {samples.shape[1:]}, {len(samples)} of them."
        )
        raise UsageError(msg)
    if not np.isfinite(samples).all():
        raise UsageError("The samples hold values that are not finite numbers (NaN or infinite); clean them first.")
    return samples


def _first(group: BaseExceptionGroup[LeptonError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
