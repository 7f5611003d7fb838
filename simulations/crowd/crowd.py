"""All members of one mesh and the links between them: who can be dialled, who ends and begins, and who speaks.

The mesh has been up for long when the run begins: everybody knows everybody, and holds one record of each.
"""

import hashlib
from collections.abc import Iterator

from ...mesh import limits
from ...mesh.identity import Identity, PeerId
from ...mesh.membership import DialFailed
from ...mesh.messages import Message
from ...mesh.neighbours import places
from ...mesh.pace import Config
from ...mesh.protocol import ADDRESS, Whereabouts
from .clock import Clock
from .ledger import Ledger, Traffic
from .member import Disk, Member, address_of
from .notary import Notary
from .scenario import CrowdScenario

_BEGIN_S = 1.0  # within which all connections of the first moment open: members must not go in step
_HINTS = 3  # members of whom one that begins knows where they are: bootstrap addresses


class Said(Message, frozen=True, kw_only=True):
    """What a member states: as long as a device's status."""

    number: int
    text: str = "x" * 180


class Crowd:
    """Everybody."""

    def __init__(self, scenario: CrowdScenario, seed: int) -> None:
        self.scenario, self.link = scenario, scenario.link
        self.clock = Clock(seed)
        self.traffic = Traffic()
        self.ledger = Ledger(self.clock)
        self.dice = self.clock.dice("crowd")
        self._delays = self.clock.dice("links")
        self.notary = Notary(self._identity("root").peer_id)
        self.people: dict[PeerId, Identity] = {}
        self.disks: dict[PeerId, Disk] = {}
        self.members: dict[PeerId, Member] = {}  # who is up
        self._silent: set[PeerId] = set()  # where nothing is left that would refuse a dial
        self._said = 0

    def _identity(self, name: str) -> Identity:
        return Identity(hashlib.sha256(f"lepton-crowd/{self.clock.seed}/{name}".encode()).digest())

    # -- who is here --------------------------------------------------------------------------------------------------

    def found(self) -> None:
        """Begin with a mesh in which all know all."""
        everybody = [self.enter(f"m{number}") for number in range(self.scenario.nodes)]
        first = everybody[0].picture
        first.store.merge([m.picture.store.of(m.id)[0].signed for m in everybody], known=self.notary.knows)
        names = tuple(sorted(self.members))
        words = [member.life.word for member in everybody]
        for member in everybody:
            member.recall(names, words)
            if member.picture is not first:
                member.picture.adopt(first.store)
        for one, other in self._beside(names):
            self.clock.after(_BEGIN_S * self.dice.random(), self.connect, self.members[one], self.members[other])
        for member in everybody:
            self.clock.after(_BEGIN_S * (1 + self.dice.random()), member.start, ())

    def _beside(self, names: tuple[PeerId, ...]) -> Iterator[tuple[PeerId, PeerId]]:
        """Return the connections that a mesh of these has once it has settled."""
        rings, found = Config().rings, dict[tuple[PeerId, PeerId], None]()
        for ring in range(rings):
            order = sorted(names, key=lambda peer: places(peer, rings)[ring])
            for one, other in zip(order, order[1:] + order[:1], strict=True):
                found[min(one, other), max(one, other)] = None
        return iter(found)

    def enter(self, name: str) -> Member:
        """Make a member that never was here."""
        who = self._identity(name)
        self.people[who.peer_id], self.disks[who.peer_id] = who, Disk()
        return self._begin(who.peer_id)

    def _begin(self, peer: PeerId) -> Member:
        member = self.members[peer] = Member(self, self.people[peer], self.disks[peer])
        self._silent.discard(peer)
        self.ledger.began(peer)
        member.picture.publish(ADDRESS, "self", Whereabouts(addresses=(address_of(peer),)))
        return member

    def join(self, name: str) -> None:
        """Let somebody in of whom nobody has heard."""
        hints = self._hints()
        self.enter(name).start(hints)

    def restart(self, peer: PeerId) -> None:
        """Let a member begin again, with its disk."""
        hints = self._hints()
        self._begin(peer).start(hints)

    def _hints(self) -> list[PeerId]:
        return self.dice.sample(sorted(self.members), _HINTS)

    def end(self, peer: PeerId, silent: bool) -> None:  # noqa: FBT001 - it comes from the queue of events
        """Let a process die, and if silently, all that it runs on."""
        member = self.members.pop(peer)
        member.up = False
        self.ledger.ended(peer, silent=silent)
        if silent:
            self._silent.add(peer)
            return
        for other in member.links.values():
            self.clock.after(self.link.detection_s * self.dice.random(), other.lose, member)

    def speak(self) -> None:
        """Let somebody state something anew."""
        member = self.members[self.dice.choice(sorted(self.members))]
        self._said += 1
        durable = self.dice.random() < self.scenario.durable
        member.picture.publish("wish" if durable else "status", "self", Said(number=self._said), durable=durable)

    # -- links --------------------------------------------------------------------------------------------------------

    def delay_s(self) -> float | None:
        """Return how long a message takes; None when it is lost."""
        link, dice = self.link, self._delays
        if link.loss and dice.random() < link.loss:
            return None
        return link.latency_s + link.jitter_s * dice.random()

    def connect(self, one: Member, other: Member) -> None:
        """Open a connection that the first of the two has dialled."""
        other.connect(one, dialled=False)
        one.connect(other, dialled=True)

    def dial(self, member: Member, peer: PeerId) -> None:
        """Try to reach somebody for a member."""
        self.traffic.dials += 1
        if peer in self._silent:
            self.clock.after(limits.DIAL_TIMEOUT_S, self._undialled, member, peer)
        else:
            self.clock.after(self.link.dial_s * self.dice.uniform(0.5, 1.5), self._dialled, member, peer)

    def _dialled(self, member: Member, peer: PeerId) -> None:
        other = self.members.get(peer)
        if other is None or not member.up:
            self._undialled(member, peer)
        else:
            self.connect(member, other)

    def _undialled(self, member: Member, peer: PeerId) -> None:
        if member.up:
            member.note(DialFailed(peer))
