"""Nodes train a model against rounding, and what is sent, stored and served is the rounded one."""

from pathlib import Path

import numpy as np
import pytest
from lepton.node.compression.straight import Straight
from lepton.node.learning.settings import Quantise, TrainSettings, bits_of
from lepton.node.models import build, load_vector, parameter_vector
from lepton.node.picture import MODEL, ModelRecord
from lepton.node.shapes import layer_sizes_bytes

from .fakes import DIGITS, parts, running, samples, unsharded


@pytest.mark.parametrize(("quantise", "share"), [("int8", 0.31), ("int4", 0.19)])
async def test_a_model_that_was_trained_rounded_is_served_rounded(
    quantise: Quantise, share: float, tmp_path: Path
) -> None:
    data = {name: {"digits": part} for name, part in zip("ab", parts(2), strict=True)}
    settings = TrainSettings(quantise=quantise)
    async with running(tmp_path, "a", "b", data=data) as world:
        a, b = world.nodes.values()
        result = await a.train("digits", data="digits", rounds=40, settings=settings)
        assert result.accuracy_worst > 0.85
        await b.wait_served("digits")
        answers = await b.predict("digits", samples(359))
        (record,) = [said for _, said in a.mesh.live(MODEL, ModelRecord)]
        assert sum(ref.size_bytes for ref in record.layers) < share * sum(layer_sizes_bytes(record.spec))
        own = result.nodes[a.mesh.me]
        assert (answers.argmax(axis=1) == DIGITS.y_test).mean() == pytest.approx(own.accuracy)
        trainer = a.tasks._learners["digits"]._trainer
        whole = build(record.spec)
        load_vector(whole, trainer.vector())
        Straight(whole, bits_of(settings)).settle()
        np.testing.assert_allclose(answers, unsharded(whole, samples(359)), atol=1e-5)
        assert (parameter_vector(whole) != trainer.vector()).mean() > 0.9
