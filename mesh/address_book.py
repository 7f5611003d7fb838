"""Where members may be found, and when to try each again: hints, dials that fail, and pauses that grow, with jitter.

Anybody on the network can forge hints: they only ever add addresses, they are bounded in number, and they never push
out a peer that was here or that signed a record of its addresses. A peer that never was here is forgotten; a member is
tried for as long as there is room, more and more seldom.

Invariant: at most one dial per peer is under way, and ``limits.DIALS_MAX`` in all.
"""

import math
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from . import limits
from .identity import PeerId
from .pace import Config


@dataclass(slots=True)
class _Entry:
    addresses: tuple[str, ...]
    hinted_at: float
    dial_at: float
    pause_s: float
    dialled_at: float = -math.inf
    proven: bool = False  # was here once, or signed a record of its addresses


@dataclass(slots=True)
class AddressBook:
    """Whom one node may dial."""

    me: PeerId
    rng: random.Random
    config: Config = field(default_factory=Config)
    dialling: set[PeerId] = field(default_factory=set)
    here: set[PeerId] = field(default_factory=set)  # those that are connected
    _entries: dict[PeerId, _Entry] = field(default_factory=dict)
    _hearsay: set[PeerId] = field(default_factory=set)  # those that are not proven
    changes: int = 0  # grows whenever a peer is added or forgotten

    def __contains__(self, peer: object) -> bool:
        return peer in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._entries)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Return what is known of where a peer is, the latest first."""
        return self._entries[peer].addresses if peer in self._entries else ()

    # -- what one hears of a peer -------------------------------------------------------------------------------------

    def hint(self, peer: PeerId, addresses: tuple[str, ...], now: float, *, signed: bool = False) -> None:
        """Take in that a peer may be found at these addresses; ``signed`` when a record of its own says so."""
        if peer == self.me or not addresses:
            return
        entry = self._entries.get(peer)
        if entry is None:
            if not self._room_for_one(member=signed):
                return
            entry = self._entries[peer] = _Entry((), now, now, self.config.redial_first_s)
            self._hearsay.add(peer)
            self.changes += 1
        entry.hinted_at = now
        if signed:
            self._prove(peer, entry)
        new = [address for address in addresses if address not in entry.addresses]
        if new:  # worth a dial at once, but not one for each of a flood of them
            entry.dial_at = min(entry.dial_at, max(now, entry.dialled_at + self.config.redial_first_s))
            entry.addresses = _bounded((*new, *entry.addresses))

    def _prove(self, peer: PeerId, entry: _Entry) -> None:
        entry.proven = True
        self._hearsay.discard(peer)

    def _room_for_one(self, *, member: bool) -> bool:
        """Whether one more peer may be remembered, if need be in place of the stalest that counts for less."""
        if member and len(self._entries) - len(self._hearsay) >= limits.KNOWN_MEMBERS_MAX:
            return self._push_out(peer for peer, entry in self._entries.items() if entry.proven)
        if not member and len(self._hearsay) >= limits.HINTED_PEERS_MAX:
            return self._push_out(self._hearsay)
        return True

    def _push_out(self, peers: Iterable[PeerId]) -> bool:
        idle = [peer for peer in peers if peer not in self.dialling and peer not in self.here]
        if idle:
            self.forget(min(idle, key=lambda peer: (self._entries[peer].hinted_at, peer)))
        return bool(idle)

    def forget(self, peer: PeerId) -> None:
        """Know nothing of a peer any more."""
        if self._entries.pop(peer, None) is not None:
            self.changes += 1
        self._hearsay.discard(peer)

    def doubt(self, peer: PeerId, now: float) -> None:
        """What is known of a peer counts no more than hearsay from now on."""
        if (entry := self._entries.get(peer)) is not None:
            entry.proven, entry.hinted_at = False, now
            self._hearsay.add(peer)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def met(self, peer: PeerId, now: float) -> None:
        """A connection to this peer was let in."""
        self.dialling.discard(peer)
        self.here.add(peer)
        if (entry := self._entries.get(peer)) is not None:
            entry.hinted_at = now
            self._prove(peer, entry)

    def settled(self, peer: PeerId) -> None:
        """The peer proved to be of use: when it is lost, the pauses begin anew."""
        if (entry := self._entries.get(peer)) is not None:
            entry.pause_s = self.config.redial_first_s

    def lost(self, peer: PeerId, now: float) -> None:
        """The last connection to this peer is gone."""
        self.here.discard(peer)
        if (entry := self._entries.get(peer)) is not None:
            entry.hinted_at = now
            not_before = entry.dial_at  # it may have asked to be left alone
            self._pause(entry, entry.pause_s, now)
            entry.dial_at = max(entry.dial_at, not_before)

    def failed(self, peer: PeerId, now: float, *, refused: bool) -> None:
        """A dial came to nothing."""
        self.dialling.discard(peer)
        if (entry := self._entries.get(peer)) is not None:
            self._pause(entry, self.config.redial_most_s if refused else entry.pause_s, now)

    def leave_alone(self, peer: PeerId, now: float, pause_s: float) -> None:
        """The peer wants no connection for a while."""
        if (entry := self._entries.get(peer)) is not None:
            entry.dial_at = now + pause_s * self.rng.uniform(1.0, 2.0)

    def _pause(self, entry: _Entry, pause_s: float, now: float) -> None:
        entry.dial_at = now + pause_s * self.rng.uniform(0.5, 1.5)  # jitter: peers of one outage must not dial in step
        long_gone = entry.proven and now - entry.hinted_at > self.config.hint_lifetime_s
        most_s = self.config.redial_lost_s if long_gone else self.config.redial_most_s
        entry.pause_s = min(2 * entry.pause_s, most_s)

    def afresh(self, now: float) -> None:
        """Forget all pauses: the network is another, or time has passed that was not noticed."""
        for entry in self._entries.values():
            entry.pause_s = self.config.redial_first_s
            entry.dial_at = min(entry.dial_at, now + self.rng.uniform(0.0, self.config.redial_first_s))
            entry.hinted_at = now

    # -- dials --------------------------------------------------------------------------------------------------------

    def due(self, peers: Iterable[PeerId], now: float) -> list[PeerId]:
        """Begin those dials that are due, among these peers, as far as there is room; hearsay that is stale goes."""
        ready = []
        for peer in peers:
            entry = self._entries.get(peer)
            if entry is None or peer in self.dialling:
                continue
            if peer in self._hearsay and now - entry.hinted_at > self.config.hint_lifetime_s:
                self.forget(peer)
            elif now >= entry.dial_at:
                ready.append(peer)
        if len(ready) > (room := limits.DIALS_MAX - len(self.dialling)):  # those first of whom one may expect an answer
            ready.sort(key=lambda peer: (peer in self._hearsay, self._entries[peer].pause_s))
            ready = ready[:room]
        for peer in ready:
            self._begin(peer, now)
        return ready

    def urgent(self, peer: PeerId, now: float) -> bool:
        """Begin a dial that somebody waits for, whatever its pause; false when it is under way, useless or too soon."""
        entry = self._entries.get(peer)
        if entry is None or peer in self.dialling or now < entry.dialled_at + self.config.redial_first_s:
            return False
        self._begin(peer, now)
        return True

    def _begin(self, peer: PeerId, now: float) -> None:
        self._entries[peer].dialled_at = now
        self.dialling.add(peer)

    def next_at(self, peers: Collection[PeerId]) -> float:
        """When the next dial among these peers is due; never, while no more dials may begin."""
        if len(self.dialling) >= limits.DIALS_MAX:
            return math.inf
        return min(
            (self._entries[p].dial_at for p in peers if p in self._entries and p not in self.dialling), default=math.inf
        )


def _bounded(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the newest and the oldest addresses: a peer may have moved, or the new ones may be forged."""
    half = limits.HINTED_ADDRESSES_MAX // 2
    return addresses if len(addresses) <= 2 * half else addresses[:half] + addresses[-half:]
