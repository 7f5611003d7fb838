"""One device's part in answering: it loads the stage that the plan gives it, computes, passes on, asks, and re-routes.

Wired as `node/inference/serving.py` is, around the deployed placement and session machines. A layer is a map of
integers, so the right answer to every request is known.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ..mesh.errors import Busy, LeptonError, PeerError, UsageError
from ..mesh.identity import PeerId
from ..mesh.limits import CALL_TIMEOUT_S
from ..node.inference.messages import StageBroke, StageResult, StageWork
from ..node.inference.session import Absent, Arrived, Ask, Broke, Config, Done, Event, Expired, Failed, Picture, Session
from ..node.inference.view import may_hold
from ..node.placement import Device as Offer
from ..node.placement import Job, Plan, Run, place
from .calls import Answer, Empty, Incoming, Method
from .calls import Done as Finish
from .device import Device
from .picture import MODEL, MODEL_NAME, MODULUS, PROFILE, STAGE, ModelRecord, Profile, StageRecord, run_layers
from .scenario import Model

_QUEUE_MAX = 64  # as in node/inference/serving.py
_NUMBER_BYTES = 8


class RequestWatch(Protocol):
    """Who hears of requests: the ledger that their answers are checked against."""

    def asked(self, number: int, attempt: int) -> None: ...
    def answered(self, number: int, y: int | None) -> None: ...
    def failed(self, number: int, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Stage:
    version: int
    run: Run


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request of this device, and who may answer it."""

    number: int
    x: int
    version: int
    session: Session
    last: set[PeerId]
    y: int | None = None  # what came last


class Serving:
    """One device's stage, and its requests."""

    def __init__(self, device: Device, model: Model, watch: RequestWatch) -> None:
        self.stage: _Stage | None = None
        self.computing: PeerId | None = None  # whose work this stage is at, if any
        self._device, self._model, self._watch = device, model, watch
        self._config = Config()
        self._loading = False
        self._planned_from: tuple[object, ...] = ()
        self._planned = Plan()
        self._work: deque[tuple[StageWork, int]] = deque()
        self._waiting: dict[str, _Waiting] = {}
        device.calls.serve("infer.run", Method("infer", StageWork, self._take_work))
        device.calls.serve("infer.result", Method("infer", StageResult, self._take_result))
        device.calls.serve("infer.broke", Method("infer", StageBroke, self._take_broke))
        device.on_absent.append(self._left)
        device.records.on_change.append(self._look)

    # -- what is served -----------------------------------------------------------------------------------------------

    def offered(self) -> ModelRecord | None:
        """Return the model that ought to be served, if one is known."""
        models = [model for _, model in self._device.records.live(MODEL, ModelRecord)]
        return max(models, key=lambda model: model.version, default=None)

    def plan(self, model: ModelRecord) -> Plan:
        """Compute who should load what, from the picture alone."""
        held = {record.owner: stage for record, stage in self._device.records.live(STAGE, StageRecord)}
        offers = tuple(
            Offer(peer=owner, memory_bytes=profile.memory_bytes, holds=_run(held.get(owner)))
            for owner, profile in ((record.owner, said) for record, said in self._device.records.live(PROFILE, Profile))
            if may_hold(self._device.authority(owner), MODEL_NAME)
        )
        if self._planned_from != (model, offers):  # most news is not about what plans are made of
            self._planned_from = (model, offers)
            job = Job(weights_bytes=tuple(model.layer_bytes), copies=model.copies, spare=True)
            self._planned = place(job, offers)
        return self._planned

    def _look(self) -> None:
        """Follow a new picture: load what the plan gives this device; let requests that wait look again."""
        self._follow_plan()
        for token in list(self._waiting):
            self._event(token, Picture({}))

    def _follow_plan(self) -> None:
        model = self.offered()
        if model is None or self._loading:
            return
        run = self.plan(model).assigned.get(self._device.me)
        if run is None:
            self._unload()
        elif self.stage is None or (self.stage.version, self.stage.run) != (model.version, run):
            self._loading = True
            self._device.work(self._model.load_s, lambda: self._loaded(_Stage(model.version, run)))

    def _loaded(self, stage: _Stage) -> None:
        self._loading = False
        self._unload()
        self.stage = stage
        first, end = stage.run
        self._device.tell(f"serves layers {first} to {end - 1}")
        self._device.records.publish(STAGE, MODEL_NAME, StageRecord(version=stage.version, first=first, end=end))
        self._follow_plan()  # the picture may have changed meanwhile

    def _unload(self) -> None:
        if self.stage is not None:
            self.stage = None
            self._device.records.withdraw(STAGE, MODEL_NAME)

    def _serving(self, version: int) -> dict[Run, list[str]]:
        found: dict[Run, list[str]] = {}
        for record, stage in self._device.records.live(STAGE, StageRecord):
            if stage.version == version and may_hold(self._device.authority(record.owner), MODEL_NAME):
                found.setdefault((stage.first, stage.end), []).append(record.owner)
        return found

    # -- a stage at work ----------------------------------------------------------------------------------------------

    def _take_work(self, call: Incoming) -> Answer:
        work: StageWork = call.message
        stage = self.stage
        here = work.position < min(len(work.route), len(work.stages)) and work.route[work.position] == self._device.me
        if stage is None or not here or (stage.version, stage.run) != (work.version, work.stages[work.position]):
            raise UsageError("This node does not serve these layers (any more).")
        if len(self._work) >= _QUEUE_MAX:
            raise Busy(f"{_QUEUE_MAX} pieces of work wait here already.", 0.1)
        self._work.append((work, _number(call.body)))
        if len(self._work) == 1:
            self._compute()
        return Answer(Empty())

    def _compute(self) -> None:
        work, _ = self._work[0]
        self.computing = work.asker
        self._device.work(self._model.compute_s, self._computed)

    def _computed(self) -> None:
        work, x = self._work.popleft()
        self.computing = None
        self._pass_on(work, run_layers(*work.stages[work.position], x))
        if self._work:
            self._compute()

    def _pass_on(self, work: StageWork, y: int) -> None:
        """Give the output to the next stage, or to the asker if this was the last; tell the asker when that fails."""
        position = work.position + 1
        body = y.to_bytes(_NUMBER_BYTES, "big")
        if position == len(work.route):
            result = StageResult(session=work.session, attempt=work.attempt)
            if work.asker == self._device.me:  # a call to oneself takes no link
                self._device.after(0.0, lambda: self._result(work.session, y))
            else:
                self._device.call(work.asker, "infer.result", result, Empty, scope=MODEL_NAME, body=body)
            return
        target = work.route[position]
        message = StageWork(
            session=work.session, attempt=work.attempt, version=work.version, route=work.route,
            stages=work.stages, position=position, asker=work.asker,
        )  # fmt: skip

        def passed(result: Answer | LeptonError) -> None:
            if isinstance(result, LeptonError):
                self._tell_broke(work, target, str(result))

        self._ask_stage(target, message, body, passed, CALL_TIMEOUT_S)

    def _ask_stage(self, peer: PeerId, work: StageWork, body: bytes, done: Finish, timeout_s: float) -> None:
        if peer != self._device.me:
            self._device.call(peer, "infer.run", work, Empty, done, scope=MODEL_NAME, body=body, timeout_s=timeout_s)
            return
        try:
            done(self._take_work(Incoming(peer, MODEL_NAME, work, body)))
        except LeptonError as error:
            failure = error
            self._device.after(0.0, lambda: done(failure))

    def _tell_broke(self, work: StageWork, peer: PeerId, reason: str) -> None:
        broke = StageBroke(session=work.session, attempt=work.attempt, peer=peer, reason=reason[:500])
        if work.asker == self._device.me:
            self._event(work.session, Broke(peer, work.attempt, reason))
        else:
            self._device.call(work.asker, "infer.broke", broke, Empty, scope=MODEL_NAME)

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, number: int, x: int) -> bool:
        """Send one request through the mesh; false while no model is known here, and nothing was accepted."""
        model = self.offered()
        if model is None:
            return False
        token = self._device.dice.randbytes(16).hex()
        session = self._device.machines.session(
            len(model.layer_bytes), self._device.dice, self._device.now, self._config
        )
        self._waiting[token] = _Waiting(number, x, model.version, session, set())
        self._event(token, Picture({}))
        return True

    def _event(self, token: str, event: Event) -> None:
        waiting = self._waiting.get(token)
        if waiting is None:
            return  # of a request that is over, or never was
        if isinstance(event, Picture):
            event = Picture(self._serving(waiting.version))
        for effect in waiting.session.handle(event, self._device.now):
            match effect:
                case Ask():
                    self._ask(token, waiting, effect)
                case Done():
                    self._waiting.pop(token, None)
                    self._watch.answered(waiting.number, waiting.y)
                case Failed(reason):
                    self._waiting.pop(token, None)
                    self._watch.failed(waiting.number, reason)
        if token in self._waiting:
            deadline = waiting.session.deadline
            self._device.after(deadline - self._device.now, lambda: self._expire(token, deadline))

    def _expire(self, token: str, deadline: float) -> None:
        waiting = self._waiting.get(token)
        if waiting is not None and waiting.session.deadline == deadline:
            self._event(token, Expired())

    def _ask(self, token: str, waiting: _Waiting, ask: Ask) -> None:
        self._watch.asked(waiting.number, ask.attempt)
        first = PeerId(ask.route[0])
        waiting.last.add(PeerId(ask.route[-1]))
        work = StageWork(
            session=token, attempt=ask.attempt, version=waiting.version, stages=ask.stages, position=0,
            route=tuple(PeerId(peer) for peer in ask.route), asker=self._device.me,
        )  # fmt: skip

        def done(result: Answer | LeptonError) -> None:
            if isinstance(result, LeptonError):
                self._event(token, Broke(first, ask.attempt, str(result)))

        body = waiting.x.to_bytes(_NUMBER_BYTES, "big")
        self._ask_stage(first, work, body, done, self._config.attempt_timeout_s)

    def _take_result(self, call: Incoming) -> Answer:
        waiting = self._waiting.get(call.message.session)
        if waiting is not None and call.caller in waiting.last:
            self._result(call.message.session, _number(call.body))
        return Answer(Empty())

    def _result(self, token: str, y: int) -> None:
        if (waiting := self._waiting.get(token)) is not None:
            waiting.y = y
            self._event(token, Arrived())

    def _take_broke(self, call: Incoming) -> Answer:
        message: StageBroke = call.message
        self._event(message.session, Broke(message.peer, message.attempt, message.reason))
        return Answer(Empty())

    def _left(self, peer: PeerId) -> None:
        for token in list(self._waiting):
            self._event(token, Absent(peer))


def _run(stage: StageRecord | None) -> Run | None:
    return None if stage is None else (stage.first, stage.end)


def _number(body: bytes) -> int:
    x = int.from_bytes(body, "big")
    if len(body) != _NUMBER_BYTES or x >= MODULUS:
        raise PeerError(f"A number of {len(body)} B under {MODULUS} was due.")
    return x
