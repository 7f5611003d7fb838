"""Pulling, all nodes at once: the machine `gossip/pull.py`, mixed plainly or as the policy `robust` does.

As deployed: each node asks k others at random, whoever is here; they answer with their models, rounded once a round. A
lost question or answer is not repeated, and leaves one model fewer. `robust` is `gossip/robust.py`; `trusted` takes the
plain mean of what came and one's own, which no machine does: it shows what `robust` is for.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.robust import BAD_SHARE_MAX, MODELS_MIN
from ..exchange import Mixed, Moment
from . import traffic
from .ranks import Rows
from .rounding import Rounding
from .scratch import Scratch

Flags = npt.NDArray[np.bool_]

BLOCK_ELEMENTS = 1 << 20  # of pulled models at once
MANY = 4  # with fewer than so many times k to choose from, one shuffles them all


@dataclass(frozen=True, slots=True)
class Pulled:
    """Exchanges in which each of N nodes pulls ``peers`` models."""

    rounding: Rounding
    peers: int
    robust: bool
    scratch: Scratch = field(default_factory=Scratch)

    def mix(self, moment: Moment) -> Mixed:
        """Mix; ``moment.after`` becomes the result."""
        nodes, dimension = moment.after.shape
        rows = np.flatnonzero(moment.here & torch.isfinite(moment.after.sum(1)).numpy())
        asked = rows[choose(len(rows), self.peers, moment.dice)]  # (n, k)
        heard = moment.dice.random(asked.shape) >= moment.loss
        arrived = heard & (moment.dice.random(asked.shape) >= moment.loss)
        counted = np.ones(nodes, dtype=np.int64)
        if asked.size:
            offered = self.scratch.take("offered", nodes, dimension).copy_(moment.after)
            self.rounding.through(offered, moment.dice)
            counted[rows] += self._mix_rows(moment.after, offered, rows, asked, arrived)
        away = torch.from_numpy(np.flatnonzero(~moment.here))
        moment.after[away] = moment.before[away]
        question, answer = traffic.of_pull(dimension, self.rounding)
        sent = answer * np.bincount(asked[heard], minlength=nodes)
        received = question * np.bincount(asked[heard], minlength=nodes)
        sent[rows] += question * asked.shape[1]
        received[rows] += answer * arrived.sum(1)
        return Mixed(models=moment.after, bytes_sent=sent, bytes_received=received, hops=2, averaged=counted)

    def _mix_rows(self, models: Tensor, offered: Tensor, rows: Rows, asked: Rows, arrived: Flags) -> Rows:
        """Mix what was offered into the models of ``rows``; return how many of others each has counted, (n,)."""
        counted = np.zeros(len(rows), dtype=np.int64)
        at_once = max(1, BLOCK_ELEMENTS // (asked.shape[1] * models.shape[1]))
        shares_of = nearest_clipped if self.robust else plain
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            own = torch.from_numpy(rows[part])
            flat = self.scratch.take("pulled", asked[part].size, models.shape[1])
            torch.index_select(offered, 0, torch.from_numpy(asked[part].reshape(-1)), out=flat)
            apart = flat.view(*asked[part].shape, -1)
            mine = models[own]
            apart.sub_(mine.unsqueeze(1))
            shares = shares_of(torch.linalg.vector_norm(apart, dim=2), torch.from_numpy(arrived[part]))
            models[own] = mine + torch.bmm(shares.unsqueeze(1), apart).squeeze(1)
            counted[part] = (shares > 0).sum(1).numpy()
        return counted


def choose(count: int, k: int, dice: np.random.Generator) -> Rows:
    """Return k of the others for each of ``count``, or all if there are fewer: sorted numbers (count, k)."""
    k = min(k, count - 1)
    if k < 1:
        return np.zeros((count, 0), dtype=np.int64)
    if count <= MANY * k:
        chosen = np.argsort(dice.random((count, count - 1)), axis=1)[:, :k]
    else:
        chosen = np.sort(dice.integers(0, count - 1, (count, k)), axis=1)
        while len(twice := np.flatnonzero((np.diff(chosen, axis=1) == 0).any(1))):
            chosen[twice] = np.sort(dice.integers(0, count - 1, (len(twice), k)), axis=1)
    chosen = np.sort(chosen, axis=1)
    return chosen + (chosen >= np.arange(count)[:, None])


def plain(distances: Tensor, arrived: Tensor) -> Tensor:
    """Return the shares of a mean with oneself, (n, k)."""
    return (arrived / (1 + arrived.sum(1, keepdim=True))).to(distances.dtype)


def nearest_clipped(distances: Tensor, arrived: Tensor) -> Tensor:
    """Return with what each pulled model's difference to one's own counts, (n, k): `gossip/robust.py`.

    ``distances`` are to one's own model, ``arrived`` says which of them came.
    """
    far = torch.where(arrived, distances, torch.inf)
    ranked, order = far.sort(dim=1, stable=True)  # of two at the same distance the first by name is the nearer one
    came = arrived.sum(1, keepdim=True)
    kept = came - torch.ceil(BAD_SHARE_MAX * came).long()
    radius = ranked.gather(1, (kept - 1).clamp(min=0) // 2)
    factors = torch.where(ranked > 0, radius / ranked, 1.0).clamp(max=1.0)
    within = (torch.arange(far.shape[1]) < kept) & (came >= MODELS_MIN)
    shares = torch.where(within, factors / (kept + 1), 0.0)
    return torch.zeros_like(far).scatter_(1, order, shares)
