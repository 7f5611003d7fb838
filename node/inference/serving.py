"""The shell that answers: loads the stages that the plan gives this node, runs them and passes their outputs on.

Work goes straight from stage to stage, the result from the last stage to the asker: no process sees all of a request
but the one that asked.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from ...mesh import limits
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import Busy, LeptonError, PeerError, UsageError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ...mesh.tensors import Array
from ..deployed import shortage
from ..deployments import DeploymentRecord
from ..picture import STAGE, ModelRecord, StageRecord
from ..placement import Run
from ..seeing.request import following
from ..shapes import ModelSpec, layer_sizes_bytes
from .known import Part
from .messages import StageBroke, StageResult, StageWork
from .traced import Programs
from .view import View
from .weights import Weights

_QUEUE_MAX = 64  # pieces of work that wait at one stage; beyond, whoever sends is told to go elsewhere
_RETRY_S = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stage:
    """One loaded run of layers and the work that waits for it."""

    version: int
    run: Run
    part: Part
    inbox: trio.MemorySendChannel["_Work"]
    outbox: trio.MemoryReceiveChannel["_Work"]


@dataclass(frozen=True, slots=True)
class _Work:
    model: str
    message: StageWork
    arrays: list[Array]


class Serving:
    """One node's part in answering."""

    def __init__(self, mesh: Mesh, view: View, weights: Weights, programs: Programs, memory_bytes: int) -> None:
        self.pieces_done = 0
        self.trouble: dict[str, str] = {}  # model to why it cannot be served as asked
        self._mesh = mesh
        self._view = view
        self._weights = weights
        self._programs = programs
        self._memory_bytes = memory_bytes
        self._stages: dict[str, _Stage] = {}
        self._nursery: trio.Nursery
        mesh.calls.serve(
            Method(
                name="infer.run", needs="infer", takes=StageWork, handler=self._take_work,
                body_bytes_max=limits.BODY_BYTES_MAX,
            ),
        )  # fmt: skip

    async def run(self) -> None:
        """Follow the picture for ever: load what the plan gives this node, drop what it takes away."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                changed = self._mesh.changed
                pause_s = _RETRY_S if not await self._follow_plan() else float("inf")
                with trio.move_on_after(pause_s):
                    await changed.wait()

    # -- what this node serves ----------------------------------------------------------------------------------------

    def stages(self) -> dict[str, Run]:
        """Return the runs of layers that this node has loaded, by model."""
        return {name: stage.run for name, stage in self._stages.items()}

    def _served(self) -> dict[str, ModelRecord | DeploymentRecord]:
        programs = {name: found for name, found in self._view.deployments().items() if found.kind == "program"}
        return {**self._view.models(), **programs}

    async def _follow_plan(self) -> bool:
        """Make this node's stages those of the plan; false when something could not be loaded yet."""
        models, done = self._served(), True
        plans = self._view.plans()
        for name in set(self._stages) - set(models):
            self._unload(name)
        for name, plan in plans.items():
            if name not in models:
                continue  # a language model
            self.trouble.pop(name, None)
            if plan.missing_bytes:
                self.trouble[name] = shortage(plan.missing_bytes)
            wanted = plan.assigned.get(self._mesh.me)
            have = self._stages.get(name)
            if have is not None and (have.run, have.version) == (wanted, models[name].version):
                continue
            try:
                await self._replace(name, models[name], wanted)
            except Exception as error:  # noqa: BLE001  a stranger's model may make anything raise anything
                log.warning("cannot load layers of %s yet: %s", name, error)
                self.trouble[name] = str(error) or type(error).__name__
                done = False
        return done

    async def _replace(self, name: str, model: ModelRecord | DeploymentRecord, run: Run | None) -> None:
        if run is None:
            self._unload(name)
            return
        part = await self._load(name, model, run)
        self._unload(name)
        inbox, outbox = trio.open_memory_channel[_Work](_QUEUE_MAX)
        stage = _Stage(model.version, run, part, inbox, outbox)
        self._stages[name] = stage
        self._nursery.start_soon(self._work, name, stage)
        self._mesh.publish(STAGE, name, StageRecord(version=model.version, first=run[0], end=run[1]))
        log.info("serving layers %d to %d of %s, version %d", run[0], run[1] - 1, name, model.version)

    def _unload(self, name: str) -> None:
        if (stage := self._stages.pop(name, None)) is not None:
            self._mesh.withdraw(STAGE, name)
            stage.inbox.close()  # what waits is still done

    async def _load(self, name: str, model: ModelRecord | DeploymentRecord, run: Run) -> Part:
        if isinstance(model, DeploymentRecord):
            return await self._programs.load(name, model, run)
        size = sum(layer_sizes_bytes(model.spec)[run[0] : run[1]])
        assert size <= self._memory_bytes, "the plan never gives more than a device offers"
        blobs = [await self._weights.fetch(name, model, index) for index in range(*run)]
        return await trio.to_thread.run_sync(_chain, model.spec, run[0], blobs)

    # -- a stage at work ----------------------------------------------------------------------------------------------

    async def _take_work(self, call: Incoming[StageWork]) -> Answer[Empty]:
        work, stage = call.message, self._stages.get(call.scope)
        if not work.position < len(work.route) == len(work.stages):
            msg = f"Work for stage {work.position} of {len(work.stages)} on {len(work.route)} peers makes no sense."
            raise PeerError(msg)
        here = work.route[work.position] == self._mesh.me
        if stage is None or not here or (stage.version, stage.run) != (work.version, work.stages[work.position]):
            msg = f"This node does not serve these layers of {call.scope!r} (any more)."
            raise UsageError(msg)
        stage.part.check(call.arrays)
        try:
            stage.inbox.send_nowait(_Work(call.scope, work, call.arrays))
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError) as error:
            msg = f"{_QUEUE_MAX} pieces of work wait here already."
            raise Busy(msg, 0.1) from error
        return Answer(Empty())

    async def _work(self, name: str, stage: _Stage) -> None:
        async for work in stage.outbox:
            first, end = stage.run
            try:
                with following(work.message.session, "prediction.stage", model=name, first=first, end=end):
                    y = await trio.to_thread.run_sync(stage.part.run, work.arrays)
            except LeptonError as error:
                self._nursery.start_soon(self._tell, name, work.message, self._mesh.me, str(error))
                continue
            self.pieces_done += 1
            self._nursery.start_soon(self._pass_on, name, work.message, y)

    async def _pass_on(self, name: str, work: StageWork, y: list[Array]) -> None:
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
            await self._mesh.calls.call(target, method, message, Empty, scope=name, arrays=y)
        except LeptonError as error:
            if target == work.asker:
                return  # it is gone, or has its answer already
            await self._tell(name, work, target, str(error))

    async def _tell(self, name: str, work: StageWork, peer: PeerId, reason: str) -> None:
        """Tell the asker that a peer could not do its part."""
        broke = StageBroke(session=work.session, attempt=work.attempt, peer=peer, reason=reason[:500])
        try:
            await self._mesh.calls.call(work.asker, "infer.broke", broke, Empty, scope=name)
        except LeptonError as error:
            log.debug("could not tell the asker: %s", error)


def _chain(spec: ModelSpec, first: int, blobs: Sequence[bytes]) -> Part:
    from .parts import chain_part  # torch, in the thread that needs it

    return chain_part(spec, first, blobs)
