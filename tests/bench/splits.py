"""How others split a model, written anew from their descriptions: baselines for placement, on the same costs.

Each takes the costs and returns stages in order. They know what their originals know: memory, or floating-point speed,
or who serves what already; not what a decoding step takes on the device, which memory's bandwidth decides.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lepton.node.placement.blocks import Stages
from lepton.node.placement.costs import NEVER, Costs


@dataclass(frozen=True, slots=True)
class Cluster:
    """A drawn cluster: costs, and what the baselines go by."""

    costs: Costs
    memory: Sequence[int]
    flops: Sequence[float]


Split = Callable[[Cluster, random.Random], Stages]


def exo(cluster: Cluster, _rng: random.Random) -> Stages:
    """Every device in a ring, with layers in proportion to its memory (exo's RingMemoryWeightedPartitioning)."""
    order = sorted(range(len(cluster.memory)), key=lambda device: -cluster.memory[device])
    return _shares(cluster, order, [float(cluster.memory[device]) for device in order])


def cake(cluster: Cluster, _rng: random.Random) -> Stages:
    """Every device, with layers in proportion to its floating-point speed."""
    order = sorted(range(len(cluster.flops)), key=lambda device: -cluster.flops[device])
    return _shares(cluster, order, [cluster.flops[device] for device in order])


def parallax(cluster: Cluster, _rng: random.Random) -> Stages:
    """The fewest devices that hold the model, the largest first; layers as water fills vessels, by their speed."""
    order = sorted(range(len(cluster.memory)), key=lambda device: -cluster.memory[device])
    for count in range(1, len(order) + 1):
        chosen = order[:count]
        stages = _shares(cluster, chosen, [cluster.flops[device] for device in chosen])
        if stages:
            return stages
    return []


def _shares(cluster: Cluster, order: Sequence[int], weights: Sequence[float]) -> Stages:
    """Give out layers to whoever is farthest below its share, never beyond memory; nothing if that does not fit."""
    costs, layers = cluster.costs, cluster.costs.layers
    counts = [0] * len(order)
    for _ in range(layers):
        able = [at for at, device in enumerate(order) if counts[at] < _room(costs, device)]
        if not able:
            return []
        counts[min(able, key=lambda at: (counts[at] + 1) / weights[at])] += 1
    ends = list(itertools.accumulate(counts, initial=0))
    stages = [(device, (a, b)) for device, (a, b) in zip(order, itertools.pairwise(ends), strict=True) if a < b]
    return stages if all(costs.run[device, a, b] < NEVER for device, (a, b) in stages) else []


def _room(costs: Costs, device: int) -> int:
    """Most layers that a device holds wherever they are: as these planners count."""
    return max((n for n in range(1, costs.layers + 1) if _fits_all(costs, device, n)), default=0)


def _fits_all(costs: Costs, device: int, count: int) -> bool:
    return all(costs.run[device, a, a + count] < NEVER for a in range(costs.layers - count + 1))


def petals(cluster: Cluster, rng: random.Random) -> list[tuple[int, tuple[int, int]]]:
    """Return what servers hold: as they come, each fills its memory where the swarm is slowest (Petals' greedy)."""
    costs, layers = cluster.costs, cluster.costs.layers
    rates = [0.0] * layers
    held = []
    for device in rng.sample(range(costs.devices), costs.devices):
        room = _room(costs, device)
        if not room:
            continue
        start = min(range(layers - room + 1), key=lambda first: (sorted(rates[first : first + room]), first))
        held.append((device, (start, start + room)))
        for layer in range(start, start + room):
            rates[layer] += 1e9 / int(costs.run[device, start, start + room])
    return held


def petals_latency(cluster: Cluster, held: Sequence[tuple[int, tuple[int, int]]]) -> int:
    """Return the quickest way that an asker finds through servers, each of which may run any part of what it holds."""
    costs = cluster.costs
    queue: list[tuple[int, int, int]] = [(0, 0, -1)]
    seen: set[tuple[int, int]] = set()
    while queue:
        took, layer, last = heapq.heappop(queue)
        if layer == costs.layers:
            return took
        if (layer, last) in seen:
            continue
        seen.add((layer, last))
        for device, (first, end) in held:
            if first <= layer < end and device != last:
                for stop in range(layer + 1, end + 1):
                    hop = int(costs.hop[last, device]) if last >= 0 else int(costs.back[0, -1])
                    heapq.heappush(queue, (took + hop + int(costs.run[device, layer, stop]), stop, device))
    return NEVER


def petals_pace(cluster: Cluster, held: Sequence[tuple[int, tuple[int, int]]]) -> float:
    """Return the pace of the slowest layer, all servers that hold it together."""
    costs = cluster.costs
    rates = [0.0] * costs.layers
    for device, (first, end) in held:
        for layer in range(first, end):
            rates[layer] += 1 / (int(costs.run[device, first, end]) + costs.software)
    return 1 / min(rates) if min(rates) > 0 else float(NEVER)
