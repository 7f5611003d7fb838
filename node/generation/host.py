"""The shell of stages: loads the runs of layers that the plan gives this node, and serves sessions on them.

A new version or another run is loaded beside the old one, which goes on with the sessions that it has until they end.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import trio

from ...mesh.errors import Refused
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..deployments import DeploymentRecord
from ..picture import STAGE, StageRecord
from .engine import Engine
from .engine_thread import EngineThread
from .events import Came, Expired, Lost, Ran
from .events import Send as SendEffect
from .messages import BLOCK, Alive, Close, Declined, Open, Probe, Said, Send
from .route import Run
from .stage import Effect, Event, Stage, StageConfig
from .steps import Result
from .worker import Worker

_RETRY_S: Final = 1.0
_DRAIN_S: Final = 600.0  # for sessions on layers that are served elsewhere by now; what is left then is mended there
_DRAIN_LOOK_S: Final = 0.5

log = logging.getLogger(__name__)

SendTogether = Callable[[Sequence[tuple[PeerId, Said]]], None]
Load = Callable[[str, DeploymentRecord, Run], Awaitable[Engine]]


class _Planned(Protocol):
    @property
    def assigned(self) -> Mapping[Any, Run]: ...
    @property
    def missing_bytes(self) -> int: ...


class Pictured(Protocol):
    """What is read out of the records, afresh at each question."""

    def deployments(self) -> dict[str, DeploymentRecord]:
        """Return what ought to be served, by name."""

    def plans(self) -> Mapping[str, _Planned]:
        """Return who should load what, by name."""

    def serving(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        """Return who has which run of layers loaded."""

    def arithmetics(self, name: str, version: int) -> dict[PeerId, str]:
        """Return what they say of how they round."""


@dataclass(slots=True, eq=False)
class Loaded:
    """A run of layers in memory, with its sessions."""

    name: str
    version: int
    run: Run
    engine: Engine
    stage: Stage
    thread: EngineThread = field(init=False)


class GenerationHost:
    """One node's stages of language models."""

    def __init__(
        self,
        mesh: Mesh,
        view: Pictured,
        load: Load,
        send: Send,
        send_together: SendTogether,
        soon: Callable[[float], None],
    ) -> None:
        """``soon`` is told when `tick` is due."""
        self.loaded: list[Loaded] = []
        self.more_comes = False  # of what arrived at once: no step begins before all of it is here
        self.trouble: dict[str, str] = {}  # model to why it cannot be served as asked
        self._mesh = mesh
        self._view = view
        self._load = load
        self._send = send
        self._send_together = send_together
        self._soon = soon
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Follow the plans for ever; at the end give back what was loaded."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    changed = self._mesh.changed
                    pause_s = float("inf") if await self._follow_plans() else _RETRY_S
                    with trio.move_on_after(pause_s):
                        await changed.wait()
        finally:
            for loaded in list(self.loaded):
                await self._unload(loaded, "its node stops")

    # -- what is loaded -----------------------------------------------------------------------------------------------

    def current(self, name: str) -> Loaded | None:
        """Return what takes new sessions of a model here."""
        return next((one for one in self.loaded if one.name == name and not one.stage.draining), None)

    def uses(self, peer: PeerId) -> bool:
        """Whether sessions here have to do with a peer."""
        return any(peer in loaded.stage.peers for loaded in self.loaded)

    async def _follow_plans(self) -> bool:
        """Make this node's stages those of the plans; false when something could not be loaded yet."""
        wanted = {name: record for name, record in self._view.deployments().items() if record.kind == "causal_lm"}
        plans, done = self._view.plans(), True
        for name in {loaded.name for loaded in self.loaded} - set(wanted):
            self._retire(name, f"{name!r} is not served any more")
        for name, record in wanted.items():
            if (plan := plans.get(name)) is None:
                continue
            self.trouble.pop(name, None)
            if plan.missing_bytes:
                self.trouble[name] = f"no devices that are here can hold it: {plan.missing_bytes} B are missing"
            done = await self._follow(name, record, plan.assigned.get(self._mesh.me)) and done
        return done

    async def _follow(self, name: str, record: DeploymentRecord, run: Run | None) -> bool:
        have = self.current(name)
        if have is not None and (have.version, have.run) == (record.version, run):
            return True
        if run is None:
            self._retire(name, f"layers of {name!r} are served elsewhere now")
            return True
        try:
            engine = await self._load(name, record, run)
        except Exception as error:  # noqa: BLE001  a stranger's model may make anything raise anything
            log.warning("cannot load layers %d to %d of %s yet: %s", run[0], run[1] - 1, name, error)
            self.trouble[name] = str(error) or type(error).__name__
            return False
        self._retire(name, f"other layers or another version of {name!r} are served here now")
        self._begin(name, record, run, engine)
        return True

    def _begin(self, name: str, record: DeploymentRecord, run: Run, engine: Engine) -> None:
        worker = Worker(engine, activations=record.activations)
        position_bytes = max(1, engine.cache_bytes_per_position)  # an embedding alone has none; sessions are bounded
        pages = -(-record.positions // BLOCK) * BLOCK
        config = StageConfig(cache_bytes_max=record.sessions * pages * position_bytes)
        stage = Stage(
            self._mesh.me,
            config,
            position_bytes=position_bytes,
            input_bytes=worker.input_bytes,
        )
        loaded = Loaded(name, record.version, run, engine, stage)
        loaded.thread = EngineThread(f"{name} {run[0]}:{run[1]}", worker, partial(self._ran, loaded))
        self.loaded.append(loaded)
        said = StageRecord(version=record.version, first=run[0], end=run[1], arithmetic=engine.arithmetic)
        self._mesh.publish(STAGE, name, said)
        log.info("serving layers %d to %d of %s, version %d", run[0], run[1] - 1, name, record.version)

    def _retire(self, name: str, reason: str) -> None:
        """Take no new sessions on what is loaded of a model."""
        have = self.current(name)
        if have is not None:
            have.stage.draining = reason
            self._mesh.withdraw(STAGE, name)
            self._nursery.start_soon(self._drain, have)

    async def _drain(self, loaded: Loaded) -> None:
        with trio.move_on_after(_DRAIN_S):
            while loaded.stage.sessions or loaded.stage.waiting:  # noqa: ASYNC110  sessions are seconds to minutes
                await trio.sleep(_DRAIN_LOOK_S)
        await self._unload(loaded, loaded.stage.draining)

    async def _unload(self, loaded: Loaded, reason: str) -> None:
        self._carry_out(loaded, loaded.stage.close_all(trio.current_time(), reason))
        self.loaded.remove(loaded)
        await loaded.thread.aclose()

    # -- what is said -------------------------------------------------------------------------------------------------

    def receive(self, peer: PeerId, said: Said) -> None:
        """Take what a peer, or this node's own asker, said to a stage."""
        if isinstance(said, Open):
            self._open(peer, said)
        elif isinstance(said, Close):
            for loaded in self.loaded:
                self._tell(loaded, Came(peer, said))
        elif (holder := self._holder(said.session)) is not None:
            self._tell(holder, Came(peer, said))
        elif isinstance(said, Probe):
            self._send(peer, Alive(session=said.session, epoch=said.epoch, state="unknown"))

    def lost(self, peer: PeerId, reason: str, *, left: bool) -> None:
        """A peer is gone from the mesh, or from this node's sight."""
        for loaded in self.loaded:
            self._tell(loaded, Lost(peer, reason, left))

    def tick(self, now: float) -> None:
        """Let deadlines that have come do what they do."""
        for loaded in self.loaded:
            if loaded.stage.deadline <= now:
                self._tell(loaded, Expired())

    @property
    def deadline(self) -> float:
        """When the next is due."""
        return min((loaded.stage.deadline for loaded in self.loaded), default=float("inf"))

    def _open(self, peer: PeerId, opened: Open) -> None:
        holder = self._holder(opened.session)
        wanted = (opened.name, opened.version, opened.runs[opened.index])
        fitting = [
            one
            for one in self.loaded
            if (one.name, one.version, one.run) == wanted and opened.runs[-1][1] == one.engine.layers
        ]
        target = next((one for one in fitting if one is holder), fitting[-1] if fitting else None)
        if self._is_refused(peer, opened):
            return
        if holder is not None and holder is not target:  # the session goes on with other layers of this node
            self._tell(holder, Came(opened.asker, Close(session=opened.session, epoch=max(opened.epoch - 1, 0))))
        if target is not None:
            self._tell(target, Came(peer, opened))
        else:
            first, end = opened.runs[opened.index]
            reason = f"it does not serve layers {first} to {end - 1} of {opened.name!r} in this version"
            gone = Declined(session=opened.session, epoch=opened.epoch, why="gone", reason=reason)
            self._send(opened.asker, gone)

    def _is_refused(self, peer: PeerId, opened: Open) -> bool:
        """Whoever opens and whoever asks has to be allowed to use the model; who is not is told so.

        A peer may name as the asker whom it likes, and as many: nobody is told who has not proved to belong.
        """
        for who in dict.fromkeys((peer, opened.asker)):
            try:
                self._mesh.admission.standing(who, time.time()).require(f"infer:{opened.name}", time.time())
            except Refused as error:
                log.info("a session of %s is refused: %s", short(opened.asker), error)
                why = Declined(session=opened.session, epoch=opened.epoch, why="refused", reason=str(error)[:1000])
                if self._mesh.admission.is_member(who):
                    self._send(who, why)
                return True
        return False

    def _holder(self, session: bytes) -> Loaded | None:
        return next((one for one in self.loaded if one.stage.holds(session)), None)

    def _ran(self, loaded: Loaded, results: tuple[Result, ...]) -> None:
        self._tell(loaded, Ran(results))

    def _tell(self, loaded: Loaded, event: Event) -> None:
        more = self.more_comes and isinstance(event, Came)
        self._carry_out(loaded, loaded.stage.handle(event, trio.current_time(), more=more))
        self._soon(loaded.stage.deadline)

    def settle(self) -> None:
        """All that came together is here: let what waits run."""
        self.more_comes = False
        for loaded in self.loaded:
            self._carry_out(loaded, loaded.stage.settle(trio.current_time()))

    def _carry_out(self, loaded: Loaded, effects: list[Effect]) -> None:
        sends = list[SendEffect]()
        for effect in effects:
            if isinstance(effect, SendEffect):
                sends.append(effect)
            else:
                loaded.thread.submit(effect)
        if sends:
            self._send_together([(one.peer, one.said) for one in sends])
