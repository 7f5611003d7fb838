"""Nodes prune the model that they train together, and serve it with its zeros; likewise where only sums are seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.learning.task import task_from

from .fakes import parts, running, samples

SHARE = 0.6
LARGE = 64 * 64


def task(**changes: Any) -> Any:
    said = {
        "name": "digits", "data": "digits", "model": {"architecture": "mlp"}, "budget": {"rounds": 30},
        "train": {"local_steps": 10}, "prune": {"share": SHARE, "from_round": 5, "to_round": 20},
        "averaging": {"members": 3},
    }  # fmt: skip
    return task_from({**said, **changes}, "the test's task")


@pytest.mark.parametrize("policy", ["trusted", "private"])
async def test_three_nodes_prune_what_they_train_and_serve_it(policy: str, tmp_path: Path) -> None:
    data = {name: {"digits": part} for name, part in zip("abc", parts(3), strict=True)}
    async with running(tmp_path, "a", "b", "c", data=data) as world:
        nodes = list(world.nodes.values())
        result = await nodes[0].train(task(policy=policy))
        assert result.accuracy_worst > 0.9
        masks = []
        for node in nodes:
            await node.wait_served("digits")
            vector = node.tasks._learners["digits"]._trainer.vector()
            masks.append(vector[:LARGE] == 0)
            assert int(masks[-1].sum()) == round(SHARE * LARGE)
        assert all(np.array_equal(masks[0], mask) for mask in masks)
        found = await nodes[1].predict("digits", samples(20))
        assert found.shape == (20, 10)


async def test_a_model_in_which_nothing_can_be_pruned_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, "a", data={"a": {"digits": parts(1)[0]}}) as world:
        (node,) = world.nodes.values()
        with pytest.raises(UsageError, match="nothing of this model can be pruned"):
            await node.train(task(model={"architecture": "mlp", "hidden": 8}, averaging={"members": 1}))
