"""Links between devices: latency, jitter, loss, duplication, partitions, and connections that end as real ones do.

A connection has two ends that can disagree: one side may think it open while the other has closed it, crashed, or is
cut off. Whoever speaks into an end that is not open any more is told by a reset, unless the link swallows that too.
Messages are lost one by one. The words that open and close a connection are repeated until they arrive, as TCP does.
"""

from collections.abc import Callable, Mapping
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


class Network:
    """All links and connections of one world."""

    def __init__(self, world: World, link: Link) -> None:
        self.traffic = Traffic()
        self._world = world
        self._link = link
        self._dice = world.dice("network")
        self._endpoints: dict[PeerId, Endpoint] = {}
        self._connections: dict[int, Connection] = {}
        self._islands: Mapping[PeerId, int] = {}
        self._bridges: frozenset[PeerId] = frozenset()
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

    def part(self, islands: Mapping[PeerId, int], bridges: frozenset[PeerId] = frozenset()) -> None:
        """Cut the links between islands; peers that are not named are on island 0. An empty mapping heals all.

        Bridges are linked with everybody.
        """
        self._islands, self._bridges = islands, bridges

    def mend(self) -> None:
        """Lose and double nothing any more."""
        self._link = msgspec.structs.replace(self._link, loss=0.0, duplication=0.0)

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        same = self._islands.get(one, 0) == self._islands.get(other, 0)
        return same or one in self._bridges or other in self._bridges

    def heard_by(self, speaker: PeerId) -> list[Endpoint]:
        """Return who hears one multicast of a peer; some do not."""
        return [
            endpoint
            for peer, endpoint in self._endpoints.items()
            if peer != speaker and self.reachable(speaker, peer) and self._dice.random() >= self._link.loss
        ]

    # -- connections --------------------------------------------------------------------------------------------------

    def dial(self, caller: Endpoint, target: PeerId, dialled: Dialled) -> None:
        """Open a connection and hand it to ``dialled``, or None and why not."""
        self.traffic.dials += 1
        delay_s = self._repeated_s() + self._repeated_s()
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
            self._tell_closed(connection, connection.other(by), self._repeated_s())

    def _tell_closed(self, connection: Connection, whom: PeerId, delay_s: float) -> None:
        def tell() -> None:
            there = self._endpoints.get(whom)
            if there is not None:
                there.awake(lambda: hear(there))

        def hear(there: Endpoint) -> None:
            if connection.open_at[whom] and self.reachable(whom, connection.other(whom)):
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
        if self._dice.random() < self._link.loss or not self.reachable(sender, connection.other(sender)):
            self.traffic.lost += 1
            return
        copies = 1 + (self._dice.random() < self._link.duplication)
        self.traffic.duplicated += copies - 1
        for _ in range(copies):
            self._world.after(self._delay_s(size_bytes), lambda: self._deliver(connection, sender, packet))

    def _deliver(self, connection: Connection, sender: PeerId, packet: object) -> None:
        receiver = connection.other(sender)
        there = self._endpoints.get(receiver)
        if not self.reachable(sender, receiver):
            self.traffic.lost += 1
        elif there is not None:
            there.awake(lambda: self._hand_over(there, connection, sender, packet))

    def _hand_over(self, there: Endpoint, connection: Connection, sender: PeerId, packet: object) -> None:
        if connection.open_at[there.peer_id]:
            there.on_packet(connection, packet)
        else:
            self._tell_closed(connection, sender, self._delay_s(0))  # a reset: no such connection here

    def _delay_s(self, size_bytes: int) -> float:
        link = self._link
        carrying_s = size_bytes / link.bandwidth_bytes_per_s if link.bandwidth_bytes_per_s else 0.0
        return link.latency_s + link.jitter_s * self._dice.random() + carrying_s

    def _repeated_s(self) -> float:
        delay_s = self._delay_s(0)
        while self._dice.random() < self._link.loss:
            delay_s += _REPEAT_S
        return delay_s
