"""Private and robust tasks go on when a member leaves in the middle, and take in one that comes late."""

from pathlib import Path

import pytest
import trio
from lepton.node import Node
from lepton.node.learning.learner import Learner
from lepton.node.learning.task import task_from

from .fakes import parts, running, until


def round_of(node: Node) -> int:
    progress = node.progress("digits")
    return progress.round if progress is not None else -1


@pytest.mark.parametrize("policy", ["private", "robust"])
async def test_one_leaves_in_the_middle_and_another_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Five begin, one of them leaves; when a sixth has come, all five who are here finish."""
    rounds, late_is_in = 80, trio.Event()
    one_round = Learner._one_round

    async def held(self: Learner, exchange: object) -> None:
        if self._round >= 40:  # so that the late one comes in the middle, whatever the speed of this machine
            await late_is_in.wait()
        await one_round(self, exchange)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "_one_round", held)
    data = {name: {"digits": part} for name, part in zip("abcdef", parts(6), strict=True)}
    said = {
        "name": "digits", "data": "digits", "policy": policy, "budget": {"rounds": rounds}, "train": {"local_steps": 2},
    }  # fmt: skip
    async with running(tmp_path, *"abcf", data=data) as world, trio.open_nursery() as nursery:
        a = world.nodes["a"]

        async def leave_early(task_status: trio.TaskStatus[None]) -> None:
            async with world.node("d", data=data["d"]) as d:
                await until(lambda: sum("digits" in peer["data"] for peer in a.status()["peers"]) == 5)
                task_status.started()
                await until(lambda: round_of(d) >= 10)

        async def come_late() -> None:
            await until(lambda: round_of(a) >= 20)
            async with world.node("e", data=data["e"]) as e:
                await until(lambda: (said := e.trainers("digits", 1).get(e.mesh.me)) and said.state == "training")
                late_is_in.set()
                await until(lambda: [said.state for said in e.trainers("digits", 1).values()] == ["done"] * 5)
                mine = e.trainers("digits", 1)[e.mesh.me]
                assert 0 < mine.first_round < mine.round == rounds
                assert mine.accuracy is not None
                assert mine.accuracy > 0.6

        await nursery.start(leave_early)
        nursery.start_soon(come_late)
        result = await a.train(task_from(said, "test"))
        assert result.rounds == rounds
        await a.wait_served("digits")
