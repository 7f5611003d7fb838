"""Many liveness machines on virtual time, with links that lose, delay and double what they carry, and nothing else."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable

from lepton.mesh.identity import SIGNATURE_BYTES, PeerId
from lepton.mesh.liveness import Config, Died, Effect, Event, Heard, Liveness, Message, Send
from lepton.mesh.membership import Connected, Disconnected, Expired
from lepton.mesh.rumours import Rumours, Statement


class Unsigned:
    """Statements that cost no elliptic curve; signatures are tried elsewhere."""

    def __init__(self, me: PeerId) -> None:
        self._me = me

    def state(self, incarnation: int) -> Statement:
        return Statement(peer=self._me, incarnation=incarnation, signature=bytes(SIGNATURE_BYTES))

    def check(self, statement: Statement) -> None:
        """Believe it."""


def called(number: int) -> PeerId:
    """A name as long as a real one."""
    return PeerId(f"{number:052}")


class Swarm:
    """Machines, links and time. All know each other; who is connected is for the test to say."""

    def __init__(
        self,
        nodes: int,
        *,
        seed: int = 1,
        loss: float = 0.0,
        duplication: float = 0.0,
        latency_s: tuple[float, float] = (0.001, 0.005),
        config: Config | None = None,
    ) -> None:
        self.now = 0.0
        self.loss, self.duplication, self.latency_s = loss, duplication, latency_s
        self.dice = random.Random(f"{seed}/{nodes}/{loss}")
        self.names = [called(number) for number in range(nodes)]
        self.watch: Callable[[PeerId, Effect], None] = lambda _name, _effect: None
        self.frozen: dict[PeerId, list[Event]] = {}  # what the kernel keeps for a stopped process
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ticks: dict[PeerId, float] = {}
        self.machines = {name: self._machine(name, seed, config) for name in self.names}

    def _machine(self, name: PeerId, seed: int, config: Config | None) -> Liveness:
        machine = Liveness(
            name, random.Random(f"{seed}/{name}"), Unsigned(name), knows=lambda _peer: True, config=config
        )
        for peer in self.names:
            if peer != name:
                machine._lives.hear_statement(Unsigned(peer).state(0))
        machine._lives._rumours = Rumours()  # everybody joined long ago
        return machine

    def connect(self, pairs: Iterable[tuple[PeerId, PeerId]]) -> None:
        """Open connections, each at some moment of the next second."""
        for one, other in sorted(pairs):
            due_s = self.now + self.dice.random()
            self.at(due_s, lambda a=one, b=other: self.tell(a, Connected(b)))  # type: ignore[misc]
            self.at(due_s, lambda a=one, b=other: self.tell(b, Connected(a)))  # type: ignore[misc]

    def connect_all(self) -> None:
        self.connect(itertools.combinations(self.names, 2))

    def connect_rings(self, rings: int) -> None:
        for _ in range(rings):
            ring = self.dice.sample(self.names, len(self.names))
            self.connect({(min(pair), max(pair)) for pair in zip(ring, ring[1:] + ring[:1], strict=True)})

    # -- time ---------------------------------------------------------------------------------------------------------

    def at(self, due_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (due_s, next(self._order), action))

    def run(self, seconds: float) -> None:
        end_s = self.now + seconds
        while self._queue and self._queue[0][0] <= end_s:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end_s

    def freeze(self, name: PeerId) -> None:
        """Stop a process: it hears and does nothing, and its connections stay open."""
        self.frozen[name] = []

    def thaw(self, name: PeerId) -> None:
        """Let it go on with all that has come meanwhile."""
        for event in [Expired(), *self.frozen.pop(name)]:
            self.tell(name, event)

    def tell(self, name: PeerId, event: Event) -> None:
        if name in self.frozen:
            if not isinstance(event, Expired):
                self.frozen[name].append(event)
            return
        machine = self.machines[name]
        for effect in machine.handle(event, self.now):
            self._carry_out(name, effect)
        due_s = machine.deadline
        if due_s < self._ticks.get(name, float("inf")):
            self._ticks[name] = due_s
            self.at(due_s, lambda: self._tick(name, due_s))

    def _tick(self, name: PeerId, due_s: float) -> None:
        if self._ticks[name] == due_s:
            self._ticks[name] = float("inf")
            self.tell(name, Expired())

    # -- what machines do ---------------------------------------------------------------------------------------------

    def _carry_out(self, name: PeerId, effect: Effect) -> None:
        self.watch(name, effect)
        match effect:
            case Send(peer, message):
                self._send(name, peer, message)
            case Died(peer) if peer in self.machines[name].neighbours:
                self.at(self.now, lambda: self.tell(name, Disconnected(peer)))

    def _send(self, name: PeerId, peer: PeerId, message: Message) -> None:
        if self.dice.random() < self.loss:
            return
        for _ in range(1 + (self.dice.random() < self.duplication)):
            self.at(self.now + self.dice.uniform(*self.latency_s), lambda: self.tell(peer, Heard(name, message)))
