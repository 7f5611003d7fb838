"""Who averaged with nobody says so, and whose last round was not agreed ends with a model that others have too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lepton.gossip.events import Report
from lepton.node.learning.learner import Learner
from lepton.node.learning.settings import TrainSettings
from lepton.node.shapes import Vector

from .fakes import parts, running, until

QUICK = TrainSettings(local_steps=2)


async def test_a_node_that_trains_alone_is_done_and_says_that_it_averaged_with_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, "a", data={"a": {"digits": parts(1)[0]}}) as world:
        a = world.nodes["a"]
        result = await a.train("digits", data="digits", rounds=3, settings=QUICK, members_min=1)
        (said,) = result.nodes.values()
        assert (said.state, said.reason) == ("done", "it averaged with nobody: nobody else took part")


@pytest.mark.parametrize("failing", ["b", "ab"])
async def test_whose_last_round_was_not_agreed_ends_with_the_model_of_one_whose_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    rounds, ends, learners = 6, dict[str, Vector](), dict[str, Learner]()
    finished = Learner._finished

    async def fail_at_the_end(self: Learner, round_: int, vector: Vector, report: Report) -> None:
        name = next(name for name, node in world.nodes.items() if node.mesh is self._mesh)
        learners[name] = self
        if round_ == rounds - 1:
            ends[name] = vector
            if name in failing:
                vector, report = vector + np.float32(0.01), replace(report, agreed=False, reference=b"")
        await finished(self, round_, vector, report)

    monkeypatch.setattr(Learner, "_finished", fail_at_the_end)
    monkeypatch.setattr("lepton.node.learning.learner._LAST_MODEL_S", 0.5 if failing == "ab" else 30.0)
    data = {name: {"digits": part} for name, part in zip("ab", parts(2), strict=True)}
    async with running(tmp_path, "a", "b", data=data) as world:
        result = await world.nodes["a"].train("digits", data="digits", rounds=rounds, settings=QUICK)
        assert {said.state for said in result.nodes.values()} == {"done"}
        assert {said.reason for said in result.nodes.values()} == {""}
        ended = learners["b"]._trainer.vector()
        await until(lambda: learners["b"].progress.state == "done")
        if failing == "b":
            assert np.array_equal(ended, ends["a"])
            assert np.array_equal(ended, learners["a"]._trainer.vector())
            assert "took the model of" in learners["b"].progress.notes[-1]
            loaded = learners["b"]._keeping._checkpoints.load_latest()
            assert loaded is not None
            assert np.array_equal(loaded.checkpoint.vector, ended)
        else:  # nobody has a model to give: each keeps its own
            assert np.array_equal(ended, ends["b"] + np.float32(0.01))
            assert not learners["b"].progress.notes
