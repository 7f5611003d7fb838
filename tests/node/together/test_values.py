"""Three nodes learn to predict values from parts that differ, about as well as one that has all the data."""

from pathlib import Path

import numpy as np
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import Dataset, hold_out
from lepton.node.learning.task import task_from
from lepton.node.learning.trainer import settings_for, train_alone
from lepton.node.shapes import ModelSpec
from sklearn.datasets import load_diabetes

from .fakes import running

pytestmark = pytest.mark.trio
ROUNDS = 30


def diabetes() -> Dataset:
    """How far the disease went in a year, of 442 patients, by 10 measures (Efron et al. 2004); as numbers near 1."""
    x, y = load_diabetes(return_X_y=True)
    values = ((y - 150) / 80).astype(np.float32)[:, None]
    return hold_out(Dataset(x=(20 * x).astype(np.float32), y=values, classes=1), 0.2, 0)


def error_of(answers: np.ndarray, truth: np.ndarray) -> float:
    return float(((answers - truth) ** 2).mean())


async def test_three_nodes_predict_values_as_well_as_one_with_all_the_data(tmp_path: Path) -> None:
    whole = diabetes()
    assert whole.x_test is not None
    assert whole.y_test is not None
    order = np.argsort(whole.y[:, 0] + np.random.default_rng(0).normal(0, 1, len(whole.y)))  # few alike anywhere
    data = {
        name: {"diabetes": Dataset(x=whole.x[i], y=whole.y[i], classes=1, x_test=whole.x_test, y_test=whole.y_test)}
        for name, i in zip("abc", np.array_split(order, 3), strict=True)
    }
    said = {
        "name": "diabetes", "data": "diabetes", "objective": "mse", "baseline": True,
        "model": {"hidden": 16}, "train": {"schedule": "cosine"}, "budget": {"rounds": ROUNDS}, "stop": {"r2": 0.99},
    }  # fmt: skip
    spec = ModelSpec(architecture="mlp", inputs=(10,), classes=1, hidden=16, objective="mse")
    central = train_alone(spec, whole, settings_for(spec), ROUNDS * 20).evaluate()
    assert central.r2 is not None
    async with running(tmp_path, "a", "b", "c", data=data) as world:
        a, b, c = world.nodes.values()
        result = await a.train(task_from(said, "here"))
        assert result.r2_worst >= central.r2 - 0.05
        assert all(node.accuracy is None and node.r2_alone is not None for node in result.nodes.values())
        await b.wait_served("diabetes")
        answers = await b.predict("diabetes", whole.x_test)
        assert answers.shape == whole.y_test.shape
        assert answers.dtype == np.float32
        assert error_of(answers, whole.y_test) <= 1.1 * central.loss
        (task,) = [task for task in c.status()["tasks"] if task["name"] == "diabetes"]
        assert task["nodes"][c.mesh.me]["r2"] == pytest.approx(result.nodes[c.mesh.me].r2)
        with pytest.raises(UsageError, match="takes whole numbers of classes"):
            await a.train("classes", data="diabetes")
