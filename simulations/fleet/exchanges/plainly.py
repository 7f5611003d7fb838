"""Groups of a round in which nobody refuses anything and nothing is rounded: mostly all of them, so the short way.

The mean of everybody is taken on trial. Where a gate would refuse a model or that mean, nothing is written, and the
group is left to `grouping.py`. What one gate lets in is decided as there.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....gossip.config import Config
from ..exchange import Moment
from .gates import Doubles, Rows
from .layout import Layout
from .scratch import Scratch

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

BLOCK_ELEMENTS = 1 << 18  # of models worked on at once: 1 MB, a core's second cache
_RATIO_MAX = Config().weight_ratio_max


def mix(moment: Moment, groups: Rows, layout: Layout, limits: Floats, scratch: Scratch) -> tuple[Flags, Doubles]:
    """Write the means into ``moment.after`` where nobody refuses anything; return where that is, (g,), of (g, m).

    ``limits`` (N,) are the norms that each node lets in. Returned too is what each owner was sent, as multiples of its
    own, (g, m, m - 1), for the gates.
    """
    means, norms = _averaged(moment, groups, layout, scratch)
    scales = _scales(norms, layout)
    own = scales.diagonal(axis1=1, axis2=2)[:, None]  # (g, 1, m)
    lets_in = limits[groups]
    with np.errstate(invalid="ignore"):  # models that have diverged fit nobody
        ratios = norms / own
    oneself = np.eye(layout.members, dtype=np.bool_)
    admitted = (ratios <= lets_in[:, None]) | oneself
    with np.errstate(invalid="ignore"):
        fits = (layout.norms(means).numpy()[:, None] / scales <= lets_in[..., None]) | oneself
    plain: Flags = np.asarray((admitted & fits).all(axis=(1, 2)))
    moment.after.numpy()[groups[plain]] = means.numpy()[plain, None]  # a sixth of the time of index_copy_
    seen = ratios.transpose(0, 2, 1)[:, ~oneself].reshape(*groups.shape, -1)
    return plain, seen.astype(np.float64)


def _averaged(moment: Moment, groups: Rows, layout: Layout, scratch: Scratch) -> tuple[Tensor, Floats]:
    """Return the mean of each group, (g, D), and the norm of each one's parts, (g, m, m)."""
    g, m = groups.shape
    shares = torch.from_numpy(shares_of(moment.weights[groups]).astype(np.float32)).unsqueeze(1)
    rows, means, norms = torch.from_numpy(groups.reshape(-1)), torch.empty(g, 1, layout.dimension), []
    at_once = max(1, BLOCK_ELEMENTS // (layout.dimension * m))
    for start in range(0, g, at_once):
        now = rows[start * m : (start + at_once) * m]
        own = torch.index_select(moment.after, 0, now, out=scratch.take("plain", len(now), layout.dimension))
        norms.append(layout.norms(own))
        torch.bmm(
            shares[start : start + at_once], own.view(-1, m, layout.dimension), out=means[start : start + at_once]
        )
    return means.squeeze(1), torch.cat(norms).view(g, m, m).numpy()


def shares_of(weights: Doubles) -> Doubles:
    """Return what each counts with, (g, m), as `gates.clipped` does where all are let in."""
    limit = _RATIO_MAX * np.sort(weights, axis=1)[:, (weights.shape[1] - 1) // 2]
    heavy = np.minimum(weights, limit[:, None])
    shares: Doubles = heavy / heavy.sum(1, keepdims=True)
    return shares


def _scales(norms: Floats, layout: Layout) -> Floats:
    """Return what each member compares the norms of each part with, (g, m, m): `norm_scale` of `gossip/gate.py`."""
    rms = np.sqrt(np.square(norms).sum(-1, keepdims=True) / np.float32(layout.dimension))
    rms[rms == 0] = 1.0
    scales: Floats = np.maximum(norms, rms * np.sqrt(layout.sizes.clamp(min=1).numpy()))
    return scales
