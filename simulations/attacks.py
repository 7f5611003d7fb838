"""What bad members of a task send instead of their models: the attacks that mixing is measured against.

Each is a function of what the attackers can know: the models that honest members have, (H, D), the model that the
attacker itself would honestly send, (D,), and the mean of all as of the last round, (D,). All float32. Pure numpy.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..gossip.codecs import Floats

Attack = Callable[[Floats, Floats, Floats, np.random.Generator], Floats]


def as_floats(x: NDArray[np.floating]) -> Floats:
    """Return float32, whatever the arithmetic has made of it."""
    floats: Floats = x.astype(np.float32)
    return floats


def sign_flip(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """Step the other way: last - 4 (own - last)."""
    del honest, rng
    return as_floats(last - 4.0 * (own - last))


def scaled(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """Take ten times the honest step, to count ten times."""
    del honest, rng
    return as_floats(last + 10.0 * (own - last))


def replacement(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """Send a model of the attacker's choice (here: noise of the honest ones' size), blown up to replace the mean.

    Bagdasaryan et al. 2020.
    """
    del own, last
    target = rng.standard_normal(honest.shape[1], dtype=np.float32) * honest.std()
    mean = honest.mean(axis=0)
    return as_floats(mean + len(honest) * (target - mean))


def alie(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """'A little is enough' (Baruch, Baruch and Goldberg 2019): mean + z std, z from a quarter of bad members."""
    del own, last, rng
    n = round(len(honest) * 4 / 3)
    bad = n - len(honest)
    supporters = n // 2 + 1 - bad
    z = NormalDist().inv_cdf(max(0.51, (n - bad - supporters) / (n - bad)))
    return as_floats(honest.mean(axis=0) - z * honest.std(axis=0))


def dissensus(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """Push the honest apart (He, Karimireddy and Jaggi 2022): own - 2 (mean - own), away from where they agree."""
    del last, rng
    return as_floats(own - 2.0 * (honest.mean(axis=0) - own))


def insider(honest: Floats, own: Floats, last: Floats, rng: np.random.Generator) -> Floats:
    """Stay within the honest distances and push against their step: the adaptive attack that selection cannot see.

    The attacker stands where honest models are nearest to each other, at the low quartile of their distances from
    their mean, in the direction that undoes what they have learned since the last round.
    """
    del own, rng
    mean = honest.mean(axis=0)
    step = mean - last
    length = float(np.linalg.norm(step))
    radius = float(np.quantile(np.linalg.norm(honest - mean, axis=1), 0.25))
    return as_floats(mean - step * np.float32(radius / length if length else 0.0))


ATTACKS: Mapping[str, Attack] = {
    "sign_flip": sign_flip,
    "scaled": scaled,
    "replacement": replacement,
    "alie": alie,
    "dissensus": dissensus,
    "insider": insider,
}
"""By name. Label flip is not here: it poisons data, not models (`flip_labels`)."""


def flip_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels as a poisoned data set has them: class c is called classes - 1 - c."""
    flipped: np.ndarray = (classes - 1 - labels).astype(labels.dtype)
    return flipped
