"""How soon a death is noticed and how often one is imagined: many liveness machines on virtual time, nothing else.

Run ``python -m tests.bench.detection`` (JSON=FILE writes the figures; NODES and LOSS choose rows, as in ``NODES=5,50
LOSS=0.05``). Every message is lost on its own with the given probability and not repeated, which is harder than TCP,
under which loss is delay. Up to 50 nodes all are connected; 1,000 have ten neighbours each, on five random rings. The
nodes that die keep their connections open, as a process does that is stopped: silence is all that tells.

In the table *suspected* is the time from a death to the first suspicion, *first*, *all* to the first and last node
that holds it for dead, *known* is over all pairs of a dead node and one that lives. *false* counts the times that
anybody held a living node for dead, for each hour of each node.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lepton.mesh.identity import SIGNATURE_BYTES, PeerId
from lepton.mesh.liveness import Config, Died, Effect, Event, Heard, Liveness, Send, Suspected
from lepton.mesh.membership import Connected, Expired
from lepton.mesh.messages import pack
from lepton.mesh.rumours import Rumours, Statement

NODES = (5, 50, 1000)
LOSSES = (0.0, 0.01, 0.05, 0.1)
LATENCY_S = (0.001, 0.005)  # one way, evenly between: a LAN with some Wi-Fi
WHOLE_MOST, RINGS = 50, 5  # as mesh/pace.py has it
WARM_S = 20.0
CALL_BYTES = 40  # a call's own header and the sealing, for each message


class Unsigned:
    """Statements that cost no elliptic curve: signatures are tried elsewhere."""

    def __init__(self, me: PeerId) -> None:
        self._me = me

    def state(self, incarnation: int) -> Statement:
        return Statement(peer=self._me, incarnation=incarnation, signature=bytes(SIGNATURE_BYTES))

    def check(self, statement: Statement) -> None:
        """Believe it."""


@dataclass(slots=True)
class Death:
    """One node that was stopped, and when others noticed."""

    at_s: float
    suspected_s: float = 0.0
    known_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """What a run was seen to do."""

    messages: int = 0
    bytes: int = 0
    false_deaths: int = 0
    false_suspicions: int = 0


class Swarm:
    """Machines, the links between them, and virtual time."""

    def __init__(self, nodes: int, loss: float, *, seed: int = 1, config: Config | None = None) -> None:
        self.now = 0.0
        self.counts = Counts()
        self.deaths: dict[PeerId, Death] = {}
        self._loss, self._dice = loss, random.Random(f"{seed}/{nodes}/{loss}")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ticks: dict[PeerId, float] = {}
        self.names = [PeerId(f"{index:052}") for index in range(nodes)]  # as long as a real one
        self.machines = {
            name: Liveness(
                name, random.Random(f"{seed}/{name}"), Unsigned(name), knows=lambda _peer: True, config=config
            )
            for name in self.names
        }
        for name, machine in self.machines.items():
            for statement in (Unsigned(peer).state(0) for peer in self.names if peer != name):
                machine._lives.hear_statement(statement)
            machine._lives._rumours = Rumours()  # everybody joined long ago
        for one, other in sorted(self._links()):
            self._at(self._dice.random(), lambda a=one, b=other: self._connect(a, b))  # type: ignore[misc]

    def _links(self) -> set[tuple[PeerId, PeerId]]:
        if len(self.names) <= WHOLE_MOST:
            return set(itertools.combinations(self.names, 2))
        links = set()
        for _ in range(RINGS):
            ring = self._dice.sample(self.names, len(self.names))
            links |= {(min(pair), max(pair)) for pair in zip(ring, ring[1:] + ring[:1], strict=True)}
        return links

    def _connect(self, one: PeerId, other: PeerId) -> None:
        self.tell(one, Connected(other))
        self.tell(other, Connected(one))

    def _at(self, due_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (due_s, next(self._order), action))

    def run(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until_s

    def kill(self, name: PeerId) -> None:
        """Stop a node."""
        self.deaths[name] = Death(self.now)

    def tell(self, name: PeerId, event: Event) -> None:
        if name in self.deaths:
            return
        machine = self.machines[name]
        for effect in machine.handle(event, self.now):
            self._do(name, effect)
        due_s = machine.deadline
        if due_s < self._ticks.get(name, float("inf")):
            self._ticks[name] = due_s
            self._at(due_s, lambda: self._tick(name, due_s))

    def _tick(self, name: PeerId, due_s: float) -> None:
        if self._ticks[name] == due_s:
            self._ticks[name] = float("inf")
            self.tell(name, Expired())

    def _do(self, name: PeerId, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                self.counts.messages += 1
                self.counts.bytes += size_bytes(message)
                if self._dice.random() >= self._loss:
                    self._at(self.now + self._dice.uniform(*LATENCY_S), lambda: self.tell(peer, Heard(name, message)))
            case Suspected(peer):
                if peer not in self.deaths:
                    self.counts.false_suspicions += 1
                elif not self.deaths[peer].suspected_s:
                    self.deaths[peer].suspected_s = self.now - self.deaths[peer].at_s
            case Died(peer):
                if peer in self.deaths:
                    self.deaths[peer].known_s.append(self.now - self.deaths[peer].at_s)
                else:
                    self.counts.false_deaths += 1


_SAMPLE = Statement(peer=PeerId("0" * 52), incarnation=1, signature=bytes(SIGNATURE_BYTES))
_RUMOUR_BYTES = len(pack(_SAMPLE)) + 4


def size_bytes(message: object) -> int:
    """About what a message takes on the wire; packing each would take longer than all else."""
    rumours = len(message.statements) + len(message.doubts)  # type: ignore[attr-defined]
    return CALL_BYTES + 110 + rumours * _RUMOUR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of so many nodes at one loss. Times in virtual seconds."""

    nodes: int
    loss: float
    deaths: int
    suspected_p50_s: float
    suspected_p99_s: float
    first_p50_s: float
    first_p99_s: float
    all_p50_s: float
    all_p99_s: float
    known_p50_s: float
    known_p99_s: float
    unnoticed: int
    node_hours: float
    false_suspicions: float
    false_positives: float
    messages_per_node_s: float
    bytes_per_node_s: float


def measure(nodes: int, loss: float, *, calm_s: float, deaths: int, seed: int = 1, config: Config | None = None) -> Row:
    """Let a swarm live for ``calm_s`` and count, then kill some, one after the other, in as many swarms as that takes.

    A swarm loses at most a tenth of its nodes, and at least one.
    """
    swarm = Swarm(nodes, loss, seed=seed, config=config)
    swarm.run(WARM_S)
    swarm.counts = Counts()
    swarm.run(WARM_S + calm_s)
    calm, swarm.counts = swarm.counts, Counts()
    hours = nodes * calm_s / 3600
    found: list[Death] = []
    pairs = 0
    for again in itertools.count(1):
        dice = random.Random(f"{seed}/{again}")
        victims = dice.sample(swarm.names, min(max(nodes // 10, 1), deaths - len(found)))
        for victim in victims:
            swarm.run(swarm.now + dice.uniform(1.0, 3.0))
            swarm.kill(victim)
        swarm.run(swarm.now + 60.0)
        found += swarm.deaths.values()
        pairs += len(victims) * (nodes - len(victims))
        if len(found) >= deaths:
            break
        swarm = Swarm(nodes, loss, seed=seed + 1000 * again, config=config)
        swarm.run(WARM_S)
    known = [seconds for death in found for seconds in death.known_s]
    firsts = [min(death.known_s) for death in found if death.known_s]
    lasts = [max(death.known_s) for death in found if death.known_s]
    suspected = [death.suspected_s for death in found]
    return Row(
        nodes=nodes,
        loss=loss,
        deaths=len(found),
        suspected_p50_s=percentile(suspected, 50),
        suspected_p99_s=percentile(suspected, 99),
        first_p50_s=percentile(firsts, 50),
        first_p99_s=percentile(firsts, 99),
        all_p50_s=percentile(lasts, 50),
        all_p99_s=percentile(lasts, 99),
        known_p50_s=percentile(known, 50),
        known_p99_s=percentile(known, 99),
        unnoticed=pairs - len(known),
        node_hours=hours,
        false_suspicions=calm.false_suspicions / hours,
        false_positives=calm.false_deaths / hours,
        messages_per_node_s=calm.messages / nodes / calm_s,
        bytes_per_node_s=calm.bytes / nodes / calm_s,
    )


def percentile(values: Sequence[float], per_cent: int) -> float:
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) * per_cent // 100, len(ordered) - 1)]
