"""Requests of this node: each goes along a route of stages, and along another when that breaks."""

import logging
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import trio

from ...mesh import limits
from ...mesh.calls import Answer, Empty, Incoming, Method
from ...mesh.errors import LeptonError, LinkError, UsageError
from ...mesh.identity import PeerId
from ...mesh.mesh import Mesh
from ...mesh.tensors import Array
from ..objective import Objective
from ..seeing.request import session_id
from .known import Known, KnownChain
from .messages import StageBroke, StageResult, StageWork
from .session import Absent, Arrived, Ask, Broke, Config, Done, Expired, Failed, Picture, Run, Session
from .traced import Programs
from .view import View

_REQUESTS_AT_ONCE = 4  # of one `predict`: keeps two stages busy without filling their queues

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """One request of this node: where its events go, and who may answer it."""

    events: trio.MemorySendChannel[object]
    known: Known
    samples: int
    last: set[PeerId] = field(default_factory=set)


@dataclass(slots=True)
class Counts:
    """What this node asked, and how it went."""

    asked: int = 0
    failed: int = 0
    reroutes: int = 0


class Requests:
    """One node's requests in flight."""

    def __init__(self, mesh: Mesh, view: View, programs: Programs, config: Config | None = None) -> None:
        self.counts = Counts()
        self._mesh = mesh
        self._view = view
        self._programs = programs
        self._config = config or Config()
        self._waiting: dict[str, _Waiting] = {}
        self._rng = random.Random(secrets.randbits(64))
        mesh.calls.serve(
            Method(
                name="infer.result", needs="infer", takes=StageResult, handler=self._take_result,
                body_bytes_max=limits.BODY_BYTES_MAX,
            ),
            Method(name="infer.broke", needs="infer", takes=StageBroke, handler=self._take_broke),
        )  # fmt: skip
        mesh.on_absent.append(self._left)

    async def run(self) -> None:
        """Let requests that wait for a route look at every new picture, for ever."""
        while True:
            changed = self._mesh.changed
            for token in list(self._waiting):
                self._event(token, Picture({}))
            await changed.wait()

    async def is_whole_here(self, name: str) -> bool:
        """Whether this node has loaded all layers of a model itself. Raises UsageError when it is not there."""
        version, known = await self._known(name)
        end = 0
        for first, last in sorted(self._serving(name, version, self._mesh.me)):
            end = max(end, last) if first <= end else end
        return end == known.layers

    async def objective(self, name: str) -> Objective | None:
        """Return what the answers of a model are; None where nobody has said it. Raises LinkError like `predict`."""
        if (model := self._view.models().get(name)) is not None:
            return model.spec.objective
        deployment = self._view.deployments().get(name)
        if deployment is None or deployment.kind != "program":
            return None
        return (await self._programs.description(name, deployment)).objective

    async def predict(self, name: str, inputs: Sequence[Array], *, only: PeerId | None = None) -> list[Array]:
        """Run samples through the mesh: arrays (B, ...), one for each input of the model; returns arrays (B, ...).

        A trained model takes one, float32 (B, *inputs), and gives one, float32 (B, classes). With ``only`` the samples
        go to no other peer. Raises UsageError for a
        model that is not there or samples of another shape, Refused without the grant, LinkError when no route brought
        an answer in time.
        """
        self._mesh.authority(self._mesh.me).require(f"infer:{name}", time.time())
        version, known = await self._known(name)
        batches = await trio.to_thread.run_sync(known.batches, inputs)  # a large program takes a while
        results: dict[int, list[Array]] = {}
        limiter = trio.CapacityLimiter(_REQUESTS_AT_ONCE)

        async def one(index: int) -> None:
            async with limiter:
                results[index] = await self._request(name, version, known, batches[index], only)

        try:
            async with trio.open_nursery() as nursery:
                for index in range(len(batches)):
                    nursery.start_soon(one, index)
        except* LeptonError as group:
            raise _first(group) from None
        return [np.concatenate(parts) for parts in zip(*(results[index] for index in sorted(results)), strict=True)]

    async def _known(self, name: str) -> tuple[int, Known]:
        """Return a model's version and what is known of it. Raises UsageError when it is not there."""
        deployment = self._view.deployments().get(name)
        if name in self._view.models() or deployment is None:
            model = self._view.model(name)
            return model.version, KnownChain(model.spec)
        if deployment.kind != "program":
            raise UsageError(f"{name!r} is a language model: use `lepton-node generate`, or model.generate in Python.")
        return deployment.version, await self._programs.known(name, deployment)

    def _serving(self, name: str, version: int, only: PeerId | None) -> dict[Run, list[PeerId]]:
        found = {run: list(peers) for run, peers in self._view.serving(name, version).items()}
        return {run: [only] for run, peers in found.items() if only in peers} if only is not None else found

    async def _request(self, name: str, version: int, known: Known, x: list[Array], only: PeerId | None) -> list[Array]:
        """One batch: drive its session machine until it is done or has failed."""
        send, receive = trio.open_memory_channel[object](limits.CALLS_PER_PEER_MAX * 8)
        token = session_id().hex()
        waiting = _Waiting(send, known, len(x[0]))
        self._waiting[token] = waiting
        session = Session(known.layers, self._rng, trio.current_time(), self._config)
        self.counts.asked += 1
        try:
            async with trio.open_nursery() as nursery:
                event: object = Picture(self._serving(name, version, only))
                while True:
                    result = event if isinstance(event, list) else None
                    happened = Arrived() if result is not None else event
                    for effect in session.handle(happened, trio.current_time()):  # type: ignore[arg-type]
                        match effect:
                            case Ask():
                                self.counts.reroutes += effect.attempt > 1
                                waiting.last.add(PeerId(effect.route[-1]))
                                nursery.start_soon(self._ask, name, version, token, effect, x)
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
                            event = Picture(self._serving(name, version, only))
        finally:
            del self._waiting[token]

    async def _ask(self, name: str, version: int, token: str, ask: Ask, x: list[Array]) -> None:
        first = PeerId(ask.route[0])
        work = StageWork(
            session=token, attempt=ask.attempt, version=version, stages=ask.stages, position=0,
            route=tuple(PeerId(peer) for peer in ask.route), asker=self._mesh.me,
        )  # fmt: skip
        try:
            await self._mesh.calls.call(
                first, "infer.run", work, Empty, scope=name, arrays=x, timeout_s=self._config.attempt_timeout_s
            )
        except LeptonError as error:
            self._event(token, Broke(first, ask.attempt, str(error)))

    async def _take_result(self, call: Incoming[StageResult]) -> Answer[Empty]:
        waiting = self._waiting.get(call.message.session)
        if waiting is None or call.caller not in waiting.last:
            return Answer(Empty())  # of a request that is over, or never was
        self._event(call.message.session, waiting.known.check(call.arrays, waiting.samples))
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


def _first(group: BaseExceptionGroup[LeptonError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
