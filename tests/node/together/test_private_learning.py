"""Nodes that train with differential privacy: what they say of it, and what they do when their budget is used up."""

from pathlib import Path

import msgspec
import pytest
import trio
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.learning.ledger import Ledger, noise_for
from lepton.node.learning.privacy import sampling_rate
from lepton.node.learning.settings import DpSettings, TrainSettings
from lepton.node.learning.task import load_task
from lepton.node.learning.trainer import Trainer

from .fakes import MLP, World, parts, running, until

DP = DpSettings(epsilon=8, delta=1e-4)
SETTINGS = TrainSettings(local_steps=2, dp=DP)


def spend_all(path: Path, records: int, rounds: int) -> Ledger:
    """Fill a node's account as all rounds of a task would."""
    rate = sampling_rate(SETTINGS.batch_size, records)
    noise = noise_for(DP, rate=rate, records=records, steps=2 * rounds)
    path.parent.mkdir(parents=True)
    ledger = Ledger(path, DP)
    assert ledger.spend(noise=noise, rate=rate, steps=2 * rounds)
    return ledger


async def test_an_epsilon_is_said_and_no_loss_and_who_has_spent_it_averages_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = parts(2)
    spent = spend_all(tmp_path / "b" / "privacy" / "digits" / "1.json", len(two.y), 15)
    taken: dict[int, int] = {}
    train = Trainer.run_steps

    def run_steps(trainer: Trainer, steps: int) -> float:
        written = Ledger(tmp_path / "a" / "privacy" / "digits" / "1.json", DP)
        assert written.steps >= trainer.step + steps  # before they are taken, on disk
        taken[trainer.samples] = taken.get(trainer.samples, 0) + steps
        return train(trainer, steps)

    monkeypatch.setattr(Trainer, "run_steps", run_steps)
    async with running(tmp_path, "a", "b", data={"a": {"digits": one}, "b": {"digits": two}}) as world:
        a, b = world.nodes.values()
        result = await a.train("digits", data="digits", model=MLP, rounds=15, settings=SETTINGS)
        ours, theirs = (result.nodes[node.mesh.me] for node in (a, b))
        assert [said.state for said in (ours, theirs)] == ["done", "done"]
        assert [said.delta for said in (ours, theirs)] == [1e-4, 1e-4]
        assert [said.loss for said in (ours, theirs)] == [None, None]
        assert ours.epsilon is not None
        assert 7.9 < ours.epsilon <= 8  # the noise was made for these rounds
        assert ours.reason == ""
        assert theirs.epsilon == spent.epsilon
        assert theirs.reason == "its privacy budget is used up; it averages on without training"
        assert taken == {len(one.y): 30}
        assert Ledger(tmp_path / "a" / "privacy" / "digits" / "1.json", DP).steps == 30


async def test_the_account_goes_on_where_the_node_does(tmp_path: Path) -> None:
    world, data = World(tmp_path), {"digits": parts(1)[0]}
    path = tmp_path / "a" / "privacy" / "digits" / "1.json"
    async with world.node("a", data=data) as node, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: node.train("digits", data="digits", model=MLP, rounds=5000, settings=SETTINGS))
        await until(lambda: (said := node.progress("digits")) is not None and said.round >= 5)
        nursery.cancel_scope.cancel()
    before = Ledger(path, DP)
    assert before.steps >= 10
    async with world.node("a", data=data) as node:
        await until(lambda: (said := node.progress("digits")) is not None and said.round > before.steps // 2)
        said = node.progress("digits")
        assert said is not None
        assert said.epsilon is not None
        assert said.epsilon > before.epsilon
    checkpoints = sorted((tmp_path / "a" / "tasks" / "digits" / "1").iterdir())
    assert Ledger(path, DP).steps >= before.steps + 2
    path.unlink()
    async with world.node("a", data=data) as node:  # what it cost is not known any more
        await until(lambda: [said.state for said in node.trainers("digits", 1).values()] == ["failed"])
        assert "what they cost in privacy is not known any more" in node.trainers("digits", 1)[node.mesh.me].reason
    assert sorted((tmp_path / "a" / "tasks" / "digits" / "1").iterdir()) == checkpoints


async def test_what_would_tell_of_the_records_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, "a", data={"a": {"digits": parts(1)[0]}}) as world:
        (a,) = world.nodes.values()
        with pytest.raises(UsageError, match="A baseline trains on the same records again"):
            await a.train("x", data="digits", model=MLP, rounds=3, settings=SETTINGS, baseline=True)
        careless = msgspec.structs.replace(SETTINGS, dp=DpSettings(epsilon=8, delta=0.1))
        with pytest.raises(LeptonError, match=r"delta 0\.1 of \d+ records would allow giving one of them away whole"):
            await a.train("x", data="digits", model=MLP, rounds=3, settings=careless)


def test_a_tasks_file_asks_for_it_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text('name = "x"\ndata = "y"\n[train]\ndp = { epsilon = 8, delta = 1e-5 }\n')
    assert load_task(path).settings(TrainSettings()).dp == DpSettings(epsilon=8, delta=1e-5)
    path.write_text('name = "x"\ndata = "y"\n[train]\ndp = { epsilom = 8, delta = 1e-5 }\n')
    with pytest.raises(UsageError, match=r"no key 'train\.dp\.epsilom'.* Did you mean 'train\.dp\.epsilon'"):
        load_task(path)
    path.write_text('name = "x"\ndata = "y"\n[train]\ndp = { epsilon = -1, delta = 1e-5 }\n')
    with pytest.raises(UsageError, match=r"train\.dp"):
        load_task(path)
    path.write_text('name = "x"\ndata = "y"\nbaseline = true\n[train]\ndp = { epsilon = 1, delta = 1e-5 }\n')
    with pytest.raises(UsageError, match="leave one out"):
        load_task(path)
