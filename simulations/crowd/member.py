"""One member: the deployed machines of membership, lives and records, wired as `mesh/mesh.py` wires them.

Nothing here decides anything: where this file and the real shell differ, the simulation proves less.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...mesh import limits
from ...mesh.identity import Identity, PeerId
from ...mesh.membership import (
    Connected,
    Dial,
    DialFailed,
    Disconnected,
    Effect,
    Event,
    Expired,
    Gone,
    Heard,
    Hinted,
    Membership,
    Parting,
    Probe,
    Release,
)
from ...mesh.records import RecordStore, SignedRecord
from ...mesh.rumours import Statement
from .clock import Alarm
from .life import Life
from .picture import Picture

if TYPE_CHECKING:
    from .crowd import Crowd

_EXPIRED = Expired()


@dataclass(slots=True)
class Disk:
    """What a crash leaves."""

    incarnation: int = 0
    records: list[SignedRecord] = field(default_factory=list)


class Member:
    """One process, from its start to its end."""

    def __init__(self, crowd: "Crowd", who: Identity, disk: Disk) -> None:
        disk.incarnation += 1
        self.crowd, self.id, self.disk = crowd, who.peer_id, disk
        self.up = True
        self.silent = False  # it ended without a word, and so did what it stood on: nobody refuses a dial there
        self.links: dict[PeerId, Member] = {}  # open connections, as this end sees them
        self.dice = crowd.clock.dice(f"{self.id}/{disk.incarnation}")
        self.members = Membership(self.id, self.dice)
        self._alarm = Alarm(crowd.clock, self.members, self._tick)
        self.life = Life(self, who, disk.incarnation)
        store = RecordStore(who, disk.incarnation, disk.records, check=crowd.notary.open)
        self.picture = Picture(self, store, disk)

    def start(self, hints: Sequence[PeerId]) -> None:
        """Come to life, knowing where these are."""
        for peer in hints:
            self.hint(peer)
        self._tick()
        self.life.start()
        self.picture.start()

    def recall(self, names: Sequence[PeerId], words: Sequence[Statement]) -> None:
        """Know these, as one does that has been here for long. Nobody is connected as yet."""
        self.life.machine.recall(words)
        self.members.handle(Heard(tuple(names)), self.crowd.clock.now)
        for peer in names:
            self.members.book.hint(peer, (address_of(peer),), self.crowd.clock.now, signed=True)

    def hint(self, peer: PeerId) -> None:
        self.note(Hinted(peer, (address_of(peer),)))

    def _tick(self) -> None:
        if self.up:
            self.note(_EXPIRED)

    # -- membership ---------------------------------------------------------------------------------------------------

    def note(self, event: Event) -> None:
        """Hand the machine an event, tell the others of it, and do what follows."""
        members = self.members
        whole, linked = members.neighbours.whole, self._is_linked(event)
        for effect in members.handle(event, self.crowd.clock.now):
            self._carry_out(effect)
        match event:
            case Connected(peer):
                self.life.note(event)
                if not linked:
                    self.picture.come(peer)
            case Disconnected(peer):
                self.life.note(event)
                if linked:
                    self.picture.go(peer)
            case DialFailed() | Parting():
                self.life.note(event)
        if whole and not members.neighbours.whole:
            self.note(Heard(tuple(sorted(self.life.machine.alive))))
        if members.deadline < self._alarm.due_s:
            self._alarm.set(members.deadline)

    def _is_linked(self, event: Event) -> bool:
        return isinstance(event, Connected | Disconnected) and event.peer in self.members.connected

    def note_unconnected(self, event: Heard | Gone) -> None:
        """In a small mesh only a connection makes present."""
        if isinstance(event, Gone) or not self.members.neighbours.whole:
            self.note(event)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Dial(peer):
                self.crowd.dial(self, peer)
            case Probe(peer):
                self._ping(peer)
            case Release(peer):
                self.crowd.clock.after(2 * self.crowd.link.latency_s, self._part, peer)

    # -- connections --------------------------------------------------------------------------------------------------

    def connect(self, other: "Member", *, dialled: bool) -> None:
        """Have a connection, in place of one to who was here before with that name."""
        self.links[other.id] = other
        self.note(Connected(other.id, dialled=dialled))

    def hang_up(self, peer: PeerId) -> None:
        """Close the connection to a peer."""
        other = self.links.get(peer)
        if other is not None and self.up:
            self.crowd.clock.after(self.crowd.link.latency_s, other.lose, self)
            self.lose(other)

    def lose(self, other: "Member") -> None:
        """The connection is gone."""
        if self.up and self.links.get(other.id) is other:
            del self.links[other.id]
            self.note(Disconnected(other.id))

    def _part(self, peer: PeerId) -> None:
        """Give a connection up, and say that it is not for good."""
        other = self.links.get(peer)
        if other is None or not self.up:
            return
        for end, name in ((self, peer), (other, self.id)):
            if end.up:
                end.note(Parting(name))
        self.hang_up(peer)

    def _ping(self, peer: PeerId) -> None:
        """Close a connection that carries nothing any more."""
        other = self.links.get(peer)
        if other is not None and not other.up:
            self.crowd.clock.after(limits.PROBE_TIMEOUT_S, self.lose, other)


def address_of(peer: PeerId) -> str:
    """Where a member can be dialled."""
    return f"simulated/{peer[-8:]}"
