"""Nodes train a model that only their owners' own code can make; who lacks it, or has another, takes no part."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import trio
from lepton.mesh.errors import UsageError
from lepton.node import Node
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.tasks import WHOLE
from safetensors.torch import load_file
from torch import nn

from .fakes import DIGITS, PATIENCE_S, World, parts, running, until

NAME = "own_models_of_a_test:net"
SOURCE = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models_of_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def trained(node: Node) -> dict[str, torch.Tensor]:
    return load_file(node.home.folder("tasks", "digits", "1") / WHOLE)


async def test_those_who_have_it_train_it_and_the_others_say_that_they_do_not(tmp_path: Path) -> None:
    data = {name: {"digits": part} for name, part in zip("abc", parts(3), strict=True)}
    async with running(tmp_path, *"abc", data=data, models={"a": [NAME], "b": [NAME]}) as world:
        a, b, c = world.nodes.values()
        with pytest.raises(UsageError, match=f"this node does not have the model {NAME}"):
            await c.train("other", data="digits", model=NAME)
        result = await a.train("digits", data="digits", model=NAME, rounds=30, codec_name="float32")
        await until(lambda: len(a.trainers("digits", 1)) == 3)
        said = a.trainers("digits", 1)
        assert {peer: node.state for peer, node in said.items()} == {
            a.mesh.me: "done", b.mesh.me: "done", c.mesh.me: "failed",
        }  # fmt: skip
        assert f"this node does not have the model {NAME}" in said[c.mesh.me].reason
        assert result.accuracy_worst > 0.9

        assert "digits" not in a.view.models()
        assert [(task["name"], task["served"]) for task in a.status()["tasks"]] == [("digits", False)]
        first, second = trained(a), trained(b)
        for name in ("0.weight", "1.weight", "1.running_mean", "3.bias"):
            torch.testing.assert_close(first[name], second[name])
        model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)).eval()
        model.load_state_dict(first)
        assert DIGITS.x_test is not None
        answers = model(torch.from_numpy(DIGITS.x_test)).argmax(dim=1).numpy()
        assert (answers == DIGITS.y_test).mean() == pytest.approx(said[a.mesh.me].accuracy)


async def test_another_model_of_the_same_name_is_not_averaged(tmp_path: Path) -> None:
    """It has as many numbers, in other places. Who fails first does not end it for the one that is still preparing."""
    data = {name: {"digits": part} for name, part in zip("ab", parts(2), strict=True)}
    async with running(tmp_path, *"ab", data=data, models={"a": [NAME], "b": [NAME]}) as world:
        a, b = world.nodes.values()
        known = {node: node.tasks._factories._made for node in (a, b)}
        right, b_failed, calls = known[a][NAME], threading.Event(), []
        assert right is not None

        def slow() -> object:
            calls.append(1)
            if len(calls) > 1:  # the first is that of stating the task
                b_failed.wait(PATIENCE_S)
            return right()

        known[a][NAME] = slow
        known[b][NAME] = lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 10))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: a.train(
                    "digits", data="digits", model=NAME, rounds=3, settings=TrainSettings(local_steps=2), members_min=1
                )
            )
            await until(lambda: [node.state for node in a.trainers("digits", 1).values()] == ["failed"])
            b_failed.set()
        said = a.trainers("digits", 1)
        assert said[a.mesh.me].state == "done"
        assert said[b.mesh.me].state == "failed"
        assert f"the model that {NAME} makes here is not the one of this task" in said[b.mesh.me].reason


def test_the_command_allows_functions_and_tells_of_one_that_cannot_be(tmp_path: Path) -> None:
    home = World(tmp_path).furnish("a")
    command = [sys.executable, "-m", "lepton.node", "up", "--home", str(home), "--allow-model", "json:nothing"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode != 0
    assert "json:nothing: cannot be imported: AttributeError" in ran.stderr
