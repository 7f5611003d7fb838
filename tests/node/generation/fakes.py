"""A world of stages and askers on virtual time, around a toy model."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from lepton.mesh.identity import PeerId
from lepton.node.generation import asker as asking
from lepton.node.generation import messages, stage
from lepton.node.generation.apart import Apart, Pair
from lepton.node.generation.asker import Asked, Asker, AskerConfig
from lepton.node.generation.events import Came, Expired, Lost, Ran, Send
from lepton.node.generation.messages import Said
from lepton.node.generation.route import Load, Route, Run, Serving, choose
from lepton.node.generation.sampling import Sampling
from lepton.node.generation.stage import Stage, StageConfig
from lepton.node.generation.steps import Step
from lepton.node.generation.worker import Drawer, Worker
from lepton.simulations.toy import LAYERS, ToyEngine, alone


def draw(logits: npt.NDArray[np.float32], history: Sequence[int], sampling: Sampling, position: int) -> int:
    """A draw that looks at everything it may look at."""
    scores = np.array(logits, dtype=np.float64)
    for id_ in history:
        scores[id_] /= sampling.repetition_penalty
    if sampling.temperature:
        scores += sampling.temperature * np.random.default_rng([sampling.seed, position]).random(len(scores))
    return int(np.argmax(scores))


def undisturbed(prompt: Sequence[int], count: int, sampling: Sampling, draw: Drawer = draw) -> list[int]:
    """What must come out, computed with nobody else there."""
    return list(itertools.islice(alone(prompt, sampling, draw=draw), count))


@dataclass(kw_only=True)
class Faults:
    """What the network does to what is said, after the first moment and until ``until_s``."""

    lose: float = 0.0
    double: float = 0.0
    delay_s: float = 0.0  # at most, besides the usual; what is said overtakes what was said
    until_s: float = math.inf


@dataclass
class Device:
    """One node: at most one stage, and its askers."""

    peer: PeerId
    stage: Stage | None = None
    worker: Worker | None = None
    engine: ToyEngine | None = None
    run: Run = (0, 0)
    alive: bool = True
    stalled: list[Callable[[], None]] | None = None
    life: int = 0


@dataclass
class Heard:
    """What one session gave."""

    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    failed: asking.Failed | None = None
    pauses: list[str] = field(default_factory=list)


class World:
    """Devices, askers and a queue of what happens next."""

    def __init__(self, seed: int, *, faults: Faults | None = None, asker: AskerConfig | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.faults = faults or Faults()
        self.asker_config = asker or AskerConfig()
        self.devices: dict[PeerId, Device] = {}
        self.askers: dict[bytes, tuple[PeerId, Asker, Heard]] = {}
        self.said: list[tuple[float, PeerId, PeerId, Said]] = []
        self.cut: set[tuple[PeerId, PeerId]] = set()  # what one says does not come to the other, and nobody is told
        self.apart: dict[PeerId, Apart] = {}  # what each asking device has found out
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._last_on: dict[tuple[PeerId, PeerId], float] = {}

    # -- who is there -------------------------------------------------------------------------------------------------

    def device(self, name: str, run: Run | None = None, **config: float) -> PeerId:
        """Add a device, or start a dead one anew."""
        peer = PeerId(name)
        old = self.devices.get(peer)
        device = Device(peer, life=old.life + 1 if old else 0)
        if run is not None:
            device.run, device.engine = run, ToyEngine(*run)
            device.worker = Worker(device.engine, draw)
            settings = StageConfig(**{"cache_bytes_max": 1 << 20, "chunk": 5, "window": 16, **config})  # type: ignore[arg-type]
            device.stage = Stage(peer, settings, position_bytes=16, input_bytes=device.worker.input_bytes)
        self.devices[peer] = device
        self.tell_picture()
        return peer

    def kill(self, peer: PeerId, *, unnoticed_s: float = 0.0) -> None:
        """End a device's process; others notice after a while."""
        self.devices[peer].alive = False
        life = self.devices[peer].life

        def notice() -> None:
            if self.devices[peer].life == life:
                self._lost(peer, "left the mesh")

        self.after(unnoticed_s, notice)

    def stall(self, peer: PeerId, duration_s: float) -> None:
        """Stop a device's process for a while; what is said to it waits."""
        device = self.devices[peer]
        if device.stalled is None:
            device.stalled = []
            self.after(duration_s, lambda: self._go_on(device))

    def _go_on(self, device: Device) -> None:
        waiting, device.stalled = device.stalled or [], None
        for what in waiting:
            what()

    def _lost(self, peer: PeerId, reason: str) -> None:
        for device in list(self.devices.values()):
            if device.alive and device.stage is not None and device.peer != peer:
                self._to_stage(device, Lost(peer, reason))
        for owner, asker, heard in list(self.askers.values()):
            if owner != peer:
                self._carry_out_asker(owner, asker, heard, asker.handle(Lost(peer, reason), self.now))
        self.tell_picture()

    def tell_picture(self) -> None:
        for owner, asker, heard in list(self.askers.values()):
            self._carry_out_asker(owner, asker, heard, asker.handle(self.picture(), self.now))

    def picture(self) -> asking.Picture:
        serving: dict[Run, list[PeerId]] = {}
        for device in self.devices.values():
            if device.stage is not None and device.alive and not device.stage.draining:
                serving.setdefault(device.run, []).append(device.peer)
        return asking.Picture(serving)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def ask(
        self,
        owner: PeerId,
        prompt: Sequence[int],
        count: int,
        sampling: Sampling | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> Heard:
        """Begin a session."""
        session = self.rng.randbytes(16)
        asked = Asked(
            session=session,
            name="toy",
            version=1,
            layers=LAYERS,
            prompt=tuple(prompt),
            positions=len(prompt) + count,
            stop_ids=stop_ids,
            sampling=sampling or Sampling(),
        )

        def chosen(
            serving: Serving, avoid: Collection[PeerId], keep: Collection[PeerId], apart: Collection[Pair]
        ) -> Route | None:
            load = lambda *_: Load(self.rng.random() / 100)  # noqa: E731
            return choose(serving, LAYERS, rng=self.rng, avoid=avoid, keep=keep, apart=apart, load=load)

        apart = self.apart.setdefault(owner, Apart())
        asker, heard = Asker(owner, asked, chosen, self.now, self.asker_config, apart), Heard()
        self.askers[session] = (owner, asker, heard)
        self._carry_out_asker(owner, asker, heard, asker.handle(self.picture(), self.now))
        return heard

    def cancel(self, heard: Heard) -> None:
        for owner, asker, known in self.askers.values():
            if known is heard:
                self._carry_out_asker(owner, asker, heard, asker.handle(asking.Cancel(), self.now))

    def tally(self, heard: Heard) -> asking.Tally:
        return next(asker.tally for _, asker, known in self.askers.values() if known is heard)

    @property
    def settled(self) -> bool:
        return all(asker.over for _, asker, _ in self.askers.values())

    # -- time ---------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._count), what))

    def run(self, until_s: float = math.inf, *, while_: Callable[[], bool] | None = None) -> None:
        """Let happen what happens, deadlines included, until nobody asks for anything or the time has come."""
        for _ in range(400_000):
            if while_ is not None and not while_():
                return
            due = min((self._due(), *(self._queue[0][:1] if self._queue else ())))
            if due > until_s or due == math.inf or (until_s == math.inf and self.settled and not self._queue):
                return
            self.now = max(self.now, due)
            if self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            else:
                self._expire()
        raise AssertionError("it never ends")

    def _due(self) -> float:
        deadlines = [a.deadline for o, a, _ in self.askers.values() if not a.over and self._works(o)]
        deadlines += [d.stage.deadline for d in self.devices.values() if d.stage is not None and self._works(d.peer)]
        return min(deadlines, default=math.inf)

    def _works(self, peer: PeerId) -> bool:
        device = self.devices[peer]
        return device.alive and device.stalled is None

    def _expire(self) -> None:
        for owner, asker, heard in list(self.askers.values()):
            if not asker.over and self._works(owner) and asker.deadline <= self.now:
                event: asking.AskerEvent = Expired() if asker.route.peers else self.picture()
                self._carry_out_asker(owner, asker, heard, asker.handle(event, self.now))
        for device in self.devices.values():
            if device.stage is not None and self._works(device.peer) and device.stage.deadline <= self.now:
                self._to_stage(device, Expired())

    # -- effects ------------------------------------------------------------------------------------------------------

    def _to_stage(self, device: Device, event: stage.Event) -> None:
        assert device.stage is not None
        for effect in device.stage.handle(event, self.now):
            self._carry_out_stage(device, effect)

    def _carry_out_stage(self, device: Device, effect: stage.Effect) -> None:
        match effect:
            case Send(peer, said):
                self._say(device.peer, peer, said)
            case Step():
                assert device.worker is not None
                results = device.worker.execute(effect)
                took = 0.001 + 0.001 * sum(len(work.ids) for work in effect.work) * self.rng.random()
                self.after(took, lambda: self._at(device, lambda: self._to_stage(device, Ran(results))))

    def _carry_out_asker(
        self, owner: PeerId, asker: Asker, heard: Heard, effects: Sequence[asking.AskerEffect]
    ) -> None:
        for effect in effects:
            match effect:
                case Send(peer, said):
                    self._say(owner, peer, said)
                case asking.Emit(position, id_):
                    assert position == len(asker.tokens) - 1 or id_ in asker.tokens
                    heard.tokens.append(id_)
                case asking.Finished(finish):
                    heard.finish = finish
                case asking.Failed():
                    heard.failed = effect
                case asking.Paused(reason):
                    heard.pauses.append(reason)

    def _say(self, sender: PeerId, peer: PeerId, said: Said) -> None:
        self.said.append((self.now, sender, peer, said))
        if sender == peer:
            self.after(0.0, lambda: self._arrive(sender, self.devices[peer], said))
            return
        if (sender, peer) in self.cut:
            return
        faulty = 0.0 < self.now < self.faults.until_s
        said = messages.decode(messages.decoder().receive(messages.encode(said))[0])
        for _ in range(1 + (faulty and self.rng.random() < self.faults.double)):
            if faulty and self.rng.random() < self.faults.lose:
                continue
            at = max(self.now + 0.0001 + 0.0005 * self.rng.random(), self._last_on.get((sender, peer), 0.0))
            self._last_on[sender, peer] = at
            late = self.faults.delay_s * self.rng.random() if faulty and self.rng.random() < 0.1 else 0.0
            device = self.devices[peer]
            self.after(at - self.now + late, lambda device=device: self._arrive(sender, device, said))  # type: ignore[misc]

    def _arrive(self, sender: PeerId, device: Device, said: Said) -> None:
        def take() -> None:
            known = self.askers.get(said.session)
            if known is not None and known[0] == device.peer:
                owner, asker, heard = known
                self._carry_out_asker(owner, asker, heard, asker.handle(Came(sender, said), self.now))
            if device.stage is not None:
                self._to_stage(device, Came(sender, said))

        self._at(device, take)

    def _at(self, device: Device, what: Callable[[], None]) -> None:
        """Do something on a device as it is now: not on a dead one, later on a stopped one."""
        if not device.alive or self.devices[device.peer] is not device:
            return
        if device.stalled is not None:
            device.stalled.append(what)
        else:
            what()
