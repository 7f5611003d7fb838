"""The shell of stages: loads the runs of layers that the plan gives this node, and serves sessions on them.

A new version or another run is loaded beside the old one, which goes on with the sessions that it has until they end.
Where memory has no room for both, the old one drains first if others serve its layers meanwhile, for a bounded time;
if nobody does it is stopped, and its sessions go on as soon as the new one is there.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ...mesh.errors import Refused
from ...mesh.identity import PeerId, short
from ...mesh.mesh import Mesh
from ..deployed import shortage
from ..deployments import DeploymentRecord
from ..picture import STAGE, StageRecord
from ..seeing.request import following
from .engine import Engine
from .engine_thread import EngineThread
from .events import Came, Expired, Lost, Ran
from .events import Send as SendEffect
from .messages import BLOCK, Alive, Close, Declined, Open, Probe, Said, Send
from .outlook import Pictured
from .room import Takes, lacking_bytes, stays, waits_for
from .route import Run, reached
from .stage import Effect, Event, Stage, StageConfig
from .steps import Result
from .worker import Worker

_RETRY_S: Final = 1.0
_DRAIN_S: Final = 600.0  # for sessions on layers that are served elsewhere by now; what is left then is mended there
_DRAIN_LOOK_S: Final = 0.5
_ROOM_S: Final = 20.0  # the same where a successor waits for their memory: a third of what sessions wait for a route

log = logging.getLogger(__name__)

SendTogether = Callable[[Sequence[tuple[PeerId, Said]]], None]
Load = Callable[[str, DeploymentRecord, Run], Awaitable[Engine]]


@dataclass(slots=True, eq=False)
class Loaded:
    """A run of layers in memory, with its sessions."""

    name: str
    version: int
    run: Run
    engine: Engine
    stage: Stage
    takes: Takes
    drains_since: float = 0.0  # if it does
    gone: trio.Event = field(default_factory=trio.Event)  # and nothing holds its memory any more
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
        *,
        memory_bytes: int | None = None,
    ) -> None:
        """``soon`` is told when `tick` is due; ``memory_bytes`` may be held for serving, None: as much as plans say."""
        self.loaded: list[Loaded] = []
        self.more_comes = False  # of what arrived at once: no step begins before all of it is here
        self.trouble: dict[str, str] = {}  # model to why it cannot be served as asked
        self._mesh = mesh
        self._view = view
        self._load = load
        self._send = send
        self._send_together = send_together
        self._soon = soon
        self._memory_bytes = memory_bytes
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
        planned = {name: plan for name in wanted if (plan := plans.get(name)) is not None}
        held = {one.name: (one.version, one.run) for one in self._current()}
        runs = {name: plan.assigned[self._mesh.me] for name, plan in planned.items() if self._mesh.me in plan.assigned}
        for name, plan in planned.items():
            self.trouble.pop(name, None)
            if plan.missing_bytes:
                self.trouble[name] = shortage(plan.missing_bytes, plan.fits_at)
            short = plan.missing_bytes > 0 and stays(name, wanted[name].version, held, runs)
            if name not in runs and not short:
                self._retire(name, f"layers of {name!r} are served elsewhere now")  # before others are loaded instead
        for name, run in runs.items():
            done = await self._follow(name, wanted[name], run) and done
        return done

    async def _follow(self, name: str, record: DeploymentRecord, run: Run) -> bool:
        if any((one.name, one.version, one.run) == (name, record.version, run) for one in self._current()):
            return True
        if lacking := await self._make_room(name, record, run):
            self.trouble[name] = waits_for(run[0], run[1] - 1, lacking, self._draining_sessions())
            return False
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
        loaded = Loaded(name, record.version, run, engine, stage, _takes(record, run))
        loaded.thread = EngineThread(f"{name} {run[0]}:{run[1]}", worker, partial(self._ran, loaded))
        self.loaded.append(loaded)
        said = StageRecord(version=record.version, first=run[0], end=run[1], arithmetic=engine.arithmetic)
        self._mesh.publish(STAGE, name, said)
        log.info("serving layers %d to %d of %s, version %d", run[0], run[1] - 1, name, record.version)

    # -- what goes ----------------------------------------------------------------------------------------------------

    def _retire(self, name: str, reason: str) -> None:
        """Take no new sessions on what is loaded of a model."""
        have = self.current(name)
        if have is not None:
            have.stage.draining, have.drains_since = reason, trio.current_time()
            self._mesh.withdraw(STAGE, name)
            self._nursery.start_soon(self._drain, have)

    async def _drain(self, loaded: Loaded) -> None:
        with trio.move_on_after(_DRAIN_S):
            while loaded.stage.sessions or loaded.stage.waiting:
                with trio.move_on_after(_DRAIN_LOOK_S):
                    await loaded.gone.wait()
        await self._unload(loaded, loaded.stage.draining)

    async def _unload(self, loaded: Loaded, reason: str) -> None:
        if loaded not in self.loaded:
            return  # it did not drain in time
        self._carry_out(loaded, loaded.stage.close_all(trio.current_time(), reason))
        self.loaded.remove(loaded)
        loaded.gone.set()
        await loaded.thread.aclose()

    def _current(self) -> list[Loaded]:
        return [loaded for loaded in self.loaded if not loaded.stage.draining]

    def _draining_sessions(self) -> int:
        return sum(loaded.stage.sessions for loaded in self.loaded if loaded.stage.draining)

    async def _make_room(self, name: str, record: DeploymentRecord, run: Run) -> int:
        """Have what is older make room for layers; returns how many bytes it still has to give back.

        Whatever cannot be had back in time is stopped: plans keep the bounds of memory, so there is room in the end.
        """
        lacking = self._lacking(record, run)
        have = self.current(name)
        if lacking and have is not None:
            others = self._others(name, have.version)
            self._retire(name, f"other layers or another version of {name!r} are about to be served here")
            if reached(others, have.engine.layers) < have.engine.layers:  # nobody could answer meanwhile
                await self._unload(have, have.stage.draining)
        for old in list(self.loaded):
            idle = not (old.stage.sessions or old.stage.waiting)
            late = trio.current_time() >= old.drains_since + _ROOM_S
            if old.stage.draining and (idle or late) and self._lacking(record, run):
                await self._unload(old, old.stage.draining)
        return self._lacking(record, run) if self._awaits(name) else 0

    def _lacking(self, record: DeploymentRecord, run: Run) -> int:
        loaded = [(one.takes, bool(one.stage.draining)) for one in self.loaded]
        return lacking_bytes(self._memory_bytes, loaded, _takes(record, run))

    def _awaits(self, name: str) -> bool:
        """Whether anything else is about to give memory back: what drains, or has to make way in its turn."""
        deployments, plans = self._view.deployments(), self._view.plans()
        for one in self.loaded:
            plan, record = plans.get(one.name), deployments.get(one.name)
            if one.stage.draining or one.name == name or plan is None or record is None:
                return True
            if (one.version, one.run) != (record.version, plan.assigned.get(self._mesh.me)):
                return True
        return False

    def _others(self, name: str, version: int) -> dict[Run, list[PeerId]]:
        serving = self._view.serving(name, version)
        return {run: [peer for peer in peers if peer != self._mesh.me] for run, peers in serving.items()}

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
            first, end = opened.runs[opened.index]
            with following(opened.session, "session.stage", model=opened.name, first=first, end=end):
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


def _takes(record: DeploymentRecord, run: Run) -> Takes:
    caches = sum(record.cache_bytes[slice(*run)]) * record.sessions * record.positions
    return Takes(record.run_bytes(run), caches)
