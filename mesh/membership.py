"""Who is here: a machine that turns hints and connections into dials, and a view of the present.

mDNS and records of addresses give *hints*; presence comes from admitted connections, and in a mesh too large for
everybody to be connected to everybody (``neighbours.py``) also from what members hear of each other. A member that is
wanted and not connected is dialled with pauses that grow (``address_book.py``) until an exchange of records with it
succeeds. Who is connected and silent is for liveness to find (``liveness.py``); its connection is then closed, which
makes it absent.

Invariant: ``connected`` holds exactly the peers with an admitted connection, ``present`` these and those heard of; in a
small mesh the two are the same. At most one dial per peer is under way.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from .address_book import AddressBook
from .identity import PeerId
from .neighbours import Neighbours
from .pace import Config as Config  # noqa: PLC0414  whoever configures membership finds it here


@dataclass(frozen=True, slots=True)
class Hinted:
    """Something (mDNS, a record) says that a peer may be found at these addresses."""

    peer: PeerId
    addresses: tuple[str, ...]
    signed: bool = False  # from a record of the peer's own: it is a member


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to this peer was admitted; ``dialled`` when it was this node that dialled."""

    peer: PeerId
    dialled: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The last connection to this peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Parting:
    """A connected peer says that it gives the connection up and stays where it is."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial found nobody; ``refused`` when somebody answered and said no."""

    peer: PeerId
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """Others say that these members are here; they need not be connected."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """Others say that these members are here no more. Whoever is connected is present all the same."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Expelled:
    """These are members no more. Their connections are for others to close; a dial tells them, should they not know."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Needed:
    """Somebody waits for a connection to this peer."""

    peer: PeerId


class Exchanged(msgspec.Struct, frozen=True):
    """An exchange of records with this peer ended."""

    peer: PeerId
    ok: bool


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The node slept, or its own addresses changed: what it knows of its connections may no longer hold."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Dial:
    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the connection to this peer still carries anything, and close it if not."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Release:
    """Give up the connection to this peer unless it is in use, and tell the peer why."""

    peer: PeerId
    reason: str


Event = (
    Hinted
    | Connected
    | Disconnected
    | Parting
    | DialFailed
    | Heard
    | Gone
    | Expelled
    | Needed
    | Exchanged
    | Unsettled
    | Expired
)
Effect = Dial | Probe | Release


@dataclass(slots=True)
class Membership:
    """One node's view of who is here."""

    me: PeerId
    rng: random.Random
    config: Config = field(default_factory=Config)
    connected: set[PeerId] = field(default_factory=set)
    present: set[PeerId] = field(default_factory=set)
    deadline: float = 0.0
    book: AddressBook = field(init=False)
    neighbours: Neighbours = field(init=False)
    _heard: set[PeerId] = field(default_factory=set)
    _look_at: float = 0.0
    _reach_at: float = 0.0
    _away: list[PeerId] | None = None  # who is in the book and not present; None: to be looked up
    _away_of: int = 0  # the book's changes then

    def __post_init__(self) -> None:
        self.book = AddressBook(self.me, self.rng, self.config)
        self.neighbours = Neighbours(self.me, self.rng, self.config)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; ``now`` is monotonic seconds. Sets ``deadline``, when ``Expired`` is due."""
        if isinstance(event, Exchanged):  # the most frequent by far, and nobody is to be dialled for it
            return self._take(event, now)
        effects = self._take(event, now)
        absent = self._absent_neighbours()
        effects += self._dials(absent, now)
        self.deadline = min(self._look_at, self.book.next_at(absent))
        return effects

    def _take(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Connected(peer, dialled):
                self._connected(peer, now, dialled=dialled)
                return []
            case Needed(peer):
                return self._needed(peer, now)
            case Exchanged(peer, ok):
                if ok and peer in self.connected:
                    self.book.settled(peer)
                return []
            case Unsettled():
                return self._unsettled(now)
            case Expired():
                return self._expired(now)
            case _:
                self._note(event, now)
                return []

    def _note(self, event: Hinted | Disconnected | Parting | DialFailed | Heard | Gone | Expelled, now: float) -> None:
        match event:
            case Hinted(peer, addresses, signed):
                self.book.hint(peer, addresses, now, signed=signed)
            case Disconnected(peer):
                self._disconnected(peer, now)
            case Parting(peer):
                self._parting(peer, now)
            case DialFailed(peer, refused):
                self.book.failed(peer, now, refused=refused)
            case Heard(peers):
                self._hear(peers)
            case Gone(peers):
                self._unhear(peers)
            case Expelled(peers):
                self._unhear(peers)
                for peer in peers:
                    self.book.doubt(peer, now)

    # -- connections --------------------------------------------------------------------------------------------------

    def _connected(self, peer: PeerId, now: float, *, dialled: bool) -> None:
        was_alone = not self.connected
        self.connected.add(peer)
        self.book.met(peer, now)
        self.neighbours.connected(peer, dialled=dialled)
        for each in (peer, *(self._heard if was_alone else ())):
            self._update(each)

    def _disconnected(self, peer: PeerId, now: float) -> None:
        self.connected.discard(peer)
        self.book.lost(peer, now)
        self.neighbours.disconnected(peer)
        for each in (peer, *(self._heard if not self.connected else ())):
            self._update(each)

    def _parting(self, peer: PeerId, now: float) -> None:
        """Take a peer's word that it goes on living without this connection, and do not dial it at once."""
        if peer in self.connected:
            self._hear([peer])
            if self.neighbours.wants(peer):  # it sees other members than this node does, as yet
                self.book.leave_alone(peer, now, self.config.linger_s)

    # -- presence -----------------------------------------------------------------------------------------------------

    def _hear(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer != self.me and peer not in self._heard:
                self._heard.add(peer)
                self._update(peer)

    def _unhear(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer in self._heard:
                self._heard.discard(peer)
                self._update(peer)

    def _update(self, peer: PeerId) -> None:
        """Hearsay counts while somebody is connected who would say otherwise."""
        self._away = None
        if peer in self.connected or (peer in self._heard and self.connected):
            self.present.add(peer)
            self.neighbours.came(peer)
        else:
            self.present.discard(peer)
            self.neighbours.went(peer)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _expired(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._look_at and now > self.deadline + self.config.late_s:  # and not at the very first
            effects += self._unsettled(now)
        if now >= self._look_at:
            effects += [Release(peer, why) for peer, why in self.neighbours.release(now)]
            calm = not self.neighbours.whole and self.neighbours.converged
            interval_s = self.config.look_calm_s if calm else self.config.look_interval_s
            self._look_at = now + interval_s * self.rng.uniform(0.8, 1.2)
        return effects

    def _unsettled(self, now: float) -> list[Effect]:
        self.book.afresh(now)
        return [Probe(peer) for peer in sorted(self.connected)]

    # -- dials --------------------------------------------------------------------------------------------------------

    def _absent_neighbours(self) -> list[PeerId]:
        """Those to dial: in a small mesh everybody of whom one has heard, in a large one who is missing beside one."""
        if self.neighbours.whole:
            return [peer for peer in self.book if peer not in self.connected]
        return sorted(self.neighbours.wanted - self.connected)  # in one order in every process: dials draw lots

    def _dials(self, absent: list[PeerId], now: float) -> list[Effect]:
        due = self.book.due(absent, now)
        if not self.neighbours.whole and now >= self._reach_at:
            self._reach_at = now + self.config.reach_interval_s * self.rng.uniform(0.5, 1.5)
            due += self._reach(now)
        return [Dial(peer, self.book.addresses(peer)) for peer in due]

    def _reach(self, now: float) -> list[PeerId]:
        """Try one of those who are away: a newcomer, or a member behind a partition that may have healed."""
        if self._away is None or self._away_of != self.book.changes:
            self._away = [peer for peer in self.book if peer not in self.present]
            self._away_of = self.book.changes
        away = self._away
        self.rng.shuffle(away)
        for peer in away:
            if due := self.book.due([peer], now):
                return due
        return []

    def _needed(self, peer: PeerId, now: float) -> list[Effect]:
        if peer in self.connected or not self.book.urgent(peer, now):
            return []
        return [Dial(peer, self.book.addresses(peer))]
