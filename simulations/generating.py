"""One device's part in sessions of the toy language model: its streams, its stages, its askers, the clock of all.

Wired as `node/generation/sessions.py` and `generator.py` are, around the deployed asker, router and view.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, Protocol

from ..mesh.identity import PeerId
from ..node.generation.alike import Alike
from ..node.generation.apart import Apart, Pair
from ..node.generation.asker import Asked, Asker, AskerEvent, Emit, Failed, Finished, Paused, Tally
from ..node.generation.events import Came, Expired, Lost, Send
from ..node.generation.messages import SESSION_BYTES, Said
from ..node.generation.outlook import outlook
from ..node.generation.route import Load, Route, Run, Serving, choose
from ..node.generation.sampling import Sampling
from ..node.inference.view import View
from .device import Device
from .hosting import Hosting
from .language import NAME, Language, Pictured
from .streams import Streams

_LOAD_LASTS_S: Final = 60.0  # this and the next as in node/generation/generator.py
_CROWD: Final = 0.25


class AnswerWatch(Protocol):
    """Who hears of sessions: the ledger that their tokens are checked against."""

    def took(self, number: int, position: int, token: int) -> None: ...
    def paused(self, number: int, reason: str) -> None: ...
    def finished(self, number: int, finish: str, tally: Tally) -> None: ...
    def failed(self, number: int, reason: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one session is asked for."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    stop_ids: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class _Live:
    """A session of this device."""

    number: int
    version: int
    asker: Asker


class Generating:
    """One device's stages and askers."""

    def __init__(self, device: Device, language: Language, watch: AnswerWatch) -> None:
        self._device, self._watch = device, watch
        self._wake_at = math.inf
        self._apart = Apart()
        self._live: dict[bytes, _Live] = {}
        self._loads: dict[tuple[PeerId, Run], tuple[float, float]] = {}
        self.view = View(Pictured(device))
        self._streams = Streams(device, self._received, self._lost, self._together)
        self.host = Hosting(device, self.view, language, self._streams, self._soon)
        device.on_absent.append(self._left)
        device.on_expelled.append(self._expelled)
        device.records.on_change.append(self._look)

    @property
    def asking(self) -> int:
        """How many sessions of this device are under way."""
        return len(self._live)

    @property
    def numbers(self) -> list[int]:
        """Which sessions of this device are under way."""
        return [live.number for live in self._live.values()]

    @property
    def hops(self) -> list[tuple[PeerId, PeerId]]:
        """From which stage to which the sessions of this device go now."""
        return [hop for live in self._live.values() for hop in pairwise(live.asker.route.peers)]

    def asks(self) -> bool:
        """Whether this device knows of the model, so that it takes a question on."""
        return NAME in self.view.deployments()

    def ask(self, question: Question) -> None:
        """Begin a session."""
        record, device = self.view.deployments()[NAME], self._device
        asked = Asked(
            session=device.dice.randbytes(SESSION_BYTES),
            name=NAME,
            version=record.version,
            layers=len(record.weights_bytes),
            prompt=question.prompt,
            positions=min(len(question.prompt) + question.sampling.tokens_max, record.positions),
            stop_ids=question.stop_ids,
            sampling=question.sampling,
        )
        alike = Alike(lambda notice: device.tell(f"session {question.number} {notice}"))

        def chosen(
            serving: Serving, avoid: Collection[PeerId], keep: Collection[PeerId], apart: Collection[Pair]
        ) -> Route | None:
            find = partial(
                choose, layers=asked.layers, rng=device.dice, avoid=avoid, keep=keep, apart=apart, load=self._load
            )
            arithmetic = self.view.arithmetics(NAME, asked.version)
            return alike.choose(find, serving, arithmetic, begun=asker.tally.tokens > 0)

        asker = device.machines.asker(device.me, asked, chosen, device.now, None, self._apart)
        self._live[asked.session] = _Live(question.number, asked.version, asker)
        self._tell(asked.session, outlook(self.view, NAME, asked.version))

    # -- events -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Follow a new picture: load what the plan gives this device; show it to all sessions."""
        self.host.look()
        versions = {live.version for live in self._live.values()}
        pictures = {version: outlook(self.view, NAME, version) for version in versions}
        for session, live in list(self._live.items()):
            self._tell(session, pictures[live.version])

    def _received(self, peer: PeerId, said: Said) -> None:
        self._tell(said.session, Came(peer, said))
        self.host.receive(peer, said)

    def _together(self, begins: bool) -> None:  # noqa: FBT001  one of two moments
        if begins:
            self.host.more_comes = True
        else:
            self.host.settle()

    def _lost(self, peer: PeerId, reason: str) -> None:
        self._tell_all(Lost(peer, reason, left=False))
        self.host.lost(peer, reason, left=False)

    def _left(self, peer: PeerId) -> None:
        self._tell_all(Lost(peer, "left the mesh", left=True))
        self.host.lost(peer, "left the mesh", left=True)

    def _expelled(self, peer: PeerId) -> None:
        self._streams.drop(peer)
        self._tell_all(Lost(peer, "was thrown out", left=True))
        self.host.lost(peer, "was thrown out", left=True)

    def _tell_all(self, event: AskerEvent) -> None:
        for session in list(self._live):
            self._tell(session, event)

    def _tell(self, session: bytes, event: AskerEvent) -> None:
        live = self._live.get(session)
        if live is None:
            return
        for effect in live.asker.handle(event, self._device.now):
            match effect:
                case Send(peer, said):
                    self._streams.send(peer, said)
                case Emit(position, token):
                    self._watch.took(live.number, position, token)
                case Paused(reason):
                    self._watch.paused(live.number, reason)
                case Finished(finish):
                    self._watch.finished(live.number, finish, live.asker.tally)
                case Failed(_, reason):
                    self._watch.failed(live.number, reason)
        self._note_loads(live.asker)
        if live.asker.over:
            self._live.pop(session, None)
        else:
            self._soon(live.asker.deadline)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _soon(self, deadline: float) -> None:
        """Set the clock for a deadline that is sooner than it would ring."""
        if deadline < self._wake_at:
            self._wake_at = deadline
            self._device.after(max(deadline - self._device.now, 0.0), lambda: self._ring(deadline))

    def _ring(self, due: float) -> None:
        if self._wake_at != due:
            return  # it was set for a sooner moment meanwhile
        now, self._wake_at = self._device.now, math.inf
        self.host.tick(now)
        for session, live in list(self._live.items()):
            if live.asker.deadline <= now:
                self._tell(session, Expired() if live.asker.route.peers else outlook(self.view, NAME, live.version))
        deadlines = (live.asker.deadline for live in self._live.values())
        self._soon(min((self.host.deadline, *deadlines)))

    # -- loads --------------------------------------------------------------------------------------------------------

    def _note_loads(self, asker: Asker) -> None:
        for stage, step_s in asker.loads.items():
            self._loads[stage] = (step_s, self._device.now)
        asker.loads.clear()

    def _load(self, peer: PeerId, run: Run) -> Load | None:
        said = self._loads.get((peer, run))
        age_s = 0.0 if said is None else self._device.now - said[1]
        if said is None or age_s > _LOAD_LASTS_S:
            return None
        own = sum(peer in live.asker.route.peers for live in self._live.values())
        return Load(said[0] * (1 + _CROWD * own), age_s)
