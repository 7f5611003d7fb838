"""Hundreds of membership machines on virtual time, with links that take their time, crashes and partitions.

What members tell each other of who lives is modelled in a few lines: every word ("N is here", "N is gone", each with a
version that N alone raises) is one bit of a number, and an exchange between two machines joins their numbers.
"""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lepton.mesh.identity import PeerId
from lepton.mesh.membership import (
    Connected,
    Dial,
    DialFailed,
    Disconnected,
    Effect,
    Event,
    Exchanged,
    Expired,
    Gone,
    Heard,
    Hinted,
    Membership,
    Parting,
    Release,
)
from lepton.mesh.pace import Config

LATENCY_S = 0.02
EXCHANGE_INTERVAL_S = 1.0  # spreading.Config
DIAL_S = 0.05  # three round trips and two elliptic curves
REFUSED_S = 0.05  # nobody listens there any more
LOST_S = 10.0  # a dial into a partition ends at its timeout
BREAK_S = 2.0  # until a connection to who is gone is known to be dead
DOUBT_S = 3.0  # a member that lost its connection has so long to speak up


@dataclass(frozen=True, slots=True)
class News:
    """One word of who lives."""

    peer: PeerId
    version: int
    here: bool


@dataclass(slots=True)
class Node:
    """One machine and what it has heard."""

    members: Membership
    heard: int = 0  # bits: indices of the world's news
    latest: dict[PeerId, tuple[int, bool]] = field(default_factory=dict)  # version, and whether it is gone
    version: int = 1
    next_at: float = 0.0


class Crowd:
    """All of them, and the links between them."""

    def __init__(self, size: int, seed: int, config: Config) -> None:
        self.now = 0.0
        self.dice = random.Random(seed)
        self.names = [PeerId(f"member {n}") for n in range(size)]
        self.nodes: dict[PeerId, Node] = {}
        self.links: set[tuple[PeerId, PeerId]] = set()
        self.island: Mapping[PeerId, int] = {}
        self.dials = 0
        self.most = 0  # connections that one node ever had at once
        self._config = config
        self._news: list[News] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    # -- time ---------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def run(self, seconds: float, until: Callable[[], bool] | None = None, look_s: float = 0.5) -> float:
        """Let time pass, until something is so if asked; returns how long it took."""
        start, look_at = self.now, self.now
        end = start + seconds
        while self._queue and self._queue[0][0] <= end:
            if until is not None and self._queue[0][0] >= look_at:
                if until():
                    return self.now - start
                look_at = self.now + look_s
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end
        assert until is None or until(), f"not so after {seconds:g} s"
        return seconds

    # -- who is there -------------------------------------------------------------------------------------------------

    def start_all(self, within_s: float) -> None:
        """Let all begin, one after the other; each knows one that began earlier."""
        for n, name in enumerate(self.names):
            known = self.names[self.dice.randrange(n)] if n else name
            self.after(within_s * n / len(self.names), lambda name=name, known=known: self.start(name, known))  # type: ignore[misc]
        self.run(within_s)

    def start(self, name: PeerId, *known: PeerId) -> None:
        """Let a node begin, which knows where these are."""
        node = self.nodes[name] = Node(Membership(name, random.Random(self.dice.random()), self._config))
        self._say(node, News(name, node.version, here=True))
        for other in known:
            self.give(name, Hinted(other, (f"at {other}",)))
        self._wake(name)
        self._talk(node)

    def _talk(self, node: Node) -> None:
        """Exchange with one random neighbour a period, as the picture does."""
        name = node.members.me
        if self.nodes.get(name) is not node:
            return
        if node.members.connected:
            self._exchange(name, self.dice.choice(sorted(node.members.connected)))
        self.after(EXCHANGE_INTERVAL_S * self.dice.uniform(0.8, 1.2), lambda: self._talk(node))

    def crash(self, name: PeerId) -> None:
        del self.nodes[name]
        for link in [link for link in self.links if name in link]:
            self._break(link)

    def part(self, island: Mapping[PeerId, int]) -> None:
        """Cut the links between islands."""
        self.island = island
        for link in [(a, b) for a, b in self.links if island[a] != island[b]]:
            self._break(link)

    def heal(self) -> None:
        self.island = {}

    def _break(self, link: tuple[PeerId, PeerId]) -> None:
        self.links.discard(link)
        for end, other in (link, link[::-1]):
            self.after(BREAK_S * self.dice.random(), lambda end=end, other=other: self._lose(end, other))  # type: ignore[misc]

    def _lose(self, end: PeerId, other: PeerId) -> None:
        if end in self.nodes and not self.linked(end, other):
            self.give(end, Disconnected(other))
            self._begin_doubt(end, other)

    def _begin_doubt(self, name: PeerId, other: PeerId) -> None:
        """Take a member that cannot be reached for gone, unless something is heard of it in time."""
        node = self.nodes.get(name)
        if node is None or other not in node.members.present:
            return
        known = node.latest[other]

        def judge() -> None:
            if name in self.nodes and node.latest[other] == known and not self.linked(name, other):
                self._say(node, News(other, known[0], here=False))

        self.after(DOUBT_S, judge)

    def linked(self, one: PeerId, other: PeerId) -> bool:
        return (min(one, other), max(one, other)) in self.links

    # -- one machine --------------------------------------------------------------------------------------------------

    def give(self, name: PeerId, event: Event) -> None:
        node = self.nodes.get(name)
        if node is None:
            return
        for effect in node.members.handle(event, self.now):
            self._carry_out(name, effect)
        if node.members.deadline < node.next_at:
            self._wake(name)

    def _wake(self, name: PeerId) -> None:
        node = self.nodes[name]
        node.next_at = at = max(node.members.deadline, self.now + 1e-3)

        def wake() -> None:
            if self.nodes.get(name) is node and node.next_at == at:
                self.give(name, Expired())
                self._wake(name)

        self.after(at - self.now, wake)

    def _carry_out(self, name: PeerId, effect: Effect) -> None:
        match effect:
            case Dial(peer):
                self._dial(name, peer)
            case Release(peer):
                self.after(LATENCY_S, lambda: self._part(name, peer))

    def _dial(self, name: PeerId, peer: PeerId) -> None:
        self.dials += 1
        cut = self.island.get(name) != self.island.get(peer)
        there = peer in self.nodes and not cut
        delay_s = DIAL_S if there else LOST_S if cut else REFUSED_S
        self.after(delay_s * self.dice.uniform(0.5, 1.5), lambda: self._dialled(name, peer, there=there))

    def _dialled(self, name: PeerId, peer: PeerId, *, there: bool) -> None:
        cut = self.island.get(name) != self.island.get(peer)
        if not there or cut or peer not in self.nodes or name not in self.nodes:
            self.give(name, DialFailed(peer))
            self._begin_doubt(name, peer)
            return
        self.links.add((min(name, peer), max(name, peer)))
        for end, other in ((peer, name), (name, peer)):
            self.give(end, Connected(other, dialled=end == name))
            self.after(LATENCY_S, lambda end=end, other=other: self._exchange(end, other))  # type: ignore[misc]
            self.most = max(self.most, len(self.nodes[end].members.connected))

    def _part(self, name: PeerId, peer: PeerId) -> None:
        self.links.discard((min(name, peer), max(name, peer)))
        for end, other in ((name, peer), (peer, name)):
            self.give(end, Parting(other))
            self.give(end, Disconnected(other))

    # -- who tells whom what ------------------------------------------------------------------------------------------

    def _say(self, node: Node, news: News) -> None:
        self._news.append(news)
        self._hear(node, 1 << (len(self._news) - 1))

    def _exchange(self, name: PeerId, peer: PeerId) -> None:
        one, other = self.nodes.get(name), self.nodes.get(peer)
        if one is None:
            return
        if other is None or not self.linked(name, peer):
            self.give(name, Exchanged(peer, ok=False))
            return
        for node, rest in ((one, other.heard & ~one.heard), (other, one.heard & ~other.heard)):
            self._hear(node, rest)
        self.give(name, Exchanged(peer, ok=True))

    def _hear(self, node: Node, bits: int) -> None:
        """Take in words; who hears that it is gone itself says otherwise."""
        node.heard |= bits
        changed = set[PeerId]()
        while bits:
            news = self._news[(bits & -bits).bit_length() - 1]
            bits &= bits - 1
            said = (news.version, not news.here)
            if news.peer not in node.latest:
                node.members.book.hint(news.peer, (f"at {news.peer}",), self.now, signed=True)
            if said > node.latest.get(news.peer, (0, False)):
                node.latest[news.peer] = said
                changed.add(news.peer)
        me = node.members.me
        if me in changed and node.latest[me][1]:
            node.version = node.latest[me][0] + 1
            self._say(node, News(me, node.version, here=True))
        if here := tuple(sorted(p for p in changed if not node.latest[p][1])):
            self.give(me, Heard(here))
        if gone := tuple(sorted(p for p in changed if node.latest[p][1])):
            self.give(me, Gone(gone))

    # -- what came of it ----------------------------------------------------------------------------------------------

    def degrees(self) -> dict[PeerId, int]:
        return {name: len(node.members.connected) for name, node in self.nodes.items()}

    def pieces(self) -> int:
        """Into how many pieces the connections that both ends hold for open fall."""
        beside: dict[PeerId, set[PeerId]] = {name: set() for name in self.nodes}
        for one, other in self.links:
            if one in beside and other in beside:
                beside[one].add(other)
                beside[other].add(one)
        left, pieces = set(self.nodes), 0
        while left:
            pieces, fresh = pieces + 1, {left.pop()}
            while fresh:
                fresh = set().union(*(beside[name] for name in fresh)) & left
                left -= fresh
        return pieces

    def settled(self) -> bool:
        """Whether everybody sees everybody, and is connected to whom it wants, as is each to it."""
        everybody = set(self.nodes)
        for name, node in self.nodes.items():
            members = node.members
            if members.present != everybody - {name}:
                return False
            wanted = members.present if members.neighbours.whole else members.neighbours.wanted
            if not all(self.linked(name, other) for other in wanted):
                return False
        return True
