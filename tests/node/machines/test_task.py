"""A task's file: what it says comes out, and whatever is wrong is named with its place."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.task import FILE_BYTES_MAX, Task, load_task, task_from

WHOLE = """
name = "digits"
data = "my-digits"
baseline = true
seed = 7

[model]
architecture = "cnn"
hidden = 16
classes = 10

[train]
learning_rate = 1
schedule = "cosine"
momentum_kind = "quasi_global"

[averaging]
codec = "int4"
group_size = 16
members = 3
start_wait_s = 5

[budget]
rounds = 50
seconds = 600
bytes = "2 MB"

[stop]
accuracy = 0.97
no_better = 10

[parts]
train = ["layers.*"]
local = ["layers.2.*"]

[serve]
copies = 1
"""


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(WHOLE)
    task = load_task(tmp_path / "task.toml", {"budget": {"rounds": 60}})
    assert task.budget.rounds == 60  # the command line wins
    assert task.budget.bytes == 2_000_000
    assert task.model.architecture == "cnn"
    assert task.parts.local == ("layers.2.*",)
    settings = task.settings(TrainSettings(local_steps=10, learning_rate=0.1))
    assert settings == TrainSettings(
        local_steps=10, learning_rate=1, schedule="cosine", momentum_kind="quasi_global", seed=7
    )


def test_a_model_of_an_owners_own_is_said_as_an_architecture() -> None:
    task = task_from({"name": "x", "data": "y", "model": {"architecture": "clinic.models:unet"}}, "here")
    assert (task.model.architecture, task.model.factory) == ("own", "clinic.models:unet")
    assert task_from(msgspec.to_builtins(task), "here") == task


def test_what_is_left_out_has_a_default() -> None:
    assert task_from({"name": "x", "data": "y"}, "here") == Task(name="x", data="y")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"nmae": "x"}, "t: there is no key 'nmae'. Did you mean 'name'?"),
        ({"model": {"hiden": 3}}, "t: there is no key 'model.hiden'. Did you mean 'model.hidden'?"),
        ({"train": {"learnign_rate": 3}}, "no key 'train.learnign_rate'. Did you mean 'train.learning_rate'?"),
        ({"train": {"learning_rate": 0}}, "t: train.learning_rate: Expected `float` > 0.0"),
        ({"train": {"schedule": "cosin"}}, "t: train.schedule cannot be 'cosin'. Did you mean 'cosine'?"),
        ({"train": {"momentum_kind": "nope"}}, "train.momentum_kind cannot be 'nope'. Valid here: plain, quasi_global"),
        ({"train": {"dp": {"epsilom": 3}}}, "t: there is no key 'train.dp.epsilom'. Did you mean 'train.dp.epsilon'?"),
        ({"policy": "robots"}, "t: policy cannot be 'robots'. Did you mean 'robust'?"),
        ({"policy": "private", "averaging": {"codec": "int8"}}, "t: averaging.codec: a private task has none"),
        (
            {"policy": "private", "averaging": {"peers": 8}},
            "averaging.peers is for the policy 'robust'; this one is 'pri",
        ),
        ({"policy": "robust", "averaging": {"group_size": 8}}, "t: averaging.group_size: a robust task has no groups"),
        ({"train": 3}, "t: train: Expected `object`, got `int`"),
        ({"model": {"architecture": "mpl"}}, "t: model.architecture cannot be 'mpl'. Did you mean 'mlp'?"),
        (
            {"model": {"architecture": "my module:net"}},
            "model.architecture: 'my module:net' is no package.module:factory",
        ),
        ({"model": {"architecture": "own"}}, "model.architecture: '' is no package.module:factory"),
        ({"model": {"factory": "mine:net"}}, "t: model.factory: 'mlp' has none; give one of the two"),
        ({"model": 3}, "t: model: Expected `object`, got `int`"),
        ({"model": {"classes": 1}}, "t: model.classes: Expected `int` >= 2"),
        ({"averaging": {"codec": "int9"}}, "t: averaging.codec cannot be 'int9'. Did you mean 'int"),
        ({"averaging": {"group_size": 1}}, "t: averaging.group_size: Expected `int` >= 2"),
        ({"budget": {"rounds": 0}}, "t: budget.rounds: Expected `int` >= 1"),
        ({"budget": {"rounds": "ten"}}, "t: budget.rounds: Expected `int`, got `str`"),
        ({"budget": {"bytes": "2 loads"}}, "'2 loads' is not a size"),
        ({"budget": {"seconds": -1}}, "t: budget.seconds: Expected `float` > 0.0"),
        ({"stop": {"accuracy": 97}}, "t: stop.accuracy: Expected `float` <= 1.0"),
        ({"stop": {"no_beter": 97}}, "there is no key 'stop.no_beter'. Did you mean 'stop.no_better'?"),
        ({"parts": {"local": "heads.*"}}, "t: parts.local: Expected `array`, got `str`"),
        ({"serve": {"copies": 0}}, "t: serve.copies: Expected `int` >= 1"),
        ({"objective": "msee"}, "t: objective cannot be 'msee'. Did you mean 'mse'?"),
        ({"train": {"optimiser": "adamm"}}, "t: train.optimiser cannot be 'adamm'. Did you mean 'adam"),
        (
            {"train": {"optimiser": "adam", "momentum": 0.9}},
            "t: train.momentum is for the optimiser 'sgd'; this one is 'adam', which has beta1, beta2, eps",
        ),
        ({"train": {"beta1": 0.9}}, "t: train.beta1 is for the optimiser 'adam' and 'adamw'; this one is 'sgd'"),
        ({"objective": "mse", "model": {"classes": 3}}, "t: model.classes is for the objective 'cross_entropy'"),
        ({"objective": "mse", "stop": {"accuracy": 0.9}}, "t: stop.accuracy: of values none is right or wrong. Did"),
        ({"stop": {"r2": 0.9}}, "t: stop.r2 is for values; this objective is 'cross_entropy'. Did you mean 'stop.acc"),
        ({"name": "A b"}, "'A b' cannot name a task"),
        ({"distil": {"techer": "a"}}, "t: there is no key 'distil.techer'. Did you mean 'distil.teacher'?"),
        ({"distil": {"teacher": "a", "labels": 2}}, "t: distil.labels: Expected `float` <= 1.0"),
        ({"distil": {"teacher": "a"}, "train": {"dp": {"epsilon": 1, "delta": 0.1}}}, "t: train.dp: records that a"),
        ({"train": {"quantise": "int5"}}, "t: train.quantise cannot be 'int5'. Did you mean 'int"),
        ({"data": "A b"}, "t: data: Expected `str` matching regex"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(said: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError) as raised:
        task_from({"name": "x", "data": "y", **said}, "t")
    assert why in str(raised.value)


@pytest.mark.parametrize("key", ["name", "data"])
def test_what_every_task_has_is_asked_for(key: str) -> None:
    with pytest.raises(UsageError, match=f"the key '{key}' is missing"):
        task_from({other: "x" for other in ("name", "data") if other != key}, "t")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    for content, why in ((b"name = ", "not a readable TOML"), (b"\xff", "not a readable"), (None, "cannot be read")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=why):
            load_task(path if content is not None else tmp_path / "none.toml")
    path.write_text("#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(UsageError, match="it is no task's file"):
        load_task(path)


def test_a_file_is_checked_without_loading_torch() -> None:
    code = "import sys, lepton.node.learning.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_file_on_the_page_about_learning_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "learning.md").read_text("utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "task.toml").write_text(shown)
    task = load_task(tmp_path / "task.toml")
    assert task.budget.bytes == 50_000_000
    assert task.averaging.members == 4
