"""Where a program is cut into layers: between operations with weights, where the fewest bytes are alive. Pure."""

import itertools
from collections.abc import Mapping
from typing import Final

from ...mesh.limits import BODY_BYTES_MAX, BUFFERS_MAX
from .program import LAYERS_MAX, Program, used
from .weights import weight_bytes

_LIVE_BYTES_MAX: Final = BODY_BYTES_MAX  # of one sample between two stages: what one message carries


def cuts_of(program: Program, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Between every two operations with weights, cut where the fewest bytes are alive; then join the smallest layers.

    A place where something is alive that cannot travel (a result of several parts), or too much of it, is none. Nor is
    one between two operations with the same weight, such as the steps of a recurrent layer: both sides would hold it.
    """
    alive = _alive(program, sizes)
    # A scale or a bias alone is no layer: it stays with the product before it.
    large = {name for name, weight in program.tensors.items() if len(weight.shape) > 1}
    heavy = [(index, found) for index, node in enumerate(program.nodes) if (found := large.intersection(used(node)))]
    cuts: list[int] = []
    for (before, mine), (after, its) in itertools.pairwise(heavy):
        if not mine.isdisjoint(its):
            continue
        possible = [(alive[place], place) for place in range(before + 1, after + 1) if place in alive]
        if possible:
            cuts.append(min(possible)[1])
    return _joined(program, cuts)


def _alive(program: Program, sizes: Mapping[str, int]) -> dict[int, int]:
    """For each place before a node the bytes alive there, where they can travel."""
    last: dict[str, int] = dict.fromkeys(program.outputs, len(program.nodes))
    for index in range(len(program.nodes) - 1, -1, -1):
        for name in used(program.nodes[index]):
            last.setdefault(name, index)
    travels = dict.fromkeys(program.inputs, True) | {n.name: n.value is not None for n in program.nodes}
    places, live = {}, {name for name in program.inputs if name in last}
    for index, node in enumerate(program.nodes):
        live = {name for name in live if last[name] >= index}
        total = sum(sizes[name] for name in live)
        if len(live) <= BUFFERS_MAX and all(travels[name] for name in live) and total <= _LIVE_BYTES_MAX:
            places[index] = total
        if node.name in last:
            live.add(node.name)
    return places


def _joined(program: Program, cuts: list[int]) -> tuple[int, ...]:
    def layer_bytes(start: int, stop: int) -> int:
        names = {name for node in program.nodes[start:stop] for name in used(node) if name in program.tensors}
        return sum(weight_bytes(program.tensors[name]) for name in names)

    while len(cuts) > LAYERS_MAX - 1:
        edges = [0, *cuts, len(program.nodes)]
        pairs = [(layer_bytes(edges[i - 1], edges[i + 1]), edges[i]) for i in range(1, len(edges) - 1)]
        cuts.remove(min(pairs)[1])
    return tuple(cuts)
