"""What the `trusted` policy lets into a mean: nothing of a wrong shape, not finite, absurdly heavy or absurdly large.

Invariant: within a round the limit does not move. What a round showed counts from the next one on, so the order of
arrival decides nothing.
"""

import math
from collections import deque
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from .codecs import BLOCK, Floats
from .config import Config
from .errors import BadContribution


class Gate:
    """Checks contributions, and learns from each round how large honest ones are.

    Norms are compared as multiples of the receiver's own (`norm_scale`), since parts differ from round to round, and
    layers in size. The running median is over all that was *seen*, refused or not: a gate that learned only from
    what it let in could settle too low and refuse honest peers for ever. It takes half of the senders to move it. Of
    the chunks of one contribution the largest counts. Differences to a reference are held to the same limit.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._history: deque[float] = deque(maxlen=config.norm_history)
        self._seen: dict[str, float] = {}

    @property
    def norm_ratio_max(self) -> float:
        """The largest norm let in, as a multiple of one's own: never under `Config.norm_ratio_max`."""
        median = median_low(self._history) if self._history else 1.0
        return self._config.norm_ratio_max * max(1.0, median)

    def admit(self, peer: str, values: NDArray[np.generic], n: int, weight: float, scale: float) -> None:
        """Check one contribution of n values, whose norm is compared with `scale` (see `norm_scale`).

        Raises:
            BadContribution: it must not be averaged; the message names the peer, what is wrong and by how much.
        """
        ratio = check_vector(peer, values, n) / scale
        self._seen[peer] = max(ratio, self._seen.get(peer, 0.0))
        check_weight(peer, weight, self._config.weight_max)
        self._check_norm(peer, ratio)

    def admit_mean(self, peer: str, values: NDArray[np.generic], n: int, scale: float) -> None:
        """Check a mean of n values that `peer` computed, in the same way; the gate does not learn from it.

        Raises:
            BadContribution: it must not be adopted.
        """
        self._check_norm(peer, check_vector(peer, values, n) / scale)

    def settle(self) -> None:
        """End a round: what it showed counts from now on."""
        self._history.extend(sorted(self._seen.values()))
        self._seen.clear()

    def _check_norm(self, peer: str, ratio: float) -> None:
        if ratio > self.norm_ratio_max:
            raise BadContribution(
                f"its norm is {ratio:.3g} times ours; at most {self.norm_ratio_max:.3g} times is let in", peer
            )


def norm_scale(own: Floats, rms: float) -> float:
    """Return the norm to compare others' values of a part with, given one's own values and the whole vector's RMS.

    The part's own norm, but at least that of a typical part of its size: biases that are still zero here may be
    something elsewhere. One's own vector being all zero, a typical number is taken to be 1.
    """
    return max(norm(own), (rms or 1.0) * math.sqrt(max(own.size, 1)))


def norm(values: Floats) -> float:
    """Return the Euclidean norm, which is finite where all values are.

    In float32 block by block, a tenth of the time that float64 takes; where that overflows, in float64 after all.
    """
    total = 0.0
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        total += float(np.einsum("i,i->", block, block))
    if math.isfinite(total):
        return math.sqrt(total)
    wide = values.astype(np.float64)
    return math.sqrt(float(np.dot(wide, wide)))


def check_weight(peer: str, weight: float, weight_max: float) -> None:
    """Check that a weight can count.

    Raises:
        BadContribution: it is not finite, not positive or above `weight_max`.
    """
    if not (math.isfinite(weight) and 0 < weight <= weight_max):
        raise BadContribution(f"its weight is {weight}; it must be above 0 and at most {weight_max:g}", peer)


def check_vector(peer: str, values: NDArray[np.generic], n: int) -> float:
    """Check that these are n finite float32, and return their norm.

    Raises:
        BadContribution: they are not.
    """
    if values.shape != (n,):
        raise BadContribution(f"its values have shape {values.shape} where ({n},) is due", peer)
    if values.dtype != np.float32:
        raise BadContribution(f"its values are {values.dtype} where float32 is due", peer)
    size = norm(values.astype(np.float32, copy=False))
    if not math.isfinite(size):
        bad = n - int(np.count_nonzero(np.isfinite(values.astype(np.float32, copy=False))))
        raise BadContribution(f"{bad} of its {n} values are not finite", peer)
    return size
