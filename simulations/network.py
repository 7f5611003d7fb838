"""Links between devices: latency, jitter, loss, reordering, cuts, and connections that end as real ones do.

A connection has two ends that can disagree: one side may think it open while the other has closed it, crashed, or is
cut off. Whoever speaks into an end that is not open any more is told by a reset, unless the link swallows that too.
Messages are lost one by one. The words that open and close a connection are repeated until they arrive, as TCP does.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ..mesh import limits
from ..mesh.identity import PeerId
from .scenario import Link
from .world import Action, World

_REPEAT_S = 1.0  # TCP's first retransmission timeout (RFC 6298)

Dialled = Callable[["Connection | None", str], None]


@dataclass(slots=True, eq=False)
class Connection:
    """One connection: who dialled, who was dialled, and which of the two think that it is open."""

    number: int
    initiator: PeerId
    acceptor: PeerId
    open_at: dict[PeerId, bool] = field(default_factory=dict)

    def other(self, me: PeerId) -> PeerId:
        return self.acceptor if me == self.initiator else self.initiator


class Endpoint(Protocol):
    """What the network tells a device."""

    @property
    def peer_id(self) -> PeerId: ...
    def on_connection(self, connection: Connection) -> None: ...
    def on_packet(self, connection: Connection, packet: object) -> None: ...
    def on_closed(self, connection: Connection) -> None: ...
    def awake(self, action: Action) -> None: ...


@dataclass(slots=True)
class Traffic:
    """What went over all links."""

    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    bytes_sent: int = 0
    dials: int = 0
    dials_failed: int = 0


class Cut(Protocol):
    """Something that keeps messages from arriving while it lasts. Devices go by their names, in all their lives."""

    def carries(self, sender: str, receiver: str) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Islands:
    """Nothing gets from one island to another; who is not named is on island 0, and bridges are linked with all."""

    island: Mapping[str, int]
    bridges: Collection[str] = ()

    def carries(self, sender: str, receiver: str) -> bool:
        same = self.island.get(sender, 0) == self.island.get(receiver, 0)
        return same or sender in self.bridges or receiver in self.bridges


@dataclass(frozen=True, slots=True, eq=False)
class Muffled:
    """What some say does not reach some others."""

    senders: Collection[str]
    receivers: Collection[str]

    def carries(self, sender: str, receiver: str) -> bool:
        return not (sender in self.senders and receiver in self.receivers)


@dataclass(frozen=True, slots=True, eq=False)
class Otherwise:
    """What is other about some links: those between two, those around one, or all."""

    between: tuple[str, ...]
    changes: Mapping[str, float]

    def applies(self, one: str, other: str) -> bool:
        return all(name in {one, other} for name in self.between)


class Network:
    """All links and connections of one world."""

    def __init__(self, world: World, link: Link) -> None:
        self.traffic = Traffic()
        self._world = world
        self._link = link
        self._dice = world.dice("network")
        self._endpoints: dict[PeerId, Endpoint] = {}
        self._connections: dict[int, Connection] = {}
        self._cuts: list[Cut] = []
        self._weather: list[Otherwise] = []
        self._number = 0

    # -- who is there -------------------------------------------------------------------------------------------------

    def attach(self, endpoint: Endpoint) -> None:
        """Let a device be reached, and let all hear of it and it of all, as mDNS does."""
        self._endpoints[endpoint.peer_id] = endpoint

    def crash(self, peer: PeerId) -> None:
        """Take a device away without a word; its peers notice after a while."""
        self._endpoints.pop(peer, None)
        for connection in [c for c in self._connections.values() if c.open_at.get(peer)]:
            self._shut(connection, peer)
            self._tell_closed(connection, connection.other(peer), self._link.detection_s)

    def cut(self, cut: Cut) -> None:
        """Keep what this says from arriving, until it is healed."""
        self._cuts.append(cut)

    def heal(self, cut: Cut) -> None:
        self._cuts.remove(cut)

    @property
    def whole(self) -> bool:
        return not self._cuts

    def change(self, otherwise: Otherwise) -> None:
        """Let some links be otherwise, until they change back; of two changes the later counts."""
        self._weather.append(otherwise)

    def change_back(self, otherwise: Otherwise) -> None:
        if otherwise in self._weather:  # unless all was mended meanwhile
            self._weather.remove(otherwise)

    def mend(self) -> None:
        """Lose, hold back and double nothing any more."""
        self._link = msgspec.structs.replace(self._link, loss=0.0, duplication=0.0, reordering=0.0)
        self._weather.clear()

    def carries(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether a message can get from one to the other."""
        if not self._cuts:
            return True
        names = self._world.called(sender), self._world.called(receiver)
        return all(cut.carries(*names) for cut in self._cuts)

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        """Whether the two can open a connection, which takes words of both."""
        return self.carries(one, other) and self.carries(other, one)

    def _between(self, one: PeerId, other: PeerId) -> Link:
        """Return how the link between two is now."""
        link = self._link
        for otherwise in self._weather:
            if otherwise.applies(self._world.called(one), self._world.called(other)):
                link = msgspec.structs.replace(link, **otherwise.changes)
        return link

    def heard_by(self, speaker: PeerId) -> list[Endpoint]:
        """Return who hears one multicast of a peer; some do not."""
        return [
            endpoint
            for peer, endpoint in self._endpoints.items()
            if peer != speaker
            and self.carries(speaker, peer)
            and self._dice.random() >= self._between(speaker, peer).loss
        ]

    # -- connections --------------------------------------------------------------------------------------------------

    def dial(self, caller: Endpoint, target: PeerId, dialled: Dialled) -> None:
        """Open a connection and hand it to ``dialled``, or None and why not."""
        self.traffic.dials += 1
        link = self._between(caller.peer_id, target)
        delay_s = self._repeated_s(link) + self._repeated_s(link)
        if not self.reachable(caller.peer_id, target) or delay_s > limits.DIAL_TIMEOUT_S:
            self._world.after(
                limits.DIAL_TIMEOUT_S, lambda: self._undialled(caller, dialled, "nobody answered the dial")
            )
        else:
            self._world.after(delay_s, lambda: self._connect(caller, target, dialled))

    def _connect(self, caller: Endpoint, target: PeerId, dialled: Dialled) -> None:
        there = self._endpoints.get(target)
        if self._endpoints.get(caller.peer_id) is not caller:
            return  # it crashed meanwhile
        if there is None or not self.reachable(caller.peer_id, target):
            self._undialled(caller, dialled, "the dial was refused")
            return
        self._number += 1
        connection = Connection(self._number, caller.peer_id, target, {caller.peer_id: True, target: True})
        self._connections[connection.number] = connection
        there.awake(lambda: there.on_connection(connection))  # the kernel accepts for a process that is stopped
        caller.awake(lambda: dialled(connection, ""))

    def _undialled(self, caller: Endpoint, dialled: Dialled, why: str) -> None:
        if self._endpoints.get(caller.peer_id) is caller:
            self.traffic.dials_failed += 1
            caller.awake(lambda: dialled(None, why))

    def close(self, connection: Connection, by: PeerId) -> None:
        """Close one end; the other hears of it, if the link lets it."""
        if connection.open_at[by]:
            self._shut(connection, by)
            other = connection.other(by)
            self._tell_closed(connection, other, self._repeated_s(self._between(by, other)))

    def _tell_closed(self, connection: Connection, whom: PeerId, delay_s: float) -> None:
        def tell() -> None:
            there = self._endpoints.get(whom)
            if there is not None:
                there.awake(lambda: hear(there))

        def hear(there: Endpoint) -> None:
            if connection.open_at[whom] and self.carries(connection.other(whom), whom):
                self._shut(connection, whom)
                there.on_closed(connection)

        self._world.after(delay_s, tell)

    def _shut(self, connection: Connection, end: PeerId) -> None:
        connection.open_at[end] = False
        if not any(connection.open_at.values()):
            self._connections.pop(connection.number, None)

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, connection: Connection, sender: PeerId, packet: object, size_bytes: int) -> None:
        """Send one message; it arrives once, not at all, or twice."""
        self.traffic.sent += 1
        self.traffic.bytes_sent += size_bytes
        if not connection.open_at[sender]:
            return
        receiver = connection.other(sender)
        link = self._between(sender, receiver)
        if self._dice.random() < link.loss or not self.carries(sender, receiver):
            self.traffic.lost += 1
            return
        copies = 1 + (self._dice.random() < link.duplication)
        self.traffic.duplicated += copies - 1
        for _ in range(copies):
            delay_s = self._delay_s(link, size_bytes) + self._held_back_s(link)
            self._world.after(delay_s, lambda: self._deliver(connection, sender, packet))

    def _deliver(self, connection: Connection, sender: PeerId, packet: object) -> None:
        receiver = connection.other(sender)
        there = self._endpoints.get(receiver)
        if not self.carries(sender, receiver):
            self.traffic.lost += 1
        elif there is not None:
            there.awake(lambda: self._hand_over(there, connection, sender, packet))

    def _hand_over(self, there: Endpoint, connection: Connection, sender: PeerId, packet: object) -> None:
        if connection.open_at[there.peer_id]:
            there.on_packet(connection, packet)
        else:
            link = self._between(sender, there.peer_id)
            self._tell_closed(connection, sender, self._delay_s(link, 0))  # a reset: no such connection here

    def _delay_s(self, link: Link, size_bytes: int) -> float:
        carrying_s = size_bytes / link.bandwidth_bytes_per_s if link.bandwidth_bytes_per_s else 0.0
        return link.latency_s + link.jitter_s * self._dice.random() + carrying_s

    def _held_back_s(self, link: Link) -> float:
        if link.reordering and self._dice.random() < link.reordering:
            return self._dice.random() * link.reordering_s
        return 0.0

    def _repeated_s(self, link: Link) -> float:
        delay_s = self._delay_s(link, 0)
        while self._dice.random() < link.loss:
            delay_s += _REPEAT_S
        return delay_s
