"""Traced models are answered by several nodes, of which only one had the files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lepton.mesh.errors import LinkError, UsageError
from lepton.node import Node
from lepton.node.deployments import DEPLOYMENT
from lepton.node.inference.session import Config
from lepton.node.programs.description import Description
from lepton.node.programs.folder import save
from lepton.node.programs.publishing import deployment_of, publish
from lepton.node.programs.trace import trace
from torch import Tensor, nn

from .fakes import running, until


class Words(nn.Module):
    """Looks words up and mixes them: two inputs of different kinds, two results."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(50, 32), nn.Linear(32, 40), nn.Linear(40, 3)

    def forward(self, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mixed = (self.words(ids) * weight.unsqueeze(-1)).sum(1)
        h = torch.relu(self.first(mixed))
        return self.second(h), h


def deploy(node: Node, module: nn.Module, folder: Path, name: str = "words") -> None:
    example = (torch.randint(0, 50, (2, 5)), torch.rand(2, 5))
    traced = trace(module, example, sizes={"n": (2, 64)}, dims=[{1: "n"}, {1: "n"}])
    found = save(traced, folder, Description(source="a test"))
    record = deployment_of(found, publish(node.blobs.store, found), version=1, replicas=1)
    node.mesh.publish(DEPLOYMENT, name, record, durable=True)


async def test_a_traced_model_is_answered_by_two_that_hold_half_of_it_each(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Words().eval()
    async with running(tmp_path, "a", "b", memory="9kB") as world:
        a, b = world.nodes.values()
        deploy(a, module, tmp_path / "model")
        await until(lambda: sorted(run for n in (a, b) for run in n.serving.stages().values()) == [(0, 1), (1, 3)])
        rng = np.random.default_rng(2)
        for node, count, length in ((a, 1, 5), (b, 300, 9)):
            ids, weight = rng.integers(0, 50, (count, length)), rng.random((count, length), dtype=np.float32)
            with torch.no_grad():
                wanted = module(torch.from_numpy(ids), torch.from_numpy(weight))
            found = await node.predict_all("words", ids.astype(np.int32), weight)
            for mine, its in zip(found, wanted, strict=True):
                np.testing.assert_allclose(mine, its.numpy(), rtol=1e-5, atol=1e-5)

        ids, weight = ids[:3], weight[:3]
        for inputs, said in (
            ((ids,), r"takes 2 arrays \(ids, weight\)"),
            ((ids, weight[:, :4]), "'weight' is float32"),
            ((ids[:, :1], weight[:, :1]), "n is 2 to 64"),
            ((weight, weight), "'ids' of this model is int64; this is float32"),
            ((ids, weight * np.nan), "not finite"),
            ((ids[:0], weight[:0]), "at least one sample"),
        ):
            with pytest.raises(UsageError, match=said):
                await a.predict_all("words", *inputs)
        with pytest.raises(UsageError, match="gives 2 arrays"):
            await a.predict("words", ids, weight)

        b.requests._config = Config(attempt_timeout_s=5.0, deadline_s=0.5)
        with pytest.raises(LinkError, match="index out of range"):  # only the stage knows how many words there are
            await b.predict_all("words", ids + 50, weight)
        assert (await a.predict_all("words", ids, weight))[0].shape == (3, 3)  # and it goes on


async def test_a_module_is_served_from_python_and_refused_where_it_cannot_be(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    async with running(tmp_path, "a", "b") as world:
        a, b = world.nodes.values()
        await a.serve_module(module, [torch.zeros(1, 4)], name="net")
        await b.wait_served("net")
        x = np.random.default_rng(1).random((5, 4), dtype=np.float32)
        with torch.no_grad():
            np.testing.assert_allclose(await b.predict("net", x), module(torch.from_numpy(x)).numpy(), atol=1e-5)
        with pytest.raises(UsageError, match="is no encoder of texts"):
            await b.embed("net", ["a"])
        with pytest.raises(UsageError, match="No model 'nut' is served"):
            await b.predict("nut", x)
        a.unserve("net")
        await until(lambda: not any(node.serving.stages() for node in (a, b)))
