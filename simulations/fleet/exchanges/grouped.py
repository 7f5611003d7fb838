"""Random groups that average within themselves, policy `trusted`: the machine `gossip/round.py`, all groups at once.

As deployed: who is away is in nobody's view, so groups are made of those who are here. A message that is lost is sent
again until it has come, so all of a group are in its mean, and a loss costs bytes (`traffic.py`). (Of machines on
virtual time with up to a fifth of messages lost, 1 to 2 % of contributions came too late; that is not modelled.) A node
whose model is not finite takes no part.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.config import Config
from ..exchange import Mixed, Moment
from . import plainly, traffic
from .gates import Gates
from .grouping import Block
from .layout import Layout, layout_of
from .ranks import Ranks, Rows, names_of
from .rounding import Rounding
from .scratch import Scratch

HOPS = 4  # here I am; values; means; I have it all
BLOCK_ELEMENTS = 1 << 19  # of models worked on at once: 2 MB, which stay in cache and need no memory worth naming


class Grouped:
    """Exchanges of N nodes in groups."""

    def __init__(
        self, nodes: int, rounding: Rounding, *, size: int, weighted: bool = True,
        mesh: bytes = b"fleet", task: str = traffic.TASK, config: Config | None = None,
    ) -> None:  # fmt: skip
        """``mesh`` and ``task`` decide, with the round, who is with whom."""
        self.gates = Gates(nodes, config or Config.lan())
        self._ranks, self._rounding = Ranks(mesh, task, names_of(nodes)), rounding
        self._size, self._weighted, self._scratch = size, weighted, Scratch()

    @property
    def memory(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the gates have seen: norms (N, history) and how many of them (N,)."""
        return {"norms": self.gates.history, "seen": self.gates.seen}

    def recall(self, memory: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on with such a memory."""
        self.gates.history[:], self.gates.seen[:] = memory["norms"], memory["seen"]

    def mix(self, moment: Moment) -> Mixed:
        """Average each group; ``moment.after`` becomes the result."""
        members = np.flatnonzero(moment.here & torch.isfinite(moment.after.sum(1)).numpy())
        if not self._weighted:
            moment = replace(moment, weights=np.ones_like(moment.weights))
        sent, received, averaged = (np.zeros(len(moment.here), dtype=np.int64) for _ in range(3))
        averaged += 1
        cuts = self._ranks.groups(moment.round, members, self._size) if len(members) > 1 else ()
        limits = self.gates.limits()  # nobody is in two groups, so they hold for all of the round
        for groups in cuts:
            layout = layout_of(moment.after.shape[1], groups.shape[1], self._rounding.chunk)
            sent[groups], received[groups] = traffic.of_groups(layout, self._rounding, moment.loss)
            left = self._mix_plainly(moment, groups, layout, limits, averaged) if self._rounding.exact else groups
            self._mix(moment, left, layout, limits, averaged)
        away = np.flatnonzero(~moment.here)
        moment.after.numpy()[away] = moment.before.numpy()[away]
        return Mixed(models=moment.after, bytes_sent=sent, bytes_received=received, hops=HOPS, averaged=averaged)

    def _mix_plainly(self, moment: Moment, groups: Rows, layout: Layout, limits: Tensor, averaged: Rows) -> Rows:
        """Average where nobody refuses anything; return the groups that are left."""
        plain, seen = plainly.mix(moment, groups, layout, limits.numpy(), self._scratch)
        rows = groups[plain]
        averaged[rows] = layout.members
        self.gates.settle(rows.reshape(-1), seen[plain].reshape(rows.size, layout.members - 1))
        return groups[~plain]

    def _mix(self, moment: Moment, groups: Rows, layout: Layout, limits: Tensor, averaged: Rows) -> None:
        at_once = max(1, BLOCK_ELEMENTS // (layout.dimension * layout.members))
        for start in range(0, len(groups), at_once):
            rows = groups[start : start + at_once]
            block = Block(moment, rows, layout, self._rounding, limits, self._scratch)
            averaged[rows] = block.mix()
            self.gates.settle(rows.reshape(-1), block.seen())
