"""Real data as nodes hold them: MNIST in shards of few labels, spoken digits by speaker; and learning without a mesh.

Both are read from `../shared/data`. The baselines train with the deployed `Trainer`, so that only what is exchanged
differs: all data in one place, each node alone, a server that averages everybody, and random pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from lepton.node.learning.data import Dataset
from lepton.node.learning.trainer import Trainer, settings_for
from lepton.node.shapes import ModelSpec, Vector

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGES, CHECKS = 6_000, 5_000
BATCH = 20  # as in the measurements that ours are compared with
SHARDS_EACH = 2
TEST_INDICES = 5  # the data set's own split: recordings 0 to 4 of every speaker and digit are the test


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """One learning problem: what every node holds, the model, and the budget that all methods share."""

    silos: tuple[Dataset, ...]
    spec: ModelSpec
    rate: float
    rounds: int

    @property
    def local_steps(self) -> int:
        """Batches of one epoch of the mean silo: what a node does a round."""
        return round(float(np.mean([len(silo.y) for silo in self.silos])) / BATCH)

    def settings(self, **changes: Any) -> Any:
        """Return settings of a `Trainer`: plain SGD, but for these changes."""
        plain = {"local_steps": self.local_steps, "batch_size": BATCH, "learning_rate": self.rate, "momentum": 0.0}
        return msgspec.structs.replace(settings_for(self.spec, seed=self.spec.seed), **{**plain, **changes})

    def trainer(self, data: Dataset, *, nodes: int = 1, **changes: Any) -> Trainer:
        """Make a trainer that takes the steps of so many nodes."""
        steps = self.rounds * self.local_steps * nodes
        return Trainer(self.spec, data, self.settings(**changes), steps=steps)

    def trainers(self, **changes: Any) -> list[Trainer]:
        """Make one trainer a node, all with the same first model."""
        return [self.trainer(silo, **changes) for silo in self.silos]


def missing() -> str:
    """Return what to say where the data are not; empty where they are."""
    return "" if (DATA / "mnist").is_dir() and (DATA / "fsdd").is_dir() else f"no data in {DATA}: nothing to measure"


@cache
def _mnist() -> tuple[Vector, np.ndarray, Vector, np.ndarray]:
    with np.load(DATA / "mnist" / "mnist_30k.npz") as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    flat = [(images.reshape(len(images), -1) / 255).astype(np.float32) for images in (x[: IMAGES + CHECKS], x_test)]
    return flat[0], y[: IMAGES + CHECKS].astype(np.int64), flat[1], y_test.astype(np.int64)


def mnist(*, seed: int, nodes: int = 10, rounds: int = 40, choosing: bool = False) -> Setting:
    """Sort by label, cut into two shards a node, deal them out (McMahan et al. 2017, section 3).

    ``choosing`` settings, the test is the images that follow those trained on, and not the test images.
    """
    x, y, x_test, y_test = _mnist()
    if choosing:
        x_test, y_test = x[IMAGES:], y[IMAGES:]
    x, y = x[:IMAGES], y[:IMAGES]
    shards = np.array_split(np.argsort(y, kind="stable"), SHARDS_EACH * nodes)
    dealt = np.random.default_rng(seed).permutation(len(shards)).reshape(nodes, SHARDS_EACH)
    parts = [np.concatenate([shards[shard] for shard in one]) for one in dealt]
    silos = tuple(Dataset(x=x[part], y=y[part], classes=10, x_test=x_test, y_test=y_test) for part in parts)
    spec = ModelSpec(architecture="mlp", inputs=(784,), classes=10, hidden=64, hidden_activation="relu", seed=seed)
    return Setting(silos=silos, spec=spec, rate=0.1, rounds=rounds)


def speech(*, seed: int, rounds: int = 15, choosing: bool = False) -> Setting:
    """Spoken digits, every speaker a node; all are tested on all speakers.

    ``choosing`` settings, the test is recordings that are trained on otherwise, and the test recordings are left out.
    """
    with np.load(DATA / "fsdd" / "fsdd_logmel32x32_4speakers.npz") as file:
        x, y, speaker, index = (file[name] for name in ("x", "y", "speaker", "index"))
    if choosing:
        kept = index >= TEST_INDICES
        x, y, speaker, index = x[kept], y[kept], speaker[kept], index[kept] - TEST_INDICES
    x, y, test = x.astype(np.float32), y.astype(np.int64), index < TEST_INDICES
    x = (x - x[~test].mean()) / x[~test].std()
    parts = [(speaker == one) & ~test for one in np.unique(speaker)]
    silos = tuple(Dataset(x=x[part], y=y[part], classes=10, x_test=x[test], y_test=y[test]) for part in parts)
    spec = ModelSpec(architecture="cnn", inputs=(32, 32), classes=10, hidden=32, seed=seed)
    return Setting(silos=silos, spec=spec, rate=0.05, rounds=rounds)


# -- what learns without a mesh ---------------------------------------------------------------------------------------


def central(setting: Setting) -> float:
    """All data in one place, as many steps as all nodes take together."""
    x, y = (np.concatenate([getattr(silo, name) for silo in setting.silos]) for name in ("x", "y"))
    first = setting.silos[0]
    whole = Dataset(x=x, y=y, classes=first.classes, x_test=first.x_test, y_test=first.y_test)
    trainer = setting.trainer(whole, nodes=len(setting.silos))
    trainer.run_steps(setting.rounds * setting.local_steps * len(setting.silos))
    return trainer.evaluate().accuracy


def alone(setting: Setting) -> list[float]:
    """Every node without the others."""
    trainers = setting.trainers()
    for trainer in trainers:
        trainer.run_steps(setting.rounds * setting.local_steps)
    return [trainer.evaluate().accuracy for trainer in trainers]


Mixing = Callable[[list[Vector], np.ndarray, np.random.Generator], list[Vector]]


def mixed(setting: Setting, mixing: Mixing, **changes: Any) -> list[float]:
    """Train and mix, round after round, with nothing lost and nothing rounded."""
    trainers, rng = setting.trainers(**changes), np.random.default_rng(setting.spec.seed)
    weights = np.array([trainer.samples for trainer in trainers], dtype=np.float64)
    for _ in range(setting.rounds):
        for trainer in trainers:
            trainer.run_steps(setting.local_steps)
        for trainer, vector in zip(trainers, mixing([t.vector() for t in trainers], weights, rng), strict=True):
            trainer.adopt(vector, averaged=True)
    return [trainer.evaluate().accuracy for trainer in trainers]


def server(vectors: list[Vector], weights: np.ndarray, _rng: np.random.Generator) -> list[Vector]:
    """FedAvg with everybody in every round."""
    mean = np.average(vectors, axis=0, weights=weights).astype(np.float32)
    return [mean] * len(vectors)


def pairs(times: int) -> Mixing:
    """Return what everybody does who exchanges with a random other one, so many times a round, and takes the mean."""

    def mix(vectors: list[Vector], _weights: np.ndarray, rng: np.random.Generator) -> list[Vector]:
        vectors = list(vectors)
        for _ in range(times):
            order = rng.permutation(len(vectors))
            for one, other in zip(order[0::2], order[1::2], strict=False):
                vectors[one] = vectors[other] = (vectors[one] + vectors[other]) / 2
        return vectors

    return mix
