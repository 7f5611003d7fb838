"""How one member talks about the picture: `mesh/picture.py` on virtual time, around the same machine."""

from typing import TYPE_CHECKING

from ...mesh.membership import Exchanged, Hinted
from ...mesh.protocol import ADDRESS, Whereabouts
from ...mesh.records import Record, RecordStore
from ...mesh.spreading import (
    Accuse,
    Answered,
    Asked,
    Call,
    Changed,
    Event,
    Expired,
    Failed,
    Heard,
    Offend,
    PeerGone,
    PeerHere,
    Published,
    Reply,
    Save,
    Spreading,
)
from ...mesh.swaps import Compare, Compared, Survey, Surveyed, Swap, Swapped
from .clock import Alarm

if TYPE_CHECKING:
    from ...mesh.identity import PeerId
    from .member import Disk, Member

_EXPIRED = Expired()


class Picture:
    """One member's copy of the picture, and its talk about it."""

    def __init__(self, member: "Member", store: RecordStore, disk: "Disk") -> None:
        self.store = store
        self._member, self._disk, self._crowd, self._clock = member, disk, member.crowd, member.crowd.clock
        self.machine = Spreading(member.id, store, member.crowd.notary, member.dice)
        self._alarm = Alarm(self._clock, self.machine, self.start)
        self._read = {member.id}  # whose addresses were read

    def start(self) -> None:
        """Do what is due, for as long as the member runs."""
        if self._member.up:
            self._note(_EXPIRED)

    def publish(self, kind: str, name: str, value: object, *, durable: bool = False) -> Record:
        """State something about this member to all."""
        record = self.store.publish(kind, name, value, durable=durable)
        self._crowd.ledger.said(record)
        self._note(Published(record))
        return record

    def come(self, peer: "PeerId") -> None:
        self._note(PeerHere(peer))

    def go(self, peer: "PeerId") -> None:
        self._note(PeerGone(peer))

    # -- driving the machine ------------------------------------------------------------------------------------------

    def _note(self, event: Event) -> Reply | None:
        """Hand the machine an event and do what follows; return its answer if it was asked something."""
        said: Reply | None = None
        for effect in self.machine.handle(event, self._clock.now):
            match effect:
                case Call():
                    self._call(effect)
                case Reply():
                    said = effect
                case Heard(peer, ok):
                    self._member.note(Exchanged(peer, ok))
                case Changed():
                    self._read_addresses()
                case Save(records):
                    self._disk.records = records
                case Accuse() | Offend():
                    self._crowd.ledger.broke(self._member.id, effect)
        if self.machine.deadline < self._alarm.due_s:
            self._alarm.set(self.machine.deadline)
        return said

    def _read_addresses(self) -> None:
        """Follow what members say of where they are: here each stays where it is."""
        if self.store.owners_count > len(self._read):
            for owner in sorted(self.store.owners() - self._read):
                if (record := self.store.get((owner, ADDRESS, "self"))) is not None:
                    self._read.add(owner)
                    self._member.note(Hinted(owner, record.value(Whereabouts).addresses, signed=True))

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        crowd, there, by_s = self._crowd, self._member.links.get(call.peer), self._clock.now + call.timeout_s
        crowd.traffic.calls += 1
        if there is None or (delay_s := crowd.delay_s()) is None:
            self._clock.at(by_s, self.fail, call.number)
        else:
            self._clock.after(delay_s, there.picture.asked, self._member, call.number, call.message, by_s)

    def asked(self, caller: "Member", number: int, message: Compare | Survey | Swap, by_s: float) -> None:
        """Answer a call that has arrived."""
        member, said = self._member, None
        if member.up and member.links.get(caller.id) is caller:
            said = self._note(Asked(caller.id, message))
        if said is None or (delay_s := self._crowd.delay_s()) is None:
            self._clock.at(by_s, caller.picture.fail, number)
        else:
            self._clock.after(delay_s, caller.picture.answered, number, said.message)

    def answered(self, number: int, message: Compared | Surveyed | Swapped) -> None:
        """Take an answer that has arrived."""
        if self._member.up:
            self._note(Answered(number, message))

    def fail(self, number: int) -> None:
        """Give up a call."""
        if self._member.up:
            self._note(Failed(number))

    def adopt(self, everything: "RecordStore") -> None:
        """Hold what others hold, as a member does that has been here for long."""
        self.store.adopt(everything)
        self._read = self.store.owners()
