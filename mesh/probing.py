"""The shell of liveness: carries probes, answers and news as calls over the connections that exist.

A probe is one small call; the answer to it is the answer of the call. Whoever is dead loses its connection at once.
"""

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from . import liveness
from .calls import Answer, Calls, Empty, Incoming, Method
from .errors import LeptonError, LinkError, PeerError
from .identity import Identity, PeerId, short
from .liveness import Died, Heard, Liveness, Living, Message, Seen, Send, Suspected
from .membership import Expired, Gone
from .membership import Heard as HeardOf
from .rumours import Ack, Probe, ProbeFor, SignedWords, Tell

_METHODS: Final[dict[type[Message], str]] = {Probe: "mesh.probe", ProbeFor: "mesh.probe_for", Tell: "mesh.tell"}

_ROUND_TRIPS: Final = 8  # probes of one neighbour that are remembered: half a minute's in a small mesh

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    """A call that waits for the machine's answer."""

    answered: trio.Event = field(default_factory=trio.Event)
    answer: Ack | None = None


class Probing:
    """One node's talk about who lives."""

    def __init__(
        self,
        identity: Identity,
        root: PeerId,
        calls: Calls,
        rng: random.Random,
        *,
        incarnation: int,
        knows: Callable[[PeerId], bool],
        received: Callable[[PeerId], int],
        note: Callable[[HeardOf | Gone], None],
        drop: Callable[[PeerId, str], None],
        spawn: Callable[..., None],
        offend: Callable[[PeerId, str], None],
    ) -> None:
        """``incarnation`` counts this node's starts; ``received`` the bytes that came from a peer. ``note`` tells
        membership of those who are not connected, ``drop`` closes the connection of one who is.
        """
        self.machine = Liveness(
            identity.peer_id,
            rng,
            SignedWords(identity, root),
            knows=knows,
            incarnation=incarnation * liveness.STATEMENTS_PER_START,
        )
        self._calls = calls
        self._received, self._tell_membership, self._drop = received, note, drop
        self._spawn, self._offend = spawn, offend
        self._asked: dict[tuple[PeerId, int], _Asked] = {}
        self._took_s: dict[PeerId, deque[float]] = {}  # the last direct probes of each neighbour
        self._moved = trio.Event()  # the deadline is another
        calls.serve(
            Method(name="mesh.probe", needs="mesh", takes=Probe, handler=self._answer),
            Method(name="mesh.probe_for", needs="mesh", takes=ProbeFor, handler=self._answer),
            Method(name="mesh.tell", needs="mesh", takes=Tell, handler=self._hear),
        )

    async def run(self) -> None:
        """Let time pass, until cancelled."""
        while True:
            moved = self._moved
            with trio.move_on_at(self.machine.deadline):
                await moved.wait()
                continue
            self.note(Expired())

    @property
    def round_trips_s(self) -> dict[PeerId, float]:
        """The shortest of the last probes' round trips to each neighbour: what the link takes when nobody is busy."""
        self._took_s = {peer: took for peer, took in self._took_s.items() if peer in self.machine.neighbours}
        return {peer: min(took) for peer, took in self._took_s.items()}

    def note(self, event: liveness.Event) -> None:
        """Hand the machine an event at once. Raises PeerError when it holds a forged statement."""
        before = self.machine.deadline
        try:
            effects = self.machine.handle(event, trio.current_time())
        finally:
            if self.machine.deadline != before:
                self._moved.set()
                self._moved = trio.Event()
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: liveness.Effect) -> None:
        match effect:
            case Send(peer, Ack() as ack):
                if (asked := self._asked.pop((peer, ack.number), None)) is not None:
                    asked.answer = ack
                    asked.answered.set()
            case Send(peer, message):
                self._spawn(self._ask, peer, message)
            case Suspected(peer):
                log.info("%s is silent", short(peer))
            case Died(peer):
                self._bury(peer)
            case Living(peer) if peer not in self.machine.neighbours:
                self._tell_membership(HeardOf((peer,)))

    def _bury(self, peer: PeerId) -> None:
        self._tell_membership(Gone((peer,)))  # else a neighbour would stay here by hearsay when it is dropped
        if peer in self.machine.neighbours:
            self._drop(peer, "answered neither this node nor others that tried")

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _ask(self, peer: PeerId, message: Message) -> None:
        before, began = self._received(peer), trio.current_time()
        answers: type[Empty | Ack] = Empty if isinstance(message, Tell) else Ack
        timeout_s = self.machine.config.period_s * self.machine.health.slowness
        try:
            answer = await self._calls.call(peer, _METHODS[type(message)], message, answers, timeout_s=timeout_s)
            if isinstance(message, Probe):
                took = self._took_s.setdefault(peer, deque(maxlen=_ROUND_TRIPS))
                took.append(trio.current_time() - began)
            self._take(peer, answer.message)
        except LeptonError as error:  # Busy, say, and then it lives
            log.debug("%s to %s: %s", _METHODS[type(message)], short(peer), error)
            if self._received(peer) > before:
                self.note(Seen(peer))

    def _take(self, peer: PeerId, answer: Empty | Ack) -> None:
        try:
            if isinstance(answer, Ack):
                self.note(Heard(peer, answer))
        except PeerError as error:
            self._offend(peer, str(error))

    # -- answering ----------------------------------------------------------------------------------------------------

    async def _answer(self, call: Incoming[Probe] | Incoming[ProbeFor]) -> Answer[Ack]:
        key = (call.caller, call.message.number)
        asked = self._asked[key] = _Asked()
        try:
            self.note(Heard(call.caller, call.message))
            with trio.move_on_after(self.machine.config.period_s):
                await asked.answered.wait()
        finally:
            self._asked.pop(key, None)
        if asked.answer is None:
            msg = "This node could not say in time whether it reaches the one that was asked for."
            raise LinkError(msg)
        return Answer(asked.answer)

    async def _hear(self, call: Incoming[Tell]) -> Answer[Empty]:
        self.note(Heard(call.caller, call.message))
        return Answer(Empty())
