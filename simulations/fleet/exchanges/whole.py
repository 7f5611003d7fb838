"""The two ends: the mean of everybody who is here, and nobody's but one's own.

`complete` is what the others are compared with: FedAvg over all, or one all-reduce. It has no gate; a loss is repaired
at no cost. What a codec changes travels as a difference to the model that all began with, if they did. Its bytes are
those of a reduce-scatter and all-gather without headers, two models less a little; a server would send a model to each
node and get one.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ....gossip.config import Config
from ..exchange import Mixed, Moment
from .gates import clipped
from .grouping import digests
from .linked import BLOCK_ELEMENTS, COLUMNS_STEP
from .rounding import Rounding

HOPS = 2  # values, means


@dataclass(frozen=True, slots=True)
class Complete:
    """The mean of all, by samples as the machines clip them; values and mean are rounded."""

    rounding: Rounding
    weighted: bool = True

    def mix(self, moment: Moment) -> Mixed:
        """Average; ``moment.after`` becomes the result."""
        here = moment.here & torch.isfinite(moment.after.sum(1)).cpu().numpy()
        rows, dimension = np.flatnonzero(here), moment.after.shape[1]
        count, size_bytes = len(rows), self.rounding.size_bytes(dimension)
        if count > 1:
            self._average(moment, torch.from_numpy(rows).to(moment.after.device))
        away = torch.from_numpy(np.flatnonzero(~moment.here)).to(moment.after.device)
        moment.after[away] = moment.before[away]
        each = np.where(here, round(2 * size_bytes * (count - 1) / max(count, 1)), 0).astype(np.int64)
        averaged = np.where(here, count, 1).astype(np.int64)
        return Mixed(models=moment.after, bytes_sent=each, bytes_received=each.copy(), hops=HOPS, averaged=averaged)

    def _average(self, moment: Moment, rows: torch.Tensor) -> None:
        weights = torch.from_numpy(moment.weights if self.weighted else np.ones(len(moment.weights)))[rows.cpu()]
        everyone = torch.ones(len(rows), dtype=torch.bool)
        shares = clipped(weights, everyone, Config().weight_ratio_max).float().to(rows.device)
        begun = digests(moment.before, rows)
        alike = not self.rounding.exact and bool((begun == begun[0]).all())
        at_once = max(1, BLOCK_ELEMENTS // (len(rows) * COLUMNS_STEP)) * COLUMNS_STEP
        for start in range(0, moment.after.shape[1], at_once):
            part = slice(start, start + at_once)
            base = moment.before[rows[:1], part] if alike else 0.0
            sent = self.rounding.through(moment.after[:, part][rows] - base, moment.dice)
            mean = self.rounding.through(shares @ sent, moment.dice)
            moment.after[:, part][rows] = mean + base


@dataclass(frozen=True, slots=True)
class Alone:
    """No exchange."""

    def mix(self, moment: Moment) -> Mixed:
        """Return all models as they are."""
        none = np.zeros(len(moment.here), dtype=np.int64)
        return Mixed(models=moment.after, bytes_sent=none, bytes_received=none.copy(), hops=0, averaged=none + 1)
