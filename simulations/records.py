"""How one device keeps the picture: what it says goes to all at once, and exchanges repair what got lost on the way.

Wired as the part of `mesh/mesh.py` that is headed 'the picture' is, around the deployed record store.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..mesh import limits, membership
from ..mesh.errors import LeptonError, PeerError
from ..mesh.identity import PeerId
from ..mesh.messages import Message
from ..mesh.protocol import Delta, delta_of
from ..mesh.records import Digest, Record, RecordStore
from .calls import Answer, Empty, Incoming, Method
from .world import Action

if TYPE_CHECKING:
    from .device import Device

EXCHANGE_TIMEOUT_S = 2.0  # as in mesh/mesh.py

T = TypeVar("T")


class Records:
    """One device's records, and its talk about them."""

    def __init__(self, device: "Device", store: RecordStore, published: Callable[[Record], None]) -> None:
        self.store = store
        self.on_change: list[Action] = []
        self._device, self._published = device, published
        self._behind: set[PeerId] = set()
        self._unsaid: dict[PeerId, Digest | None] = {}  # to whom this device is pushing, and from where it goes on
        self._news = False  # something changed, and nobody has looked yet
        device.calls.serve("mesh.exchange", Method("mesh", Digest, self._answer_exchange))
        device.calls.serve("mesh.push", Method("mesh", Delta, self._answer_push))

    def publish(self, kind: str, name: str, value: Message, *, durable: bool = False) -> None:
        """State something about this device to all."""
        since = self.store.digest(self._device.me)
        self.store.publish(kind, name, value, durable=durable)
        self._push(since)

    def withdraw(self, kind: str, name: str) -> None:
        """Take a statement back."""
        since = self.store.digest(self._device.me)
        if self.store.withdraw(kind, name) is not None:
            self._push(since)

    def live(self, kind: str, value: type[T]) -> list[tuple[Record, T]]:
        """Return what members that are here say of one kind."""
        return [(record, record.value(value)) for record in self.store.live(kind, self._device.present)]

    def _push(self, since: Digest) -> None:
        """Tell all who are connected what this device has said since these heads; what waits for one goes together."""
        self._written()
        for peer in sorted(self._device.connected):
            if peer not in self._unsaid:
                self._unsaid[peer] = None
                self._device.after(0.0, lambda to=peer: self._push_to(to))  # type: ignore[misc]
            if self._unsaid[peer] is None:
                self._unsaid[peer] = since

    def _push_to(self, peer: PeerId) -> None:
        """Push one after the other: of two at once the later one might arrive first."""
        since, self._unsaid[peer] = self._unsaid[peer], None
        if since is None:
            del self._unsaid[peer]
            return

        def pushed(result: Answer | LeptonError) -> None:
            if isinstance(result, LeptonError):  # the next exchange repeats it
                del self._unsaid[peer]
            else:
                self._push_to(peer)

        delta = self._delta(self.store.newer_than(since, self._device.me), since)
        self._device.call(peer, "mesh.push", delta, Empty, pushed, timeout_s=EXCHANGE_TIMEOUT_S)

    def _written(self) -> None:
        """Do what follows on every change of the store: note what is this device's own, save, let readers look."""
        for record in self.store.newer_than(Digest(), self._device.me):
            self._published(record)
        self._device.disk.records = self.store.durable()
        self.changed()

    def changed(self) -> None:
        """Let those look who follow the picture: soon, and once for all that changes meanwhile."""
        if not self._news:
            self._news = True
            self._device.after(0.0, self._look)

    def _look(self) -> None:
        self._news = False
        for listener in self.on_change:
            listener()

    def _delta(self, records: list[Record], since: Digest, digest: Digest | None = None) -> Delta:
        chains = self._device.admission.chains(sorted({record.owner for record in records}))
        return delta_of(records, chains, since=since, digest=digest)

    def _lacking(self, digest: Digest) -> list[Record]:
        return self.store.newer_than(digest, turn=self._device.dice.randrange(limits.MEMBERS_MAX))

    def _answer_exchange(self, call: Incoming) -> Answer:
        return Answer(self._delta(self._lacking(call.message), call.message, self.store.digest()))

    def _answer_push(self, call: Incoming) -> Answer:
        behind = not self.store.follows_on(call.message.since)
        self._merge(call.message)
        if behind and call.caller not in self._behind:
            self._behind.add(call.caller)
            self._device.after(0.0, lambda: self.exchange(call.caller))
        return Answer(Empty())

    def _merge(self, delta: Delta) -> int:
        """Take in a delta. Raises PeerError when a record in it is forged."""
        self._device.admission.learn(delta.chains, self._device.world.unix_s)
        revision = self.store.revision
        try:
            return len(self.store.merge(delta.records, since=delta.since, known=self._device.admission.knows))
        finally:
            if self.store.revision != revision:
                self._written()

    def exchange(self, peer: PeerId) -> None:
        """Reconcile records with a peer, in as many turns as that takes within the time for it."""
        self._behind.discard(peer)
        end_s = self._device.world.now + EXCHANGE_TIMEOUT_S

        def ask() -> None:
            self._device.call(
                peer, "mesh.exchange", self.store.digest(), Delta, take, timeout_s=end_s - self._device.world.now
            )

        def take(result: Answer | LeptonError) -> None:
            if isinstance(result, LeptonError):
                ended(ok=False)
                return
            try:
                more = ask if self._merge(result.message) else None
            except PeerError as error:
                self._device.offended(peer, str(error))
                ended(ok=False)
                return
            digest = result.message.digest or Digest()
            delta = self._delta(self._lacking(digest), digest)
            if delta.records:
                left_s = end_s - self._device.world.now
                self._device.call(
                    peer, "mesh.push", delta, Empty, lambda pushed: turned(pushed, more), timeout_s=left_s
                )
            else:
                turned(Answer(Empty()), more)

        def turned(result: Answer | LeptonError, more: Action | None) -> None:
            if isinstance(result, LeptonError) or more is None or self._device.world.now >= end_s:
                ended(ok=not isinstance(result, LeptonError) and more is None)
            else:
                more()

        def ended(*, ok: bool) -> None:
            self._device.note(membership.Exchanged(peer, ok))

        ask()
