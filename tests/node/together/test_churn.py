"""Learning while nodes come and go: it ends with a good model on all who are left. On virtual time."""

import numpy as np
from lepton.node import Dataset, digits
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import ModelSpec

from ...bench.virtual import VirtualMesh

ROUNDS, LOCAL_STEPS = 30, 5
SPEC = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=32, hidden_activation="relu")
SETTINGS = TrainSettings(local_steps=LOCAL_STEPS, learning_rate=0.1, schedule="cosine", tracking=1.0)


def trainers(count: int, seed: int) -> list[Trainer]:
    """Give every node a share of the digits of its own."""
    whole = digits()
    shares = np.array_split(np.random.default_rng(seed).permutation(len(whole.y)), count)
    parts = [
        Dataset(x=whole.x[share], y=whole.y[share], classes=10, x_test=whole.x_test, y_test=whole.y_test)
        for share in shares
    ]
    return [Trainer(SPEC, part, SETTINGS, steps=ROUNDS * LOCAL_STEPS) for part in parts]


def test_it_ends_well_with_a_fifth_away_at_any_time_two_killed_and_one_that_comes_late() -> None:
    mesh = VirtualMesh(trainers(10, seed=1), rounds=ROUNDS, local_steps=LOCAL_STEPS, loss=0.1, seed=1)
    first, second, *_, last = mesh.nodes.values()
    mesh.begin_without(last)
    mesh.world.after(0.1, lambda: mesh.shuffle(0.2, every_s=10.0))
    mesh.world.after(5.0, lambda: mesh.kill(first))
    mesh.world.after(10.0, lambda: mesh.kill(second))
    mesh.world.after(7.0, lambda: mesh.come_back(last))
    accuracies = mesh.run()
    here = [node for node in mesh.nodes.values() if node.here]
    assert len(here) == 8
    assert last in here
    assert [node.round for node in here] == [ROUNDS] * 8
    assert max(first.round, second.round) < ROUNDS
    assert min(accuracies) >= 0.85
    assert max(len(node.reports) for node in here) > ROUNDS / 2  # it learned, and not by adopting alone
