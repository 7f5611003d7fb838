"""A compressed model is served from its packed weights: each node fetches them as they are, and unpacks its layers."""

from pathlib import Path

import numpy as np
import torch
from lepton.node.compression import quantise
from lepton.node.compression.served import save_served
from lepton.node.models import Chain, build
from lepton.node.shapes import ModelSpec

from .fakes import running, samples, until


async def test_a_compressed_model_is_answered_by_two_that_hold_half_of_it_each(tmp_path: Path) -> None:
    chain = build(ModelSpec(architecture="mlp", inputs=(64,), classes=3, hidden=64, objective="mse"))
    small = quantise(chain, bits=4, data=torch.from_numpy(samples(50)), error_max=1.0)
    folder = save_served(small, torch.from_numpy(samples(2)), tmp_path / "small", objective="mse").path
    assert (folder / "model.safetensors").stat().st_size < 4000
    assert isinstance(small.module, Chain)
    wanted = small.module.probabilities(torch.from_numpy(samples(9))).numpy()
    async with running(tmp_path, "a", "b", memory="17kB") as world:  # of the first layer unpacked: 16,640 bytes
        a, b = world.nodes.values()
        await a.serve(folder, name="small")
        await until(lambda: sorted(run for n in (a, b) for run in n.serving.stages().values()) == [(0, 1), (1, 2)])
        record = b.view.deployments()["small"]
        assert sum(record.weights_bytes) == 4 * (64 * 64 + 64 + 64 * 3 + 3)  # what it takes once it is unpacked
        for node in (a, b):
            np.testing.assert_allclose(await node.predict("small", samples(9)), wanted, rtol=1e-5, atol=1e-6)
            assert await node.requests.objective("small") == "mse"
        assert await a.requests.objective("nothing") is None
