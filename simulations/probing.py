"""How one device finds out who lives: probes are calls, as in `mesh/probing.py`, around the same machine."""

from typing import TYPE_CHECKING, Final

from ..mesh import liveness
from ..mesh.errors import LeptonError, PeerError
from ..mesh.identity import Identity, PeerId
from ..mesh.liveness import Died, Heard, Liveness, Living, Message, Send
from ..mesh.membership import Expired, Gone
from ..mesh.membership import Heard as HeardOf
from ..mesh.rumours import Ack, Probe, ProbeFor, SignedWords, Tell
from .calls import Answer, Empty, Incoming, Method

if TYPE_CHECKING:
    from .device import Device

_METHODS: Final[dict[type[Message], str]] = {Probe: "mesh.probe", ProbeFor: "mesh.probe_for", Tell: "mesh.tell"}


class Probing:
    """One device's talk about who lives."""

    def __init__(self, device: "Device", identity: Identity, incarnation: int) -> None:
        self._device = device
        words = SignedWords(identity, device.admission.root)
        self.machine = Liveness(
            identity.peer_id,
            device.dice,
            words,
            knows=device.admission.is_member,
            incarnation=incarnation * liveness.STATEMENTS_PER_START,
        )
        self._asked: dict[tuple[PeerId, int], Incoming] = {}
        self._due_s = float("inf")
        device.calls.serve("mesh.probe", Method("mesh", Probe, self._answer))
        device.calls.serve("mesh.probe_for", Method("mesh", ProbeFor, self._answer))
        device.calls.serve("mesh.tell", Method("mesh", Tell, self._hear))

    def start(self) -> None:
        self.note(Expired())

    def note(self, event: liveness.Event) -> None:
        """Hand the machine an event, and see that it hears of its deadline."""
        try:
            effects = self.machine.handle(event, self._device.now)
        finally:
            if self.machine.deadline < self._due_s:
                self._wake(self.machine.deadline)
        for effect in effects:
            self._carry_out(effect)

    def _wake(self, due_s: float) -> None:
        def expire() -> None:
            if self._due_s == due_s:
                self._due_s = float("inf")
                self.note(Expired())

        self._due_s = due_s
        self._device.after(due_s - self._device.now, expire)

    def _carry_out(self, effect: liveness.Effect) -> None:
        match effect:
            case Send(peer, Ack() as ack):
                if (call := self._asked.pop((peer, ack.number), None)) is not None:
                    call.reply(Answer(ack))
            case Send(peer, message):
                self._ask(peer, message)
            case Died(peer):
                self._device.note_unconnected(Gone((peer,)))
                if peer in self.machine.neighbours:
                    self._device.drop(peer, "answered neither this node nor others that tried")
            case Living(peer) if peer not in self.machine.neighbours:
                self._device.note_unconnected(HeardOf((peer,)))

    def _ask(self, peer: PeerId, message: Message) -> None:
        def answered(result: Answer | LeptonError) -> None:
            if isinstance(result, Answer) and isinstance(result.message, Ack):
                try:
                    self.note(Heard(peer, result.message))
                except PeerError as error:
                    self._device.offended(peer, str(error))

        answers = Empty if isinstance(message, Tell) else Ack
        timeout_s = self.machine.config.period_s * self.machine.health.slowness
        self._device.call(peer, _METHODS[type(message)], message, answers, answered, timeout_s=timeout_s)

    def _answer(self, call: Incoming) -> None:
        key = (call.caller, call.message.number)
        self._asked[key] = call
        self._device.after(self.machine.config.period_s, lambda: self._forget(key))
        self.note(Heard(call.caller, call.message))

    def _forget(self, key: tuple[PeerId, int]) -> None:
        self._asked.pop(key, None)

    def _hear(self, call: Incoming) -> Answer:
        self.note(Heard(call.caller, call.message))
        return Answer(Empty())
