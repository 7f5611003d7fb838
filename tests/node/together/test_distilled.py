"""A teacher that no device here could hold alone teaches a student on another, and one that dies changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from lepton.mesh.errors import UsageError
from lepton.node import Node
from lepton.node.compression import Fit, distil, distil_from_mesh, distil_texts_from_mesh
from lepton.node.compression.decoder import Decoder
from lepton.node.inference.requests import Requests
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import train_alone
from lepton.node.models import build
from lepton.node.shapes import ModelSpec
from lepton.node.texts import TextModel

from .fakes import DIGITS, PATIENCE_S, World, running, samples

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260K/hf"
LARGE = ModelSpec(architecture="mlp", inputs=(64,), classes=10, hidden=96, hidden_activation="relu")
HALF = "26kB"  # one of the large model's two layers
PART = "1MB"  # of 1.2 MB of weights and 0.3 MB of caches
SMALL = "mlp:hidden=16,hidden_activation=relu"
X, X_TEST = torch.from_numpy(DIGITS.x), torch.from_numpy(samples(359))


class Hosts:
    """Nodes that serve, each of which can be made to die."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self._world, self._nursery = world, nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(self, name: str, memory: str) -> Node:
        await self._nursery.start(self._host, name, memory)
        return self._world.nodes[name]

    async def _host(self, name: str, memory: str, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._scopes[name]:
            async with self._world.node(name, memory=memory):
                task_status.started()
                await trio.sleep_forever()

    def kill(self, name: str) -> None:
        self._scopes[name].cancel()

    def end(self) -> None:
        for name in self._scopes:
            self.kill(name)


def one_of(world: World, serves: Callable[[Node], object]) -> str:
    return next(name for name, node in world.nodes.items() if serves(node))


async def test_a_student_learns_from_a_teacher_on_two_others_of_which_one_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_alone(LARGE, DIGITS, TrainSettings(learning_rate=0.1), 1200)
    teacher = build(LARGE)
    teacher.load_state_dict(trained.tensors())
    asked: list[str] = []
    ask = Requests._ask
    said = Fit(steps=300, rate=1e-2)

    async with running(tmp_path, "a", memory="1kB") as world, trio.open_nursery() as nursery:
        hosts, a = Hosts(world, nursery), world.nodes["a"]
        for name in "bcd":
            await hosts.start(name, HALF)
        await world.acquainted()
        a.weights.publish("large", LARGE, teacher, version=1, copies=1)
        await a.wait_served("large")
        assert not any(node.serving.stages().get("large") == (0, 2) for node in world.nodes.values())

        async def and_one_dies(self: Requests, *given: Any) -> None:
            asked.append(given[0])
            if len(asked) == 2:
                hosts.kill(one_of(world, lambda node: node.serving.stages().get("large") == (0, 1)))
            await ask(self, *given)

        monkeypatch.setattr(Requests, "_ask", and_one_dies)
        with trio.fail_after(PATIENCE_S):
            taught = await distil_from_mesh(a, "large", SMALL, X, fit=said)
        assert len(world.nodes) == 3
        assert taught.step.teacher == "mesh:large"
        wanted = distil(teacher, SMALL, X, fit=said)
        with torch.inference_mode():
            torch.testing.assert_close(taught.module(X_TEST), wanted.module(X_TEST), rtol=0.05, atol=0.05)
            right = taught.module(X_TEST).argmax(1).numpy() == DIGITS.y_test
        assert right.mean() > 0.93
        with pytest.raises(UsageError, match="was trained for 'cross_entropy'"):
            await distil_from_mesh(a, "large", SMALL, X, objective="mse")
        with pytest.raises(UsageError, match="No model 'lagre'"):
            await distil_from_mesh(a, "lagre", SMALL, X)
        hosts.end()


@pytest.mark.skipif(not STORIES.exists(), reason="the trained model of ../shared/data is not here")
async def test_a_language_model_over_two_devices_writes_what_a_student_of_its_layers_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    generate = TextModel.generate

    async with running(tmp_path, "a", memory="1kB") as world, trio.open_nursery() as nursery:
        hosts, a = Hosts(world, nursery), world.nodes["a"]
        b, *_ = [await hosts.start(name, PART) for name in "bcd"]
        await world.acquainted()
        await b.serve(STORIES, name="tales", precision="float32", sessions=4, positions=64)
        await a.wait_served("tales", timeout_s=PATIENCE_S)

        def and_one_dies(self: TextModel, prompt: Any, **drawing: Any) -> Any:
            written.append(prompt)
            if len(written) == 7:  # four are under way
                (deployment,) = a.status()["deployments"]
                serving = {device for stage in deployment["stages"] for device in stage["devices"]}
                assert len(serving) == 2
                hosts.kill(min(serving - {"b"}))
            return generate(self, prompt, **drawing)

        monkeypatch.setattr(TextModel, "generate", and_one_dies)
        with trio.fail_after(PATIENCE_S):
            prompts = ["", "Once upon a time"] * 8
            taught = await distil_texts_from_mesh(
                a, "tales", "layers=3", prompts, tokens_max=40, fit=Fit(steps=40, batch_size=8)
            )
        assert len(written) == 16
        assert len(world.nodes) == 3
        assert isinstance(taught.module, Decoder)
        assert taught.module.config.blocks == 3
        assert sum(taught.losses[-5:]) < 0.85 * sum(taught.losses[:5])
        manifest = await a.blobs.manifest("tales", a.view.deployments()["tales"].manifest)
        here = [all(a.blobs.store.has(ref) for ref in layer) for layer in manifest.layers]
        assert here == [True, True, False, True, False, True, True]  # blocks 0, 2 and 4 of five, and both ends
        with pytest.raises(UsageError, match="teaches by its texts"):
            await distil_from_mesh(a, "tales", SMALL, X)
        with pytest.raises(UsageError, match="is no language model"):
            await distil_texts_from_mesh(a, "tales", SMALL, prompts)
        with pytest.raises(UsageError, match="No language model 'tails'"):
            await distil_texts_from_mesh(a, "tails", "layers=3", prompts)
        hosts.end()
