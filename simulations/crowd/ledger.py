"""What was said and what became of whom, written down as it happens: what the invariants are checked against."""

from dataclasses import dataclass, field

from ...mesh.identity import PeerId
from ...mesh.records import Key, Record, RecordId
from ...mesh.spreading import Accuse, Offend
from .clock import Clock


@dataclass(slots=True)
class Traffic:
    """What went over all links."""

    probes: int = 0  # messages about who lives: probes, answers and news
    calls: int = 0  # about records; each has an answer
    dials: int = 0


@dataclass(slots=True)
class Gone:
    """The end of one process, and when others held its member for dead."""

    at_s: float
    silent: bool
    noticed_s: list[float] = field(default_factory=list)  # after the end; one for each member that did


class Ledger:
    """The true history of one run."""

    def __init__(self, clock: Clock) -> None:
        self.published: dict[RecordId, None] = {}
        self.durable: dict[Key, Record] = {}  # the last of each that was said
        self.gone: list[Gone] = []
        self.away: dict[PeerId, Gone] = {}  # who is not here now
        self.mistaken: list[tuple[float, PeerId, PeerId]] = []  # when who held whom for dead that was here
        self.broken: list[str] = []  # rules that a member is said to have broken; all here keep them
        self._clock = clock

    def said(self, record: Record) -> None:
        self.published[record.id] = None
        if record.content.durable:
            self.durable[record.key] = record

    def ended(self, peer: PeerId, *, silent: bool) -> None:
        self.away[peer] = gone = Gone(self._clock.now, silent)
        self.gone.append(gone)

    def began(self, peer: PeerId) -> None:
        self.away.pop(peer, None)

    def died(self, who: PeerId, peer: PeerId) -> None:
        """Somebody holds a member for dead."""
        if (gone := self.away.get(peer)) is not None:
            gone.noticed_s.append(self._clock.now - gone.at_s)
        else:
            self.mistaken.append((self._clock.now, who, peer))

    def broke(self, who: PeerId, effect: Accuse | Offend) -> None:
        self.broken.append(f"{who} at {self._clock.now:.3f} s: {effect.reason}")
