"""A model of the mesh teaches a task's model on each node's own samples, which need no labels."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node import Node
from lepton.node.blobs.layers import read_layer_blob
from lepton.node.inference.requests import Requests
from lepton.node.learning.data import unlabelled
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.task import task_from
from lepton.node.learning.trainer import train_alone
from lepton.node.models import Chain, build, load_vector
from lepton.node.shapes import ModelSpec, layer_schema

from .fakes import DIGITS, parts, running, samples, until

LARGE = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=96, hidden_activation="relu")
MEMORY = "26kB"  # the teacher's first layer and not the rest; the whole student
WHOLE = "100kB"
X_TEST, Y_TEST = samples(359), DIGITS.y_test


@pytest.fixture(scope="module")
def teacher() -> Chain:
    trained = train_alone(LARGE, DIGITS, TrainSettings(learning_rate=0.1), 1200)
    assert trained.evaluate().accuracy > 0.96
    chain = build(LARGE)
    load_vector(chain, trained.vector())
    return chain


def task(**changes: Any) -> Any:
    said = {
        "name": "small", "data": "digits", "model": {"architecture": "mlp", "hidden": 24, "hidden_activation": "relu"},
        "budget": {"rounds": 30}, "distil": {"teacher": "large"}, "averaging": {"members": 2},
    }  # fmt: skip
    return task_from({**said, **changes}, "the test's task")


async def with_teacher(node: Node, chain: Chain) -> None:
    node.weights.publish("large", LARGE, chain, version=1, copies=1)
    await node.wait_served("large")


async def test_nodes_learn_from_a_teacher_that_none_of_them_holds_without_a_label(
    tmp_path: Path, teacher: Chain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = parts(2)
    np.savez(tmp_path / "x.npz", x=one.x)
    data: dict[str, dict[str, Any]] = {
        "a": {"digits": tmp_path / "x.npz"}, "b": {"digits": unlabelled(two.x, 10, two.x_test, two.y_test)},
    }  # fmt: skip
    asked: list[int] = []
    predict = Requests.predict

    async def counted(self: Requests, name: str, inputs: Any, **options: Any) -> Any:
        asked.append(len(inputs[0]))
        return await predict(self, name, inputs, **options)

    monkeypatch.setattr(Requests, "predict", counted)
    with caplog.at_level(logging.WARNING):
        async with running(tmp_path, "a", "b", "c", data=data, memory=MEMORY) as world:
            a, b, c = world.nodes.values()
            with pytest.raises(UsageError, match="The mesh serves no model 'large'"):
                await a.train(task())
            await with_teacher(c, teacher)
            assert not any([await node.requests.is_whole_here("large") for node in world.nodes.values()])
            with pytest.raises(LeptonError, match="samples leave no node, and the teacher 'large' is not whole here"):
                await a.train(task(name="secret", policy="private", averaging={"members": 3}))
            result = await a.train(task())
            said = result.nodes[b.mesh.me]
            assert said.accuracy is not None
            assert said.accuracy > 0.9  # on labels that nobody trained on
            assert sum(asked) == len(one.x) + len(two.x)  # once each, and no test sample that has a label
            await b.wait_served("small")
            answers = await c.predict("small", X_TEST)
            assert (answers.argmax(1) == Y_TEST).mean() == pytest.approx(said.accuracy)
            with pytest.raises(LeptonError, match=r"have no labels|has no array `y`"):
                await a.train("plain", data="digits", classes=10, rounds=2)
    assert "from these data a model can only be taught by another" in caplog.text
    assert "143 test samples have no label: the teacher's word counts as one" in caplog.text


async def test_where_the_teacher_is_whole_nothing_leaves_and_a_private_task_may_have_one(
    tmp_path: Path, teacher: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = parts(3)
    data = {name: {"digits": part} for name, part in zip("abc", shares, strict=True)}
    routes: list[tuple[str, tuple[str, ...]]] = []
    ask = Requests._ask

    async def seen(self: Requests, name: str, version: int, token: str, asked: Any, x: Any) -> None:
        routes.append((self._mesh.me, asked.route))
        await ask(self, name, version, token, asked, x)

    monkeypatch.setattr(Requests, "_ask", seen)
    async with running(tmp_path, "a", "b", "c", data=data, memory=WHOLE) as world:
        nodes = list(world.nodes.values())
        nodes[0].weights.publish("large", LARGE, teacher, version=1, copies=3)
        for node in nodes:
            await until(node.serving.stages)
        result = await nodes[0].train(task(policy="private", averaging={"members": 3}, budget={"rounds": 10}))
        assert len(result.nodes) == 3
        assert {said.state for said in result.nodes.values()} == {"done"}
        assert result.accuracy_worst > 0.7
        assert routes
        assert all(set(route) == {me} for me, route in routes)


async def test_a_restarted_node_does_not_ask_again(tmp_path: Path, teacher: Chain) -> None:
    data = {"a": {"digits": parts(2)[0]}}
    async with running(tmp_path, "a", data=data, memory=WHOLE) as world:
        (a,) = world.nodes.values()
        await with_teacher(a, teacher)
        await a.train(task(budget={"rounds": 2}, averaging={"members": 1}, distil={"teacher": "large", "labels": 0.5}))
        folder = a.home.folder("tasks", "small", "1")
        record = next(said for _, said in a.tasks._stated("small", 1))
        dataset = a.tasks._dataset("digits", 10, "cross_entropy", True)
        before = a.requests.counts.asked
        again = await a.tasks._teachers.taught("small", record, dataset, folder)
        assert a.requests.counts.asked == before
        assert again.taught is not None
        assert again.taught.shape == (len(dataset.x), 10)
        assert (again.taught.argmax(1) == dataset.y).mean() > 0.95
        other = replace(dataset, x=dataset.x[::-1].copy(), y=dataset.y[::-1].copy())
        turned = await a.tasks._teachers.taught("small", record, other, folder)
        assert turned.taught is not None
        np.testing.assert_allclose(turned.taught[::-1], again.taught, atol=1e-5)
        assert a.requests.counts.asked > before


async def test_a_model_is_taught_pruned_and_rounded_in_one_task(tmp_path: Path, teacher: Chain) -> None:
    data = {name: {"digits": unlabelled(p.x, 10, p.x_test, p.y_test)} for name, p in zip("ab", parts(2), strict=True)}
    async with running(tmp_path, "a", "b", data=data, memory=WHOLE) as world:
        a, b = world.nodes.values()
        await with_teacher(a, teacher)
        pruned = {"share": 0.5, "from_round": 10, "to_round": 20}
        result = await a.train(task(prune=pruned, train={"quantise": "int8"}))
        assert result.accuracy_worst > 0.85
        await b.wait_served("small")
        spec, layers = await b.weights.whole("small")
        first = read_layer_blob(layers[0], layer_schema(spec, 0))["weight"]
        assert 0.4 < (first == 0).mean() < 0.75
        assert len(layers[0]) < 0.4 * first.nbytes
        answers = await b.predict("small", X_TEST)
        assert (answers.argmax(1) == Y_TEST).mean() == pytest.approx(result.nodes[a.mesh.me].accuracy)
