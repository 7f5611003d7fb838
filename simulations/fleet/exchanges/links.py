"""Who hears whom in a round on a graph, and with what weight: a mixing matrix without its diagonal, as a list.

Weights are Metropolis' (`gossip/graphs.py`): with everybody here and nothing lost, a matrix is doubly stochastic. What
is missing to 1 in a row is one's own weight, so a neighbour that is away or not heard leaves its weight to oneself.

`ring`, `regular`, `exponential` and `hypercube` are graphs of all nodes, whose links stay where they are when somebody
is away; `epidemic` is drawn anew in each round, of those who are here. Links of all but `exponential` go both ways.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .ranks import Rows

Flags = npt.NDArray[np.bool_]

SWAPS_MAX = 200  # rounds of mending a drawn graph; a handful do, unless almost everybody is linked with everybody


@dataclass(frozen=True, slots=True)
class Links:
    """Node ``to[e]`` hears node ``of[e]`` with weight ``weight[e]``; (E,) each."""

    to: Rows
    of: Rows
    weight: npt.NDArray[np.float64]

    def only(self, kept: Flags) -> "Links":
        """Return those of them that are ``kept``, (E,)."""
        return Links(self.to[kept], self.of[kept], self.weight[kept])


Draw = Callable[[int, Flags, np.random.Generator], Links]
"""From the round, who is here (N,), and dice for this round alone."""


def undirected(nodes: int, one: Rows, other: Rows) -> Links:
    """Return links both ways between ``one[e]`` and ``other[e]``, each given once, with Metropolis' weights."""
    to, of = np.concatenate([one, other]), np.concatenate([other, one])
    degrees = np.bincount(to, minlength=nodes)
    return Links(to, of, 1.0 / (1.0 + np.maximum(degrees[to], degrees[of])))


def ring(nodes: int) -> Draw:
    """Link each node with the one before and the one after it."""
    rows = np.arange(nodes)
    pairs = np.unique(np.sort(np.stack([rows, (rows + 1) % nodes], 1), axis=1), axis=0)
    links = undirected(nodes, *pairs[pairs[:, 0] != pairs[:, 1]].T)
    return lambda _round, _here, _dice: links


def regular(nodes: int, degree: int, seed: int) -> Draw:
    """Link each node with ``degree`` others, drawn once."""
    links = undirected(nodes, *random_regular(nodes, degree, np.random.default_rng(seed)).T)
    return lambda _round, _here, _dice: links


def epidemic(nodes: int, degree: int) -> Draw:
    """Link each node that is here with ``degree`` others, drawn anew in each round (de Vos et al. 2023)."""

    def draw(_round: int, here: Flags, dice: np.random.Generator) -> Links:
        rows = np.flatnonzero(here)
        return undirected(nodes, *rows[random_regular(len(rows), degree, dice)].T)

    return draw


def exponential(nodes: int) -> Draw:
    """Let each node hear the one 2^(r mod ceil(log2 n)) places before it (Ying et al. 2021); both count half."""
    rows = np.arange(nodes)
    hops = max(1, (nodes - 1).bit_length())

    def draw(round_: int, _here: Flags, _dice: np.random.Generator) -> Links:
        of = (rows - 2 ** (round_ % hops)) % nodes
        return Links(rows, of, np.full(nodes, 0.5)).only(of != rows)

    return draw


def hypercube(nodes: int) -> Draw:
    """Pair each node with the one whose number differs in one bit, the next bit in each round; both count half.

    Where the number of nodes is no power of two, who has no partner in a round is alone in it.
    """
    rows = np.arange(nodes)
    bits = max(1, (nodes - 1).bit_length())

    def draw(round_: int, _here: Flags, _dice: np.random.Generator) -> Links:
        of = rows ^ (1 << (round_ % bits))
        there = of < nodes
        return Links(rows[there], of[there], np.full(int(there.sum()), 0.5))

    return draw


def random_regular(nodes: int, degree: int, dice: np.random.Generator) -> Rows:
    """Draw a graph in which all have ``degree`` neighbours: pairs (E, 2), none twice, none with itself.

    Ends of links are paired at random, and links that cannot be swap ends with others until all can (the configuration
    model, mended). All are linked with all where there are too few others; where ends are odd in number, or a few links
    could not be mended, some nodes have a neighbour less.
    """
    if degree >= nodes - 1:
        return np.stack(np.triu_indices(nodes, 1), 1)
    ends = dice.permutation(np.repeat(np.arange(nodes), degree))
    pairs = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    for _ in range(SWAPS_MAX):
        bad = np.flatnonzero(_is_bad(pairs, nodes))
        if not len(bad):
            return pairs
        for one, other in zip(bad, dice.integers(0, len(pairs), len(bad)), strict=True):
            pairs[one, 1], pairs[other, 1] = pairs[other, 1], pairs[one, 1]
    return pairs[~_is_bad(pairs, nodes)]


def _is_bad(pairs: Rows, nodes: int) -> Flags:  # (E, 2) -> (E,)
    low, high = pairs.min(1), pairs.max(1)
    _, first = np.unique(low * nodes + high, return_index=True)
    repeated = np.ones(len(pairs), dtype=np.bool_)
    repeated[first] = False
    bad: Flags = repeated | (low == high)
    return bad
