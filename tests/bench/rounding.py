"""What rounding twice in a reduce-scatter costs: values are quantised on their way to the owner, their mean once more.

Run ``python -m tests.bench.rounding``. 8 members hold a common model and small updates to it, as after local steps.
Columns: the root mean square error of the mean, as parts of the updates' root mean square, when only the contributions
are rounded, when only the mean is, and when both are, as in a round; then both, where whole values travel and not the
differences to the common model.
"""

import numpy as np
from lepton.gossip.codecs import CODECS, Codec, Floats
from lepton.gossip.mixing import weighted_mean

MEMBERS, DIMENSION, UPDATE, SEED = 8, 1 << 18, 0.01, 1  # an update of a hundredth of the weights' size


def main() -> None:
    rng = np.random.default_rng(SEED)
    model = rng.standard_normal(DIMENSION, dtype=np.float32)
    updates = {f"{i}": UPDATE * rng.standard_normal(DIMENSION, dtype=np.float32) for i in range(MEMBERS)}
    print(f"{'codec':>10}{'contributions':>16}{'mean':>10}{'both':>10}{'both, no difference':>22}")  # noqa: T201
    for codec in CODECS.values():
        once = [errors(codec, updates, rng, ways) for ways in ((True, False), (False, True), (True, True))]
        whole = errors(codec, {name: model + update for name, update in updates.items()}, rng, (True, True))
        row = "".join(
            f"{100 * error:{width}.3f} %" for error, width in zip([*once, whole], (14, 8, 8, 20), strict=True)
        )
        print(f"{codec.name:>10}{row}")  # noqa: T201


def errors(codec: Codec, values: dict[str, Floats], rng: np.random.Generator, ways: tuple[bool, bool]) -> float:
    """Return the error of the mean, relative to an update's size."""
    weights = dict.fromkeys(values, 1.0)
    sent = {name: through(codec, x, rng) if ways[0] else x for name, x in values.items()}
    mean = weighted_mean(sent, weights)
    if ways[1]:
        mean = through(codec, mean, rng)
    exact = weighted_mean(values, weights)
    return float(np.sqrt(np.mean((mean - exact).astype(np.float64) ** 2))) / UPDATE


def through(codec: Codec, x: Floats, rng: np.random.Generator) -> Floats:
    return codec.decode(codec.encode(x, rng), x.size)


if __name__ == "__main__":
    main()
