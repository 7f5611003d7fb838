"""Gossip on a graph, all nodes at once: the machine `gossip/graph_gossip.py`, as a product with a sparse matrix.

As deployed: a node sends its whole model, once rounded, to all who hear it, and nothing is sent again. The weight of
what is lost goes to oneself, in one direction only, so losses move the mean of all; away nodes do not. The pairs of a
`hypercube` are the exception: they exchange both or not at all (the two-phase commit of the design), and keep it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..exchange import Mixed, Moment
from . import traffic
from .links import Draw, Links
from .ranks import Rows
from .rounding import Rounding

COLUMNS_STEP = 256  # a multiple of each codec's chunks
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Linked:
    """Exchanges over links; ``in_pairs``: between two nodes both ways or not at all."""

    draw: Draw
    rounding: Rounding
    in_pairs: bool = False

    def mix(self, moment: Moment) -> Mixed:
        """Mix; ``moment.after`` becomes the result."""
        nodes, dimension = moment.after.shape
        takes_part = moment.here & torch.isfinite(moment.after.sum(1)).cpu().numpy()
        links = self.draw(moment.round, takes_part, moment.dice)
        links = links.only(takes_part[links.to] & takes_part[links.of])
        sent = np.bincount(links.of, minlength=nodes)
        links = self._arrived(links, moment)
        heard = np.bincount(links.to, minlength=nodes)
        mix_into(moment.after, links, self.rounding, moment.dice)
        away = torch.from_numpy(np.flatnonzero(~moment.here)).to(moment.after.device)
        moment.after[away] = moment.before[away]
        size_bytes = traffic.of_values(dimension, self.rounding)
        return Mixed(
            models=moment.after, bytes_sent=sent * size_bytes, bytes_received=heard * size_bytes, hops=1,
            averaged=1 + heard,
        )  # fmt: skip

    def _arrived(self, links: Links, moment: Moment) -> Links:
        """Lose messages."""
        if not moment.loss:
            return links
        arrived = moment.dice.random(len(links.to)) >= moment.loss
        return links.only(arrived & arrived[_backward(links)] if self.in_pairs else arrived)


def _backward(links: Links) -> Rows:
    """Return where the link the other way is, for links that all go both ways, (E,)."""
    there = np.lexsort((links.of, links.to))
    back = np.lexsort((links.to, links.of))
    found = np.empty_like(there)
    found[there] = back
    return found


def mix_into(models: Tensor, links: Links, rounding: Rounding, dice: np.random.Generator) -> None:
    """Replace (N, D) by the product with the links' matrix; what is heard is rounded, one's own is not."""
    nodes, dimension = models.shape
    own = 1.0 - np.bincount(links.to, weights=links.weight, minlength=nodes)
    keep = torch.from_numpy(own.astype(np.float32)).to(models.device).unsqueeze(1)
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([links.to, links.of])), torch.from_numpy(links.weight.astype(np.float32)),
        (nodes, nodes), device=models.device, check_invariants=False,
    ).coalesce()  # fmt: skip
    at_once = max(1, BLOCK_ELEMENTS // (nodes * COLUMNS_STEP)) * COLUMNS_STEP
    for start in range(0, dimension, at_once):
        columns = models[:, start : start + at_once]
        heard = torch.sparse.mm(matrix, rounding.through(columns.contiguous().clone(), dice))
        torch.addcmul(heard, columns, keep, out=heard)
        columns.copy_(heard)
