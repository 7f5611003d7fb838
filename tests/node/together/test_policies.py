"""Tasks under each policy: private rounds show sums alone, a robust one shrugs off a liar, contradictions are told."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node import Dataset
from lepton.node.learning import keeping
from lepton.node.learning.exchange import Exchange
from lepton.node.learning.learner import Learner
from lepton.node.learning.policies import check_policy
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.task import task_from
from lepton.node.picture import TaskRecord
from lepton.node.shapes import Vector

from .fakes import DIGITS, MLP, PATIENCE_S, World, parts, running, samples, until

QUICK = {"local_steps": 2}


def task(policy: str, rounds: int, **said: Any) -> Any:
    found = {"name": "digits", "data": "digits", "policy": policy, "budget": {"rounds": rounds}, "train": QUICK}
    return task_from({**found, **said}, "test")


def datasets(count: int) -> dict[str, dict[str, Dataset]]:
    return {name: {"digits": part} for name, part in zip("abcdef", parts(count), strict=False)}


async def test_private_rounds_give_the_exact_mean_and_say_which_policy_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: dict[int, list[Vector]] = {}
    came: dict[int, list[Vector]] = {}
    begin, finish = Exchange.begin, Learner._finished

    def note(exchange: Any, ready: Any) -> None:
        offered.setdefault(ready.round, []).append(ready.vector.copy())
        begin(exchange, ready)

    async def noted(self: Learner, round_: int, vector: Vector, report: Any) -> None:
        came.setdefault(round_, []).append(vector.copy())
        await finish(self, round_, vector, report)

    monkeypatch.setattr(Exchange, "begin", note)
    monkeypatch.setattr(Learner, "_finished", noted)
    async with running(tmp_path, *"abcd", data=datasets(4)) as world:
        a = world.nodes["a"]
        result = await a.train(task("private", 6))
        assert len(result.nodes) == 4
        assert {node.reason for node in result.nodes.values()} == {""}
        assert a.status()["tasks"][0]["policy"] == "private"
        for round_ in range(6):
            exact = np.mean(offered[round_], axis=0, dtype=np.float64)
            for vector in came[round_]:
                np.testing.assert_allclose(vector, exact, atol=2**-15)
        await world.nodes["b"].wait_served("digits")


async def test_two_are_too_few_for_a_private_task_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, *"ab", data=datasets(2)) as world:
        a, b = world.nodes.values()
        with pytest.raises(UsageError, match=r"It cannot begin with 2: a private task needs 3 members"):
            await a.train(task("private", 3))
        asked = task("private", 3, averaging={"members": 3, "start_wait_s": 0})
        with pytest.raises(LeptonError, match="a private task needs 3 members"):
            await a.train(asked)
        assert "nothing was averaged: a private task needs 3 members; this round has" in caplog.text
        for node in (a, b):
            assert node.tasks._learners["digits"]._shared is None  # nor given to a joiner
        assert "digits" not in b.view.models()  # what one node alone has trained is not shown to anybody


async def test_a_private_round_that_was_begun_is_never_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is stopped in its third round, and its owner throws the checkpoints away and starts it again."""
    monkeypatch.setattr(keeping, "_CHECKPOINT_INTERVAL_S", 0.0)
    world, data = World(tmp_path), datasets(3)["a"]
    begun: list[int] = []
    begin, held = Exchange.begin, trio.Event()

    def note(exchange: Any, ready: Any) -> None:
        if (tmp_path / "a" / "begun" / "digits.1").read_text() != str(ready.round):
            raise AssertionError("a round began before that was on disk")
        begun.append(ready.round)
        if ready.round == 2:
            held.set()
        begin(exchange, ready)

    monkeypatch.setattr(Exchange, "begin", note)
    asked = task("private", 100_000, averaging={"members": 3, "start_wait_s": 0})
    async with world.node("a", data=data) as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.train, asked)
        with trio.fail_after(PATIENCE_S):
            await held.wait()
        nursery.cancel_scope.cancel()
    last = max(begun)
    for path in (tmp_path / "a" / "tasks" / "digits" / "1").iterdir():
        path.unlink()
    before = list(begun)
    async with world.node("a", data=data):
        await until(lambda: len(begun) > len(before) + 2)
    assert begun[len(before)] == last + 1
    assert len(set(begun)) == len(begun)

    (tmp_path / "a" / "begun" / "digits.1").write_bytes(b"\x00broken")
    async with world.node("a", data=data) as node:  # it would have to guess
        await until(lambda: [said.state for said in node.trainers("digits", 1).values()] == ["failed"])
        assert "cannot be read" in node.trainers("digits", 1)[node.mesh.me].reason


async def test_one_poisoned_node_among_five_does_not_spoil_a_robust_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liars: list[Any] = []
    lied: list[int] = []
    begin = Exchange.begin

    def lie(exchange: Any, ready: Any) -> None:
        machine = exchange.machine
        if machine._me in liars and not lied:
            true = machine._codec

            def flipped(vector: Vector, rng: np.random.Generator) -> Any:
                lied.append(ready.round)
                return true.encode(-10 * vector, rng)

            machine._codec = dataclasses.replace(true, encode=flipped)
        begin(exchange, ready)

    monkeypatch.setattr(Exchange, "begin", lie)
    async with running(tmp_path, *"abcde", data=datasets(5)) as world:
        a, *_, e = world.nodes.values()
        liars.append(e.mesh.me)
        result = await a.train(task("robust", 60, train={"local_steps": 10}))
        honest = {peer: node for peer, node in result.nodes.items() if peer != e.mesh.me}
        assert len(honest) == 4
        assert len(lied) > 50
        assert min(node.accuracy for node in honest.values() if node.accuracy is not None) >= 0.85
        await a.wait_served("digits")
        assert DIGITS.y_test is not None
        answers = (await a.predict("digits", samples(359))).argmax(axis=1)
        assert (answers == DIGITS.y_test).mean() >= 0.85


RECORD = TaskRecord(spec=MLP, settings=TrainSettings(), data="digits", version=1)
PRIVATE: dict[str, Any] = {"policy": "private", "codec": "float32", "members_min": 3}
ROBUST: dict[str, Any] = {"policy": "robust", "members_min": 4}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({**PRIVATE, "codec": "int8"}, "cannot have the codec 'int8': it travels as 32-bit words"),
        ({**PRIVATE, "members_min": 2}, "It cannot begin with 2: a private task needs 3 members"),
        ({**PRIVATE, "group_size": 4}, "groups of 8 or 16, not 4"),
        ({**PRIVATE, "peers": 9}, "'peers' is for 'robust'"),
        ({**ROBUST, "members_min": 3}, "a robust task needs 4 members"),
        ({**ROBUST, "peers": 2}, "pulls from 3 others at least, not 2"),
        ({**ROBUST, "settings": TrainSettings(tracking=1.0)}, "cannot have train.tracking"),
        ({**ROBUST, "settings": TrainSettings(momentum_kind="quasi_global")}, "cannot have quasi_global momentum"),
    ],
)
async def test_a_contradiction_is_refused_also_in_a_record_of_a_peer(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    record = msgspec.structs.replace(RECORD, **changes)
    with pytest.raises(UsageError) as raised:
        check_policy(record)
    assert why in str(raised.value)
    with pytest.raises(UsageError, match=re.escape(str(raised.value))):
        Learner(None, "x", record, parts(1)[0], None, on_trained=None)  # type: ignore[arg-type]
