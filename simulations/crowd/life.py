"""How one member finds out who lives: `mesh/probing.py` on virtual time, around the same machine."""

from typing import TYPE_CHECKING

from ...mesh.identity import Identity
from ...mesh.liveness import STATEMENTS_PER_START, Died, Effect, Event, Heard, Liveness, Living, Message, Send
from ...mesh.membership import Expired, Gone
from ...mesh.membership import Heard as HeardOf
from ...mesh.rumours import Statement
from .clock import Alarm

if TYPE_CHECKING:
    from .member import Member

_EXPIRED = Expired()


class Life:
    """One member's talk about who lives."""

    def __init__(self, member: "Member", identity: Identity, incarnation: int) -> None:
        self._member, self._crowd, self._clock = member, member.crowd, member.crowd.clock
        self.machine = Liveness(
            member.id,
            member.dice,
            member.crowd.notary.words(identity),
            knows=member.crowd.notary.knows,
            incarnation=incarnation * STATEMENTS_PER_START,
        )
        self._alarm = Alarm(self._clock, self.machine, self.start)

    @property
    def word(self) -> Statement:
        """What the member states of itself."""
        return self.machine.word

    def start(self) -> None:
        """Let time pass, for as long as the member runs."""
        if self._member.up:
            self.note(_EXPIRED)

    def hear(self, sender: "Member", message: Message) -> None:
        """Take a message that has arrived, if the connection is still there that it came over."""
        member = self._member
        if member.up and member.links.get(sender.id) is sender:
            self.note(Heard(sender.id, message))

    def note(self, event: Event) -> None:
        """Hand the machine an event, and do what follows."""
        effects = self.machine.handle(event, self._clock.now)
        if self.machine.deadline < self._alarm.due_s:
            self._alarm.set(self.machine.deadline)
        for effect in effects:
            if type(effect) is Send:
                self._send(effect)
            else:
                self._tell(effect)

    def _send(self, send: Send) -> None:
        crowd, there = self._crowd, self._member.links.get(send.peer)
        crowd.traffic.probes += 1
        if there is not None and (delay_s := crowd.delay_s()) is not None:
            self._clock.after(delay_s, there.life.hear, self._member, send.message)

    def _tell(self, effect: Effect) -> None:
        member = self._member
        match effect:
            case Died(peer):
                self._crowd.ledger.died(member.id, peer)
                member.note_unconnected(Gone((peer,)))
                if peer in self.machine.neighbours:
                    self._clock.after(0.0, member.hang_up, peer)
            case Living(peer) if peer not in self.machine.neighbours:
                member.note_unconnected(HeardOf((peer,)))
