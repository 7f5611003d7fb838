"""Who is here: a machine that turns hints and connections into dials, exchanges of records, and a view of the present.

mDNS and profile records give *hints*; presence comes from admitted connections alone. A member that is known and not
connected is dialled with pauses that grow until an exchange with it succeeds. Anybody on the network can forge hints:
they only ever add addresses, and they never push out a peer that was here. Once a period each node exchanges records
with one random present peer (push-pull anti-entropy, Demers 1987); what changes is pushed to everyone at once. A peer
that misses ``misses_max`` exchanges in a row is frozen: its connection is closed, which makes it absent.

Invariant: ``present`` holds exactly the peers with an admitted connection; at most one dial per peer is under way.
"""

import math
import random
from dataclasses import dataclass, field

from . import limits
from .identity import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How eagerly a node looks after its neighbours."""

    exchange_interval_s: float = 1.0  # one random peer a second reached 64 nodes in 6 periods (trust.md)
    misses_max: int = 3  # a stalled edge processor misses one, rarely three
    redial_first_s: float = 0.2
    redial_most_s: float = 15.0  # someone who unplugs a device plugs it in again within minutes, not seconds
    hint_lifetime_s: float = 300.0  # a hint that never became a connection in five minutes is stale


@dataclass(frozen=True, slots=True)
class Hinted:
    """Something (mDNS, a profile record, the user) says that a peer may be found at these addresses."""

    peer: PeerId
    addresses: tuple[str, ...]
    lasting: bool = False  # from the user: it holds however long the peer is away


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to this peer was admitted."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The last connection to this peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial found nobody; ``refused`` when somebody answered and said no."""

    peer: PeerId
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Exchanged:
    """An exchange of records with this peer ended."""

    peer: PeerId
    ok: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Dial:
    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Reconcile records with this peer and answer with Exchanged."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Drop:
    """Close every connection to this peer."""

    peer: PeerId
    reason: str


Event = Hinted | Connected | Disconnected | DialFailed | Exchanged | Expired
Effect = Dial | Exchange | Drop


@dataclass(slots=True)
class _Known:
    addresses: tuple[str, ...]
    hinted_at: float
    dial_at: float
    pause_s: float
    dialling: bool = False
    dialled_at: float = -math.inf
    lasting: bool = False
    proven: bool = False  # was here once


@dataclass(slots=True)
class Membership:
    """One node's view of who is here."""

    me: PeerId
    rng: random.Random
    config: Config = field(default_factory=Config)
    present: set[PeerId] = field(default_factory=set)
    deadline: float = 0.0
    _known: dict[PeerId, _Known] = field(default_factory=dict)
    _misses: dict[PeerId, int] = field(default_factory=dict)
    _exchange_at: float = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; ``now`` is monotonic seconds. Sets ``deadline``, when ``Expired`` is due."""
        effects: list[Effect] = []
        match event:
            case Hinted(peer, addresses, lasting):
                self._hint(peer, addresses, now, lasting=lasting)
            case Connected(peer):
                self.present.add(peer)
                self._misses[peer] = 0
                if (known := self._known.get(peer)) is not None:
                    known.dialling, known.proven = False, True
                effects.append(Exchange(peer))
            case Disconnected(peer):
                self._absent(peer, now)
            case DialFailed(peer, refused):
                self._back_off(peer, now, refused=refused)
            case Exchanged(peer, ok):
                effects += self._exchanged(peer, ok=ok)
            case Expired():
                effects += self._exchange(now)
        effects += self._dials(now)
        self.deadline = min([self._exchange_at, *(k.dial_at for k in self._waiting().values())])
        return effects

    def _hint(self, peer: PeerId, addresses: tuple[str, ...], now: float, *, lasting: bool) -> None:
        if peer == self.me or not addresses:
            return
        known = self._known.get(peer)
        if known is None:
            if not self._room_for_one():
                return
            known = self._known[peer] = _Known((), now, now, self.config.redial_first_s)
        known.hinted_at = now
        known.lasting |= lasting
        new = [address for address in addresses if address not in known.addresses]
        if new:  # worth a dial at once, but not one for each of a flood of them
            known.dial_at = min(known.dial_at, max(now, known.dialled_at + self.config.redial_first_s))
            known.addresses = _bounded((*new, *known.addresses))

    def _room_for_one(self) -> bool:
        """Whether one more peer may be remembered, if need be in place of the stalest that never was here."""
        if len(self._known) < limits.HINTED_PEERS_MAX:
            return True
        fresh = {peer: k for peer, k in self._known.items() if not (k.proven or k.lasting or k.dialling)}
        if not fresh:
            return False
        del self._known[min(fresh, key=lambda peer: fresh[peer].hinted_at)]
        return True

    def _absent(self, peer: PeerId, now: float) -> None:
        self.present.discard(peer)
        self._misses.pop(peer, None)
        if (known := self._known.get(peer)) is not None:
            known.hinted_at = now
            self._pause(known, known.pause_s, now)

    def _back_off(self, peer: PeerId, now: float, *, refused: bool) -> None:
        if (known := self._known.get(peer)) is not None:
            known.dialling = False
            self._pause(known, self.config.redial_most_s if refused else known.pause_s, now)

    def _pause(self, known: _Known, pause_s: float, now: float) -> None:
        known.dial_at = now + pause_s * self.rng.uniform(0.5, 1.5)  # jitter: peers of one outage must not dial in step
        known.pause_s = min(2 * known.pause_s, self.config.redial_most_s)

    def _exchanged(self, peer: PeerId, *, ok: bool) -> list[Effect]:
        if peer not in self.present:
            return []
        self._misses[peer] = 0 if ok else self._misses.get(peer, 0) + 1
        if ok and (known := self._known.get(peer)) is not None:
            known.pause_s = self.config.redial_first_s
        if self._misses[peer] < self.config.misses_max:
            return []
        return [Drop(peer, f"missed {self._misses[peer]} exchanges in a row")]

    def _exchange(self, now: float) -> list[Effect]:
        if now < self._exchange_at:
            return []
        self._exchange_at = now + self.config.exchange_interval_s * self.rng.uniform(0.8, 1.2)
        if not self.present:
            return []
        return [Exchange(self.rng.choice(sorted(self.present)))]

    def _waiting(self) -> dict[PeerId, _Known]:
        return {peer: k for peer, k in self._known.items() if not k.dialling and peer not in self.present}

    def _dials(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer, known in self._waiting().items():
            if now - known.hinted_at > self.config.hint_lifetime_s and not known.lasting:
                del self._known[peer]
            elif now >= known.dial_at:
                known.dialling, known.dialled_at = True, now
                effects.append(Dial(peer, known.addresses))
        return effects


def _bounded(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the newest and the oldest addresses: a peer may have moved, or the new ones may be forged."""
    half = limits.HINTED_ADDRESSES_MAX // 2
    return addresses if len(addresses) <= 2 * half else addresses[:half] + addresses[-half:]
