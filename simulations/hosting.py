"""One device's stages of language models: loads what the plan gives it, hands over, and lets sessions run on them.

Wired as `node/generation/host.py` is, around the deployed view, placement and stage machine; the engine is a toy whose
steps take virtual time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ..mesh.errors import Refused
from ..mesh.identity import PeerId
from ..node.deployments import DeploymentRecord
from ..node.generation.events import Came, Expired, Lost, Ran, Send
from ..node.generation.messages import BLOCK, Alive, Close, Declined, Open, Probe, Said
from ..node.generation.room import Takes, lacking_bytes, stays
from ..node.generation.route import Run, reached
from ..node.generation.stage import Effect, Event, Stage, StageConfig
from ..node.generation.steps import Step
from ..node.generation.worker import Worker
from ..node.inference.view import View
from ..node.picture import STAGE, StageRecord
from .device import Device
from .language import KIND, Language
from .toy import ToyEngine

_RETRY_S: Final = 1.0  # this and the next three as in node/generation/host.py
_DRAIN_S: Final = 600.0
_DRAIN_LOOK_S: Final = 0.5
_ROOM_S: Final = 20.0


class Streams(Protocol):
    """Whom what stages say is given to."""

    def send(self, peer: PeerId, said: Said) -> None: ...
    def send_together(self, all_said: list[tuple[PeerId, Said]]) -> None: ...


@dataclass(slots=True, eq=False)
class Loaded:
    """A run of layers in memory, with its sessions."""

    name: str
    version: int
    run: Run
    engine: ToyEngine
    worker: Worker
    stage: Stage
    takes: Takes
    drains_since: float = 0.0
    gone: bool = False


class Hosting:
    """One device's stages."""

    def __init__(
        self, device: Device, view: View, language: Language, streams: Streams, soon: Callable[[float], None]
    ) -> None:
        self.loaded: list[Loaded] = []
        self.more_comes = False
        self.computing: set[PeerId] = set()  # whose sessions' steps are under way here
        self._device, self._view, self._language, self._streams, self._soon = device, view, language, streams, soon
        self._loading = False
        self._retries = False
        self._arithmetic = "compiled" if device.world.dice(f"kernel/{device.name}").random() < 0.5 else "plain"

    # -- what is loaded -----------------------------------------------------------------------------------------------

    def current(self, name: str) -> Loaded | None:
        """Return what takes new sessions of a model here."""
        return next((one for one in self.loaded if one.name == name and not one.stage.draining), None)

    def look(self) -> None:
        """Follow the plans; look again in a moment when something could not be loaded yet."""
        if self._loading or self._follow_plans() or self._retries:
            return
        self._retries = True

        def again() -> None:
            self._retries = False
            self.look()

        self._device.after(_RETRY_S, again)

    def _follow_plans(self) -> bool:
        wanted = {name: record for name, record in self._view.deployments().items() if record.kind == "causal_lm"}
        plans, me, done = self._view.plans(), self._device.me, True
        for name in sorted({loaded.name for loaded in self.loaded} - set(wanted)):
            self._retire(name, f"{name!r} is not served any more")
        planned = {name: plan for name in wanted if (plan := plans.get(name)) is not None}
        held = {one.name: (one.version, one.run) for one in self.loaded if not one.stage.draining}
        runs = {name: plan.assigned[me] for name, plan in planned.items() if me in plan.assigned}
        for name, plan in planned.items():
            short = bool(plan.missing_bytes) and stays(name, wanted[name].version, held, runs)
            if me not in plan.assigned and not short:
                self._retire(name, f"layers of {name!r} are served elsewhere now")
        for name, run in runs.items():
            done = self._follow(name, wanted[name], run) and done
        return done or self._loading

    def _follow(self, name: str, record: DeploymentRecord, run: Run) -> bool:
        have = self.current(name)
        if have is not None and (have.version, have.run) == (record.version, run):
            return True
        if self._loading or self._make_room(name, record, run):
            return False
        self._loading = True
        self._device.work(self._language.load_s, lambda: self._begin(name, record, run))
        return False

    def _begin(self, name: str, record: DeploymentRecord, run: Run) -> None:
        self._loading = False
        self._retire(name, f"other layers or another version of {name!r} are served here now")
        engine = ToyEngine(*run, layers=len(record.weights_bytes))
        engine.arithmetic = self._arithmetic
        worker = Worker(engine, activations=record.activations)
        pages = -(-record.positions // BLOCK) * BLOCK
        config = StageConfig(cache_bytes_max=record.sessions * pages * engine.cache_bytes_per_position)
        stage = self._device.machines.stage(
            self._device.me,
            config,
            position_bytes=engine.cache_bytes_per_position,
            input_bytes=worker.input_bytes,
        )
        self.loaded.append(Loaded(name, record.version, run, engine, worker, stage, _takes(record, run)))
        self._device.tell(f"serves layers {run[0]} to {run[1] - 1} of {name}, version {record.version}")
        said = StageRecord(version=record.version, first=run[0], end=run[1], arithmetic=engine.arithmetic)
        self._device.records.publish(KIND + STAGE, name, said)
        self.look()

    # -- what goes ----------------------------------------------------------------------------------------------------

    def _retire(self, name: str, reason: str) -> None:
        have = self.current(name)
        if have is not None:
            have.stage.draining, have.drains_since = reason, self._device.now
            self._device.records.withdraw(KIND + STAGE, name)
            self._device.after(0.0, lambda: self._drain(have))

    def _drain(self, loaded: Loaded) -> None:
        busy = loaded.stage.sessions or loaded.stage.waiting
        if loaded.gone:
            return
        if busy and self._device.now < loaded.drains_since + _DRAIN_S:
            self._device.after(_DRAIN_LOOK_S, lambda: self._drain(loaded))
        else:
            self._unload(loaded, loaded.stage.draining)

    def _unload(self, loaded: Loaded, reason: str) -> None:
        if loaded not in self.loaded:
            return
        self._carry_out(loaded, loaded.stage.close_all(self._device.now, reason))
        self.loaded.remove(loaded)
        loaded.gone = True
        loaded.worker.close()
        self._device.tell(f"unloads layers {loaded.run[0]} to {loaded.run[1] - 1} of {loaded.name}: {reason}")

    def _make_room(self, name: str, record: DeploymentRecord, run: Run) -> int:
        have, now = self.current(name), self._device.now
        if self._lacking(record, run) and have is not None:
            serving = self._view.serving(name, have.version)
            others = {each: [peer for peer in peers if peer != self._device.me] for each, peers in serving.items()}
            self._retire(name, f"other layers or another version of {name!r} are about to be served here")
            if reached(others, have.engine.layers) < have.engine.layers:  # nobody could answer meanwhile
                self._unload(have, have.stage.draining)
        for old in list(self.loaded):
            idle = not (old.stage.sessions or old.stage.waiting)
            if old.stage.draining and (idle or now >= old.drains_since + _ROOM_S) and self._lacking(record, run):
                self._unload(old, old.stage.draining)
        return self._lacking(record, run) if self._awaits(name) else 0

    def _awaits(self, name: str) -> bool:
        """Whether anything else is about to give memory back."""
        deployments, plans = self._view.deployments(), self._view.plans()
        for one in self.loaded:
            plan, record = plans.get(one.name), deployments.get(one.name)
            if one.stage.draining or one.name == name or plan is None or record is None:
                return True
            if (one.version, one.run) != (record.version, plan.assigned.get(self._device.me)):
                return True
        return False

    def _lacking(self, record: DeploymentRecord, run: Run) -> int:
        loaded = [(one.takes, bool(one.stage.draining)) for one in self.loaded]
        return lacking_bytes(self._language.memory_bytes, loaded, _takes(record, run))

    # -- what is said -------------------------------------------------------------------------------------------------

    def receive(self, peer: PeerId, said: Said) -> None:
        """Take what a peer, or this device's own asker, said to a stage."""
        if isinstance(said, Open):
            self._open(peer, said)
        elif isinstance(said, Close):
            for loaded in list(self.loaded):
                self._hear(loaded, Came(peer, said))
        elif (holder := self._holder(said.session)) is not None:
            self._hear(holder, Came(peer, said))
        elif isinstance(said, Probe):
            self._streams.send(peer, Alive(session=said.session, epoch=said.epoch, state="unknown"))

    def lost(self, peer: PeerId, reason: str, *, left: bool) -> None:
        for loaded in list(self.loaded):
            self._hear(loaded, Lost(peer, reason, left))

    def tick(self, now: float) -> None:
        for loaded in list(self.loaded):
            if loaded.stage.deadline <= now:
                self._hear(loaded, Expired())

    @property
    def deadline(self) -> float:
        return min((loaded.stage.deadline for loaded in self.loaded), default=float("inf"))

    def _open(self, peer: PeerId, opened: Open) -> None:
        if self._is_refused(peer, opened):
            return
        holder, run = self._holder(opened.session), opened.runs[opened.index]
        wanted = (opened.name, opened.version, run, opened.runs[-1][1])
        fitting = [one for one in self.loaded if (one.name, one.version, one.run, one.engine.layers) == wanted]
        target = next((one for one in fitting if one is holder), fitting[-1] if fitting else None)
        if holder is not None and holder is not target:
            self._hear(holder, Came(opened.asker, Close(session=opened.session, epoch=max(opened.epoch - 1, 0))))
        if target is not None:
            self._hear(target, Came(peer, opened))
        else:
            reason = f"it does not serve layers {run[0]} to {run[1] - 1} of {opened.name!r} in this version"
            gone = Declined(session=opened.session, epoch=opened.epoch, why="gone", reason=reason)
            self._streams.send(opened.asker, gone)

    def _is_refused(self, peer: PeerId, opened: Open) -> bool:
        unix_s = self._device.unix_s
        for who in dict.fromkeys((peer, opened.asker)):
            try:
                self._device.admission.standing(who, unix_s).require(f"infer:{opened.name}", unix_s)
            except Refused as error:
                why = Declined(session=opened.session, epoch=opened.epoch, why="refused", reason=str(error)[:1000])
                if self._device.admission.is_member(who):
                    self._streams.send(who, why)
                return True
        return False

    def _holder(self, session: bytes) -> Loaded | None:
        return next((one for one in self.loaded if one.stage.holds(session)), None)

    def _hear(self, loaded: Loaded, event: Event) -> None:
        more = self.more_comes and isinstance(event, Came)
        self._carry_out(loaded, loaded.stage.handle(event, self._device.now, more=more))
        self._soon(loaded.stage.deadline)

    def settle(self) -> None:
        """All that came together is here: let what waits run."""
        self.more_comes = False
        for loaded in list(self.loaded):
            self._carry_out(loaded, loaded.stage.settle(self._device.now))

    def _carry_out(self, loaded: Loaded, effects: list[Effect]) -> None:
        sends = [effect for effect in effects if isinstance(effect, Send)]
        for effect in effects:
            if isinstance(effect, Step) and not loaded.gone:
                self._compute(loaded, effect)
        if sends:
            self._streams.send_together([(one.peer, one.said) for one in sends])

    def _compute(self, loaded: Loaded, step: Step) -> None:
        results = loaded.worker.execute(step)
        self.computing = loaded.stage.peers - {self._device.me} if step.work else set()
        positions = sum(len(work.ids) for work in step.work)
        took_s = self._language.step_s * (1 + positions / BLOCK) if positions else 0.0

        def done() -> None:
            self.computing = set()
            self._hear(loaded, Ran(results))

        self._device.work(took_s, done)


def _takes(record: DeploymentRecord, run: Run) -> Takes:
    caches = sum(record.cache_bytes[slice(*run)]) * record.sessions * record.positions
    return Takes(record.run_bytes(run), caches)
