"""How soon a death is noticed and how often one is imagined: many liveness machines on virtual time, nothing else.

Run ``python -m tests.bench.detection`` from the root of the project (JSON=FILE writes the figures; ``NODES=5,50
LOSS=0.05`` chooses rows). Every message is lost on its own with the given probability and not repeated, which is harder
than TCP, under which loss is delay. Up to 50 nodes all are connected; 1,000 have ten neighbours each, on five random
rings. Who dies keeps its connections open, as a process does that is stopped: silence is all that tells.

In the table *suspected* is the time from a death to the first suspicion, *first* and *last* that to the first and the
last node that holds it for dead, *each* is over all pairs of a dead node and one that lives. Wrongly *dead* and
*doubted* count how often anybody held a living node for that, for each hour of each node.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lepton.mesh.identity import PeerId
from lepton.mesh.liveness import Config, Died, Effect, Message, Send, Suspected
from lepton.mesh.messages import encoded
from lepton.mesh.rumours import Probe

from ..mesh.swarm import Swarm, Unsigned, called

NODES = (5, 50, 1000)
LOSSES = (0.0, 0.01, 0.05, 0.1)
RINGS = 5  # beyond 50 nodes, as in mesh/pace.py
CALM_S = {5: 7200.0, 50: 720.0}  # virtual; ten node hours
CALM_LARGE_S = 36.0
DEATHS = {5: 30, 50: 30}
DEATHS_LARGE = 20
WARM_S = 20.0
NOTICED_S = 60.0  # long after the slowest should have noticed
CALL_BYTES = 60  # the call's own header, the muxer's and the sealing, for each message

_STATEMENT = Unsigned(called(0)).state(1)
_RUMOUR_BYTES = len(encoded(_STATEMENT)) + 1
_PROBE_BYTES = len(encoded(Probe(number=1, incarnation=1, signature=_STATEMENT.signature)))


def size_bytes(message: Message) -> int:
    """About what a message takes on the wire; packing each would take longer than all else."""
    return CALL_BYTES + _PROBE_BYTES + _RUMOUR_BYTES * (len(message.statements) + len(message.doubts))


@dataclass(slots=True)
class Death:
    """When a node died, and how much later others noticed."""

    at_s: float
    suspected_s: float = math.inf
    known_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Count:
    """What the nodes of one swarm were seen to do."""

    swarm: Swarm
    messages: int = 0
    bytes: int = 0
    wrongly_dead: int = 0
    wrongly_doubted: int = 0
    deaths: dict[PeerId, Death] = field(default_factory=dict)

    def take(self, _name: PeerId, effect: Effect) -> None:
        now = self.swarm.now
        match effect:
            case Send(_, message):
                self.messages += 1
                self.bytes += size_bytes(message)
            case Suspected(peer) if peer in self.deaths:
                self.deaths[peer].suspected_s = min(self.deaths[peer].suspected_s, now - self.deaths[peer].at_s)
            case Died(peer) if peer in self.deaths:
                self.deaths[peer].known_s.append(now - self.deaths[peer].at_s)
            case Suspected():
                self.wrongly_doubted += 1
            case Died():
                self.wrongly_dead += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of so many nodes at one loss. Times in virtual seconds, pairs are the median and 99 %."""

    nodes: int
    loss: float
    suspected_s: tuple[float, float]
    first_s: tuple[float, float]
    last_s: tuple[float, float]
    each_s: tuple[float, float]
    node_hours: float
    dead_per_node_hour: float
    doubted_per_node_hour: float
    messages_per_node_s: float
    bytes_per_node_s: float


def swarm_of(nodes: int, loss: float, seed: int, config: Config | None = None) -> Swarm:
    swarm = Swarm(nodes, seed=seed, loss=loss, config=config)
    if nodes <= 50:
        swarm.connect_all()
    else:
        swarm.connect_rings(RINGS)
    swarm.run(WARM_S)
    return swarm


def measure(nodes: int, loss: float, *, seed: int = 1, config: Config | None = None) -> Row:
    """Watch a swarm in peace, then kill some of its nodes, a tenth of a swarm at most, in as many as that takes."""
    calm_s = CALM_S.get(nodes, CALM_LARGE_S)
    swarm = swarm_of(nodes, loss, seed, config)
    calm = Count(swarm)
    swarm.watch = calm.take
    swarm.run(calm_s)
    deaths: list[Death] = []
    wanted = DEATHS.get(nodes, DEATHS_LARGE)
    while True:
        deaths += _kill(swarm, min(max(nodes // 10, 1), wanted - len(deaths)))
        if len(deaths) >= wanted:
            break
        swarm = swarm_of(nodes, loss, seed + len(deaths), config)
    hours = nodes * calm_s / 3600
    return Row(
        nodes=nodes,
        loss=loss,
        suspected_s=_middle_and_most([death.suspected_s for death in deaths]),
        first_s=_middle_and_most([min(death.known_s) for death in deaths]),
        last_s=_middle_and_most([max(death.known_s) for death in deaths]),
        each_s=_middle_and_most([seconds for death in deaths for seconds in death.known_s]),
        node_hours=hours,
        dead_per_node_hour=calm.wrongly_dead / hours,
        doubted_per_node_hour=calm.wrongly_doubted / hours,
        messages_per_node_s=calm.messages / nodes / calm_s,
        bytes_per_node_s=calm.bytes / nodes / calm_s,
    )


def _kill(swarm: Swarm, count: int) -> list[Death]:
    """Kill some, seconds apart; who lives has a minute to notice, else it counts as never."""
    noticed = Count(swarm)
    swarm.watch = noticed.take
    victims = swarm.dice.sample(swarm.names, count)
    for victim in victims:
        swarm.run(swarm.dice.uniform(1.0, 3.0))
        swarm.freeze(victim)
        noticed.deaths[victim] = Death(swarm.now)
    swarm.run(NOTICED_S)
    for victim in victims:
        death = noticed.deaths[victim]
        blind = [name for name in swarm.names if name not in victims and victim in swarm.machines[name].alive]
        death.known_s += [math.inf] * len(blind)
    return list(noticed.deaths.values())


def _middle_and_most(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]


def table(nodes: Sequence[int] = NODES, losses: Sequence[float] = LOSSES) -> list[Row]:
    """Measure every combination, and print a line for each as it comes."""
    print("\nsimulated nodes, loss of single messages; virtual seconds, median and 99 %:")  # noqa: T201
    print(  # noqa: T201
        f"{'nodes':>6}{'loss':>6}{'suspected':>14}{'first':>14}{'last':>14}{'each':>14}"
        f"{'dead/h':>9}{'doubted/h':>11}{'of h':>6}{'messages/s':>12}{'B/s':>7}"
    )
    rows = []
    for count in nodes:
        for loss in losses:
            row = measure(count, loss)
            rows.append(row)
            times = "".join(
                f"{middle:7.1f}{most:7.1f}" for middle, most in (row.suspected_s, row.first_s, row.last_s, row.each_s)
            )
            print(  # noqa: T201
                f"{row.nodes:6}{row.loss:6.0%}{times}{row.dead_per_node_hour:9.3f}{row.doubted_per_node_hour:11.2f}"
                f"{row.node_hours:6.0f}{row.messages_per_node_s:12.1f}{row.bytes_per_node_s:7.0f}",
                flush=True,
            )
    return rows


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return the figures by name, as they go into JSON; false positives are those of each node and hour."""
    found = {}
    for row in rows:
        name = f"sim{row.nodes}_loss{row.loss:.0%}".rstrip("%")
        found[f"detect_p99_s_{name}"] = row.each_s[1]
        found[f"false_positives_{name}"] = row.dead_per_node_hour
    return found


def detection() -> dict[str, float]:
    """Print the table and return its figures."""
    nodes = tuple(int(count) for count in os.environ.get("NODES", ",".join(map(str, NODES))).split(","))
    losses = tuple(float(loss) for loss in os.environ.get("LOSS", ",".join(map(str, LOSSES))).split(","))
    return figures(table(nodes, losses))


if __name__ == "__main__":
    measured = {key: round(value, 3) for key, value in detection().items()}
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(measured, indent=1) + "\n")
