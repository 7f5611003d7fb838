"""Groups of one size in one round, so many as fit into a processor's cache: reduce-scatter and all-gather.

Shapes: g groups of m members, D parameters in m parts that are filled up to length L (`layout.py`). In ``[g, i, j]``
member i sent part j to its owner, member j.

Models that a codec changes travel as differences to the model with which the round began, between those who began it
with the same one; the mean of a part does so where all of the group did. Partial sums are rounded again, as they are
sent. A mean that is too large for a member is refused by it. A part whose mean a quorum refuses is what it was when the
round began, if all began alike, else everybody's own; who refuses a mean that a quorum has keeps its own model.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.config import Config
from ..exchange import Moment
from .gates import clipped
from .layout import Layout
from .ranks import Rows
from .rounding import Rounding
from .scratch import Scratch

KNOWN_COLUMNS = 256  # parameters by which it is seen whose models began alike; two that differ differ in one of these

_RATIO_MAX = Config().weight_ratio_max
_FACTORS = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, KNOWN_COLUMNS))


class Block:
    """`mix` once; `seen` tells what the gates learn of it."""

    def __init__(
        self, moment: Moment, rows: Rows, layout: Layout, rounding: Rounding, limits: Tensor, scratch: Scratch
    ) -> None:
        """``rows`` (g, m) are the members, ``limits`` (N,) the norms that each node lets in."""
        self._moment, self._layout, self._rounding, self._scratch = moment, layout, rounding, scratch
        self._flat = torch.from_numpy(rows.reshape(-1))
        self._shape = rows.shape
        self._own = self._take("own", moment.after)  # (g, m, D)
        self._limits = limits[self._flat].view(self._shape)
        self._weights = torch.from_numpy(moment.weights[rows])  # (g, m) float64
        norms = layout.norms(self._own)  # (g, m, m): of whom, which part
        rms = norms.square().sum(-1, keepdim=True).div_(layout.dimension).sqrt_()
        rms[rms == 0] = 1.0
        self._norms, self._scales = norms, torch.maximum(norms, rms * layout.sizes.clamp(min=1).sqrt())
        self._ratios, self._oneself = norms, torch.eye(layout.members, dtype=torch.bool)

    def mix(self) -> npt.NDArray[np.int64]:
        """Write the result into ``moment.after``; return how many are in each one's mean, (g, m)."""
        mean, sizes, count = self._plain() if self._rounding.exact else self._rounded()
        adopts, agreed = self._adopts(sizes)
        groups = torch.arange(self._shape[0]).repeat_interleave(self._shape[1])
        if adopts.all() and agreed.all():
            spread = torch.index_select(mean, 0, groups, out=self._own.view(-1, self._layout.dimension))
            self._moment.after.index_copy_(0, self._flat, spread)
        else:
            chosen = adopts.flatten()
            self._moment.after[self._flat[chosen]] = self._patched(mean, agreed)[chosen]
        counts: npt.NDArray[np.int64] = torch.where(adopts, count.unsqueeze(1), 1).numpy()
        return counts

    def _patched(self, mean: Tensor, agreed: Tensor) -> Tensor:
        """Return the means for each member, (g m, D); in parts that are not ``agreed`` (g, m) what they keep there."""
        before = self._moment.before[self._flat].view(*self._shape, -1)
        known = alike(self._moment.before, self._flat.view(self._shape)).flatten(1).all(1)
        kept = torch.where(known[:, None, None], before, self._take("own", self._moment.after))
        lengths = torch.tensor(self._layout.lengths)
        there = agreed.repeat_interleave(lengths, dim=1).unsqueeze(1)
        return torch.where(there, mean.unsqueeze(1), kept).flatten(0, 1)

    def seen(self) -> npt.NDArray[np.float64]:
        """Return the norms of what each owner was sent, as multiples of its own, (g m, m - 1)."""
        g, m = self._shape
        return self._ratios.transpose(1, 2)[:, ~self._oneself].view(g * m, m - 1).double().numpy()

    def _take(self, name: str, x: Tensor) -> Tensor:
        """Gather the members' rows of (N, D): (g, m, D)."""
        taken = self._scratch.take(name, len(self._flat), x.shape[1])
        return torch.index_select(x, 0, self._flat, out=taken).view(*self._shape, -1)

    def _spread(self, name: str, x: Tensor) -> Tensor:
        layout = self._layout
        into = self._scratch.take(name, len(self._flat), layout.members, layout.length)
        return layout.spread(x, into.view(*self._shape, layout.members, layout.length))

    # -- means --------------------------------------------------------------------------------------------------------

    def _plain(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return means (g, D), the norms of their parts (g, m), and of how many they are (g,)."""
        shares, count = self._admit(self._norms)
        if torch.equal(shares, shares[..., :1].expand_as(shares)):  # mostly nobody is refused
            mean = torch.bmm(shares[..., 0].unsqueeze(1), self._own).squeeze(1)
        else:
            mean = self._layout.join(torch.einsum("gij,gijl->gjl", shares, self._spread("sent", self._own)))
        return mean, self._layout.norms(mean), count

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Do so where what is sent is rounded: twice, values and their mean."""
        sent = self._spread("sent", self._own)  # (g, m, m, L)
        began = alike(self._moment.before, self._flat.view(self._shape))  # (g, m, m)
        if int(began.sum()) == len(self._flat):  # nobody is but to itself: all is sent as it is
            return self._averaged(sent, None, None)
        started = self._spread("started", self._take("before", self._moment.before))
        base = _diagonal(started).permute(0, 2, 1) * began.flatten(1).all(1)[:, None, None]  # (g, m, L)
        known = started.mul_(began.unsqueeze(-1))
        return self._averaged(sent.sub_(known), known, base)

    def _averaged(self, sent: Tensor, known: Tensor | None, base: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Average what is ``sent``, differences to what is ``known``; say means as differences to ``base``."""
        layout, dice = self._layout, self._moment.dice
        own = _diagonal(sent).clone()
        arrived = self._rounding.through(sent, dice)
        _diagonal(arrived).copy_(own)  # an owner's values do not travel
        shares, count = self._admit(torch.linalg.vector_norm(arrived, dim=-1))
        if known is not None:
            arrived.add_(known)
        mean = torch.einsum("gij,gijl->gjl", shares, arrived).contiguous()
        if base is not None:
            mean.sub_(base)
        means = self._rounding.through(mean, dice)
        sizes = torch.linalg.vector_norm(means, dim=-1)
        return layout.join(means if base is None else means.add_(base)), sizes, count

    # -- what is let in -----------------------------------------------------------------------------------------------

    def _admit(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return each one's share of each part's mean, (g, m, m), and how many are in all of a group's means, (g,)."""
        self._ratios = norms / _diagonal(self._scales).unsqueeze(1)
        admitted = (self._ratios <= self._limits.unsqueeze(1)) | self._oneself
        weights = self._weights.unsqueeze(1).expand(-1, self._shape[1], -1)  # (g, j, i)
        shares = clipped(weights, admitted.transpose(1, 2), _RATIO_MAX).transpose(1, 2)
        return shares.float(), admitted.sum(1).amin(1)

    def _adopts(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return who takes what was agreed on, and of which parts that is the mean: (g, m), (g, m).

        ``sizes`` (g, m) are the norms of what was sent of the means.
        """
        fits = sizes.unsqueeze(1) / self._scales <= self._limits.unsqueeze(2)  # (g, k, j)
        fits |= self._oneself
        agreed = _is_quorum(fits)
        whole = (fits | ~agreed.unsqueeze(1)).all(2)
        return whole & _is_quorum(whole.unsqueeze(2)), agreed


def _is_quorum(there: Tensor) -> Tensor:
    """Return whether the members that are ``there`` (g, m, k) are one, by agreement's rule: (g, k)."""
    twice, members = 2 * there.sum(1), there.shape[1]
    quorum: Tensor = (twice > members) | ((twice == members) & there[:, 0])
    return quorum


def alike(before: Tensor, rows: Tensor) -> Tensor:
    """Return which of the nodes ``rows`` (g, m) began with the same model, of ``before`` (N, D): (g, m, m)."""
    begun = digests(before, rows)
    return begun.unsqueeze(1) == begun.unsqueeze(2)


def digests(before: Tensor, rows: Tensor) -> Tensor:
    """Return a number for the model that each of ``rows`` (...) began with, the same for the same one: int64 (...)."""
    dimension = before.shape[1]
    columns = torch.linspace(0, dimension - 1, min(dimension, KNOWN_COLUMNS)).long()
    bits = before[rows.reshape(-1, 1), columns].view(torch.int32).long()
    return (bits * _FACTORS[: len(columns)]).sum(-1).view(rows.shape)  # modulo 2^64


def _diagonal(x: Tensor) -> Tensor:
    """Return a view of what each member has of its own part: (g, m, m, ...) to (g, ..., m)."""
    return x.diagonal(dim1=1, dim2=2)
