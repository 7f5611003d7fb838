"""Private groups, all nodes at once: the machines of `gossip/private/`, without the masks, which cancel.

As deployed: values are whole numbers of 2^-16, sums modulo 2^32, everybody counts alike, and a group has three members
at least. A round sends each message once (connections repeat what they lose, a round does not). So with messages lost
somebody may be left out of the sum, all may skip the round since receipts or signatures differ, and a sum may miss
somebody; `Fate` draws that. Between machines a lost message is a lost connection: losses of a few percent are many.

With ``clip`` an update, from the model that the round began with, is scaled down to that length. With ``noise`` each
member adds its share of a Gaussian: so much that the sum has at least that standard deviation even if as few survive as
may, and all those who may collude take theirs out again.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.private.masking import FRACTION_BITS, VALUE_MAX
from ....gossip.private.survivors import colluders_max, survivors_min
from ..exchange import Mixed, Moment
from . import traffic
from .fate import Fate
from .layout import Layout
from .ranks import Ranks, Rows
from .scratch import Scratch

HOPS = 6  # keys, masked values, receipts, signatures, reveals, sums
BLOCK_ELEMENTS = 1 << 19
_SCALE = 2.0**FRACTION_BITS


@dataclass(frozen=True, slots=True)
class Hidden:
    """Exchanges of private groups of ``size``."""

    ranks: Ranks
    size: int
    noise: float = 0.0
    clip: float = 0.0
    scratch: Scratch = field(default_factory=Scratch)

    def mix(self, moment: Moment) -> Mixed:
        """Average each group; ``moment.after`` becomes the result. Who has too large a value to send takes no part."""
        if self.clip:
            clip_updates(moment.before, moment.after, self.clip)
        low, high = moment.after.aminmax(dim=1)
        fits = (low >= -VALUE_MAX) & (high <= VALUE_MAX)  # and so it is finite
        members = np.flatnonzero(moment.here & fits.numpy())
        sent, received, averaged = (np.zeros(len(moment.here), dtype=np.int64) for _ in range(3))
        averaged += 1
        for groups in self.ranks.groups(moment.round, members, self.size) if len(members) else ():
            size = groups.shape[1]
            if size < survivors_min(size):
                continue
            layout = Layout(moment.after.shape[1], size, 1)
            sent[groups], received[groups] = traffic.of_private(layout)
            at_once = max(1, BLOCK_ELEMENTS // (layout.dimension * size))
            for start in range(0, len(groups), at_once):
                rows = groups[start : start + at_once]
                averaged[rows] = self._mix(moment, rows, layout)
        away = torch.from_numpy(np.flatnonzero(~moment.here))
        moment.after[away] = moment.before[away]
        return Mixed(models=moment.after, bytes_sent=sent, bytes_received=received, hops=HOPS, averaged=averaged)

    def _mix(self, moment: Moment, rows: Rows, layout: Layout) -> npt.NDArray[np.int64]:
        """Average some groups (g, m); return how many are in the mean that each has, (g, m)."""
        flat = torch.from_numpy(rows.reshape(-1))
        taken = self.scratch.take("own", len(flat), layout.dimension)
        own = torch.index_select(moment.after, 0, flat, out=taken).view(*rows.shape, -1)
        words = self._words(own, moment.dice)
        if not moment.loss:
            mean = mean_of(words.sum(1), rows.shape[1])
            moment.after[flat] = mean.repeat_interleave(rows.shape[1], 0)
            return np.full(rows.shape, rows.shape[1], dtype=np.int64)
        fates = [Fate.drawn(rows.shape[1], moment.loss, moment.dice) for _ in rows]
        return self._partly(moment, rows, layout, words, fates)

    def _words(self, own: Tensor, dice: np.random.Generator) -> Tensor:
        """Return (g, m, D) in fixed point, int64; with each member's share of the noise."""
        values = own.double()
        if self.noise:
            members = own.shape[1]
            honest = survivors_min(members) - colluders_max(members)
            drawn = torch.from_numpy(dice.standard_normal(own.shape, dtype=np.float32))
            values = (own + drawn * float(self.noise * honest**-0.5)).clamp_(-VALUE_MAX, VALUE_MAX).double()
        return values.mul_(_SCALE).round_().long()

    def _partly(
        self, moment: Moment, rows: Rows, layout: Layout, words: Tensor, fates: list[Fate]
    ) -> npt.NDArray[np.int64]:
        """Give each member those parts of its group's mean that reach it."""
        averaged = np.ones(rows.shape, dtype=np.int64)
        places = layout.places
        for group, fate in enumerate(fates):
            inside = list(fate.survivors)
            if not inside:
                continue
            mean = mean_of(words[group, inside].sum(0), len(inside))
            for member in inside:
                model = moment.after[int(rows[group, member])]
                for owner in np.flatnonzero(fate.reached[:, member]):
                    model[places[owner]] = mean[places[owner]]
                averaged[group, member] = len(inside) if fate.reached[:, member].any() else 1
        return averaged


def mean_of(total: Tensor, members: int) -> Tensor:
    """Return the mean, float32, of a sum of so many words of int64, as it comes out of 32 bits."""
    wrapped = ((total + 2**31) & (2**32 - 1)) - 2**31
    return (wrapped.double() / (members * _SCALE)).float()


def clip_updates(before: Tensor, after: Tensor, length_max: float) -> None:
    """Scale the updates of (N, D) down to ``length_max``, in place."""
    for start in range(0, len(after), step := max(1, BLOCK_ELEMENTS // after.shape[1])):
        part = slice(start, start + step)
        update = after[part] - before[part]
        lengths = torch.linalg.vector_norm(update, dim=1, keepdim=True)
        after[part] = before[part] + update * (length_max / lengths.clamp(min=length_max))
