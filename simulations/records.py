"""How one device talks about the picture: carries out on virtual time what the deployed `mesh/spreading.py` decides.

Wired as `mesh/picture.py` is, with a disk that only a crash looks at.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from ..mesh import membership
from ..mesh.errors import LeptonError, PeerError
from ..mesh.grants import Grant
from ..mesh.identity import PeerId
from ..mesh.messages import Message
from ..mesh.records import Record, RecordStore
from ..mesh.spreading import (
    METHODS,
    Accuse,
    Answered,
    Asked,
    Call,
    Changed,
    Event,
    Expired,
    Failed,
    Forgot,
    Heard,
    Offend,
    PeerGone,
    PeerHere,
    Published,
    Reply,
    Save,
    Spreading,
)
from .calls import Answer, Incoming, Method
from .world import Action

if TYPE_CHECKING:
    from .device import Device

T = TypeVar("T")


class Records:
    """One device's records, and its talk about them."""

    def __init__(self, device: "Device", store: RecordStore, published: Callable[[Record], None]) -> None:
        self.store = store
        self.on_change: list[Action] = []
        self._device, self._published = device, published
        self._machine = Spreading(device.me, store, _Proven(device), device.dice)
        self._news = False  # something changed, and nobody has looked yet
        self._due_s = float("inf")  # when the machine is called next
        for takes, (name, _) in METHODS.items():
            device.calls.serve(name, Method("mesh", takes, self._answer))

    def start(self) -> None:
        """Do what is due, for as long as the device lives."""
        self._note(Expired())

    def _wake(self, due_s: float) -> None:
        def expire() -> None:
            if self._due_s == due_s:
                self._due_s = float("inf")
                self._note(Expired())

        self._due_s = due_s
        self._device.after(max(due_s - self._device.now, 0.01), expire)

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> None:
        """State something about this device to all."""
        self._note(Published(self.store.publish(kind, name, value, durable=durable)))

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        if (record := self.store.withdraw(kind, name)) is not None:
            self._note(Published(record))

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind."""
        return [(record, record.value(value)) for record in self.store.live(kind, self._device.present)]

    def come(self, peer: PeerId) -> None:
        """Talk with a member from now on."""
        self._note(PeerHere(peer))

    def go(self, peer: PeerId) -> None:
        """Talk with it no longer."""
        self._note(PeerGone(peer))

    def forgot(self) -> None:
        """Act on it that the store has forgotten an owner."""
        self._note(Forgot())

    def changed(self) -> None:
        """Let those look who follow the picture: soon, and once for all that changes meanwhile."""
        if not self._news:
            self._news = True
            self._device.after(0.0, self._look)

    def _look(self) -> None:
        self._news = False
        for listener in self.on_change:
            listener()

    # -- driving the machine ------------------------------------------------------------------------------------------

    def _note(self, event: Event) -> Reply | Offend | None:
        """Hand the machine an event and do what follows; return its answer if it was asked something."""
        said: Reply | Offend | None = None
        effects = self._machine.handle(event, self._device.now)
        if self._machine.deadline < self._due_s:
            self._wake(self._machine.deadline)
        for effect in effects:
            match effect:
                case Save(records):
                    self._device.disk.records = records
                case Changed():
                    self._written()
                case Call():
                    self._call(effect)
                case Heard(peer, ok):
                    self._device.note(membership.Exchanged(peer, ok))
                case Accuse(owner, reason):
                    self._device.refuse(owner, reason)
                case Offend(peer, reason) if not isinstance(event, Asked):
                    self._device.offended(peer, reason)
                case Reply() | Offend():
                    said = effect
        return said

    def _written(self) -> None:
        """Do what follows on every change of the store: note what is this device's own, let readers look."""
        for record in self.store.of(self._device.me):
            self._published(record)
        self.changed()

    def _call(self, call: Call) -> None:
        method, answers = METHODS[type(call.message)]

        def done(result: Answer | LeptonError) -> None:
            if isinstance(result, LeptonError):
                self._note(Failed(call.number))
            else:
                self._note(Answered(call.number, result.message))

        self._device.call(call.peer, method, call.message, answers, done, timeout_s=call.timeout_s)

    def _answer(self, call: Incoming) -> Answer:
        said = self._note(Asked(call.caller, call.message))
        if isinstance(said, Offend):
            raise PeerError(said.reason)
        assert said is not None
        return Answer(said.message)


class _Proven:
    """A device's admission as the machine needs it, with the world's calendar."""

    def __init__(self, device: "Device") -> None:
        self._device = device

    def knows(self, peer: PeerId) -> bool:
        return self._device.admission.knows(peer)

    def learn(self, chains: Mapping[PeerId, tuple[Grant, ...]]) -> None:
        self._device.admission.learn(chains, self._device.unix_s)

    def chains(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[Grant, ...]]:
        return self._device.admission.chains(peers)
