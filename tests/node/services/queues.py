"""Callers, links and replicas with queues, on virtual time: what a way to choose does to the time of calls.

Work comes as a Poisson stream to each caller and takes an exponential time, so that queues are what they are in
textbooks; a replica tells its load with each answer, as hosts do.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lepton.mesh.identity import PeerId
from lepton.node.services.calling.balancer import Attempt, Balancer, Replica
from lepton.node.services.messages import Load
from lepton.node.services.spec import MethodBrief

METHOD = MethodBrief(name="work")


class Chooser(Protocol):
    """One caller's way to choose."""

    def choose(self, replicas: Sequence[Replica], now: float) -> tuple[Replica, Attempt | None]: ...
    def end(self, attempt: Attempt | None, now: float, load: Load) -> None: ...


class Random:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, replicas: Sequence[Replica], now: float) -> tuple[Replica, Attempt | None]:
        return self._rng.choice(replicas), None

    def end(self, attempt: Attempt | None, now: float, load: Load) -> None: ...


class InTurn(Random):
    def __init__(self, rng: random.Random) -> None:
        self._number = itertools.count(rng.randrange(1000))

    def choose(self, replicas: Sequence[Replica], now: float) -> tuple[Replica, Attempt | None]:
        return replicas[next(self._number) % len(replicas)], None


class Balanced:
    def __init__(self, rng: random.Random) -> None:
        self.balancer = Balancer(rng)

    def choose(self, replicas: Sequence[Replica], now: float) -> tuple[Replica, Attempt | None]:
        if len(self.balancer.replicas) != len(replicas):
            self.balancer.see(replicas, {"1": 100})
        replica = self.balancer.choose(METHOD, now)
        assert replica is not None
        return replica, self.balancer.begin(replica, METHOD, now)

    def end(self, attempt: Attempt | None, now: float, load: Load) -> None:
        assert attempt is not None
        self.balancer.end(attempt, "answered", now, load=load)


@dataclass
class Server:
    """One replica: a queue, one call at once."""

    work_s: float
    link_s: float = 0.001
    lies: bool = False
    busy: bool = False
    queue: deque["Job"] = field(default_factory=deque)
    told_s: float = 0.0
    longest: int = 0


class Job(NamedTuple):
    chooser: Chooser
    attempt: Attempt | None
    began: float
    server: int


@dataclass
class World:
    """Servers and callers; ``play`` returns how long each call took, in the order of their ends."""

    servers: list[Server]
    choosers: list[Chooser]
    rng: random.Random
    now: float = 0.0
    taken: Counter[int] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)

    def play(self, *, calls: int, per_s: float, joins: Callable[[int], Server | None] = lambda _: None) -> list[float]:
        """Let so many calls come at this rate; ``joins`` may add a server before the call of a number."""

        def arrive(number: int) -> None:
            if (server := joins(number)) is not None:
                self.servers.append(server)
            if number + 1 < calls:
                self._in(self.rng.expovariate(per_s), lambda: arrive(number + 1))
            self._ask()

        self._in(0.0, lambda: arrive(0))
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.took

    def _in(self, wait_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + wait_s, next(self._order), what))

    def _ask(self) -> None:
        chooser = self.rng.choice(self.choosers)
        replica, attempt = chooser.choose(self._replicas(), self.now)
        job = Job(chooser, attempt, self.now, int(replica.peer))
        self.taken[job.server] += 1
        self._in(self.servers[job.server].link_s / 2, lambda: self._reach(job))

    def _reach(self, job: Job) -> None:
        server = self.servers[job.server]
        server.queue.append(job)
        server.longest = max(server.longest, len(server.queue) + server.busy)
        if not server.busy:
            self._work(server)

    def _work(self, server: Server) -> None:
        server.busy = True
        job, work_s = server.queue.popleft(), self.rng.expovariate(1 / server.work_s)
        self._in(work_s, lambda: self._done(server, job, work_s))

    def _done(self, server: Server, job: Job, work_s: float) -> None:
        server.busy = False
        if server.queue:
            self._work(server)
        server.told_s += 0.2 * (work_s - server.told_s)
        said = Load(instance=f"i{job.server}", running=int(server.busy), waiting=len(server.queue),
                    service_ms=server.told_s * 1000)  # fmt: skip
        load = Load(instance=f"i{job.server}") if server.lies else said
        self._in(server.link_s / 2, lambda: self._answer(job, load))

    def _answer(self, job: Job, load: Load) -> None:
        self.took.append(self.now - job.began)
        job.chooser.end(job.attempt, self.now, load)

    def _replicas(self) -> list[Replica]:
        return [Replica(PeerId(str(number)), "1", (f"i{number}",)) for number in range(len(self.servers))]


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[int(q * len(values))]


def compared(
    make: Callable[[], list[Server]], *, callers: int, load: float, calls: int = 20_000, seed: int = 0
) -> dict[str, list[float]]:
    """Return the times of calls by random choice, in turn, and by the balancer, at a share of what all can work."""
    found = {}
    kinds: dict[str, Callable[[random.Random], Chooser]] = {"random": Random, "in turn": InTurn, "balanced": Balanced}
    for name, kind in kinds.items():
        rng, servers = random.Random(seed), make()
        world = World(servers, [kind(random.Random(rng.random())) for _ in range(callers)], rng)
        found[name] = world.play(calls=calls, per_s=load * sum(1 / server.work_s for server in servers))
    return found
