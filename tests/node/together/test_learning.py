"""Nodes learn together and serve what they learned; one that comes late, stops or is lied to does not spoil it."""

import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from lepton.gossip import messages as wire
from lepton.mesh.calls import Answer, Empty, Incoming, Method
from lepton.mesh.errors import LeptonError, Refused, UsageError
from lepton.mesh.identity import short
from lepton.node import Dataset, Node
from lepton.node.export import load_model, save_model
from lepton.node.learning import keeping
from lepton.node.learning.checkpoint import CheckpointStore
from lepton.node.learning.exchange import METHOD
from lepton.node.learning.messages import RoundMessage, State, StateWanted
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.task import task_from
from lepton.node.learning.trainer import Trainer
from lepton.node.picture import TRAINER, TrainerRecord
from lepton.node.shapes import parameter_count

from .fakes import DIGITS, MLP, PATIENCE_S, World, parts, random_model, running, samples, unsharded, until

QUICK = TrainSettings(local_steps=2)


def accuracy(probabilities: np.ndarray[Any, Any]) -> float:
    assert DIGITS.y_test is not None
    return float((probabilities.argmax(axis=1) == DIGITS.y_test).mean())


async def test_three_learn_together_and_a_fourth_joins_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {name: {"digits": part} for name, part in zip("abcd", parts(4), strict=True)}
    seen: list[int] = []
    late_is_here, train = threading.Event(), Trainer.run_steps

    def run_steps(trainer: Trainer, steps: int) -> float:
        if trainer.step >= 30 * steps:  # in the middle, whatever the speed of this machine
            late_is_here.wait(PATIENCE_S)
        return train(trainer, steps)

    monkeypatch.setattr(Trainer, "run_steps", run_steps)
    async with running(tmp_path, "a", "b", "c", data=data) as world, trio.open_nursery() as nursery:
        a, b, c = world.nodes.values()

        async def join_later() -> None:
            await until(lambda: (progress := a.progress("digits")) is not None and progress.round >= 20)
            async with world.node("d", data=data["d"]) as d:
                await until(lambda: d.progress("digits") is not None)
                late_is_here.set()
                await until(lambda: [said.state for peer, said in d.trainers("digits", 1).items()] == ["done"] * 4)
                said = d.trainers("digits", 1)[d.mesh.me]
                assert 20 <= said.first_round < said.round == 100
                await d.wait_served("digits")
                assert accuracy(await d.predict("digits", samples(359))) >= 0.9
                joined.set()

        joined = trio.Event()
        nursery.start_soon(join_later)
        result = await a.train("digits", data="digits", rounds=100, on_progress=lambda nodes: seen.append(len(nodes)))
        assert result.task == "digits"
        assert result.version == 1
        assert result.rounds == 100
        assert set(result.nodes) >= {node.mesh.me for node in (a, b, c)}
        assert result.accuracy_worst >= 0.9
        assert seen[-1] >= 3
        await joined.wait()
        await b.wait_served("digits")
        assert accuracy(await b.predict("digits", samples(359))) >= 0.9


async def test_two_learn_sequences_that_neither_could_serve_alone(tmp_path: Path) -> None:
    """The rows of a digit, from top to bottom."""
    assert DIGITS.x_test is not None
    test = DIGITS.x_test.reshape(-1, 8, 8)
    rows = [Dataset(x=p.x.reshape(-1, 8, 8), y=p.y, classes=10, x_test=test, y_test=p.y_test) for p in parts(2)]
    data = {"a": {"digits": rows[0], "flat": parts(2)[0]}, "b": {"digits": rows[1]}}
    async with running(tmp_path, "a", "b", data=data, memory="75kB") as world:
        a, b = world.nodes.values()
        with pytest.raises(UsageError, match=r"an lstm takes samples \(T, F\), T steps of F features, not \(64\)"):
            await a.train("flat", data="flat", model="lstm")
        result = await a.train("digits", data="digits", model="lstm", rounds=40)
        assert result.accuracy_worst > 0.9
        await b.wait_served("digits")
        assert sorted(node.serving.stages()["digits"] for node in (a, b)) == [(0, 1), (1, 2)]
        answered = await b.predict("digits", test)
        assert accuracy(answered) > 0.9
        spec, layers = await b.weights.whole("digits")
        save_model(tmp_path / "whole.safetensors", msgspec.to_builtins(spec), layers)
        np.testing.assert_allclose(answered, unsharded(load_model(tmp_path / "whole.safetensors"), test), atol=1e-6)


async def test_two_tasks_at_once_and_one_again(tmp_path: Path) -> None:
    part, other = parts(2)
    data = {"a": {"digits": part, "numbers": other}, "b": {"digits": other}}
    async with running(tmp_path, "a", "b", data=data, memory="100kB") as world, trio.open_nursery() as nursery:
        a, b = world.nodes.values()
        results = {}

        async def train(node: Node, name: str, **options: Any) -> None:
            results[name, node.device] = await node.train(name, settings=QUICK, **options)

        async with trio.open_nursery() as both:
            both.start_soon(lambda: train(a, "one", data="digits", rounds=15))
            both.start_soon(lambda: train(b, "two", data="digits", rounds=15))
            both.start_soon(lambda: train(a, "alone", data="numbers", rounds=5, baseline=True))
        assert {name: len(result.nodes) for (name, _), result in results.items()} == {"one": 2, "two": 2, "alone": 1}
        (alone,) = results["alone", "a"].nodes.values()
        assert alone.accuracy_alone == alone.accuracy  # a mesh of one learns what one learns
        for name in ("one", "two", "alone"):
            await b.wait_served(name)
            assert (await b.predict(name, samples(3))).shape == (3, 10)

        nursery.start_soon(lambda: train(a, "one", data="digits", rounds=100_000))  # ends only with the next version
        await until(lambda: any(said.state == "training" for said in b.trainers("one", 2).values()))
        await train(b, "one", data="digits", rounds=10)
        assert results["one", "b"].version == 3
        await until(lambda: a.view.models()["one"].version == 3)
        await until(lambda: results["one", "a"].version == 2)  # whoever waits for the older one is not left waiting


async def test_grants_decide_who_trains_and_who_asks(tmp_path: Path) -> None:
    one, two = parts(2)
    roles = {"client": "client", "trainer": "trainer"}
    data = {"admin": {"digits": one}, "client": {"digits": two}, "trainer": {"digits": two}}
    async with running(tmp_path, "admin", "client", "trainer", data=data, roles=roles, memory="100kB") as world:
        admin, client, trainer = world.nodes.values()
        with pytest.raises(Refused, match="lacks the capability 'train:digits'; ask an admin for an invite that has"):
            await client.train("digits", data="digits")
        result = await admin.train("digits", data="digits", rounds=5, settings=QUICK)
        assert set(result.nodes) == {admin.mesh.me, trainer.mesh.me}  # nobody waited for the client to be ready
        await admin.wait_served("digits")
        assert (await client.predict("digits", samples(3))).shape == (3, 10)
        assert client.serving.stages() == {}  # it would see what others ask
        assert trainer.serving.stages() == {}  # it could not pass on what it works out either
        with pytest.raises(Refused, match="lacks the capability 'infer:digits'"):
            await trainer.predict("digits", samples(3))
        for node in (client, trainer):
            with pytest.raises(Refused, match="may not invite"):
                node.invite()


async def test_what_cannot_be_trained_is_said_and_costs_nobody_the_node(tmp_path: Path) -> None:
    assert DIGITS.x_test is not None
    narrow = Dataset(x=DIGITS.x[:50, :9], y=DIGITS.y[:50], classes=10)  # without a test part: one is held out
    async with running(tmp_path, "a", "b", data={"a": {"digits": narrow}}) as world:
        a, b = world.nodes.values()
        for name, options, said in (
            ("x", {"data": "digit"}, "No node that is here has a data set 'digit'. Did you mean 'digits'?"),
            ("x", {"data": "digits"}, "This node has no data set 'digits' to read the model's size from"),
            ("A!", {"data": "digits"}, "'A!' cannot name a task"),
            ("x", {"data": "digits", "model": MLP, "rounds": 0}, "The task 'x': budget.rounds: Expected `int` >= 1"),
            (
                "x",
                {"data": "digits", "model": MLP, "codec_name": "int7"},
                "codec cannot be 'int7'. Did you mean 'int8'?",
            ),
        ):
            with pytest.raises(UsageError) as raised:
                await b.train(name, **options)
            assert said in str(raised.value)
        with pytest.raises(UsageError, match=r"model.architecture cannot be 'rnn'\. Did you mean 'cnn'"):
            await a.train("x", data="digits", model="rnn")
        with pytest.raises(LeptonError, match=r"No node could go on with 'x': .{8}: the model takes samples of"):
            await b.train("x", data="digits", model=MLP)  # nine numbers where the model wants 64
        with pytest.raises(LeptonError, match="This node could not go on with 'x': the model takes samples of"):
            await a.train("x", data="digits", model=MLP)
        result = await a.train("x", data="digits", rounds=3, settings=QUICK)  # and the nodes go on
        assert result.version == 3
        await b.wait_served("x")
        assert (await b.predict("x", samples(2)[:, :9])).shape == (2, 10)


def steps_of(node: Node) -> int:
    progress = node.progress("digits")
    return progress.round if progress is not None else -1


async def test_a_node_goes_on_from_its_checkpoint_and_from_the_one_before_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "_CHECKPOINT_INTERVAL_S", 0.0)
    world, data = World(tmp_path), {"digits": parts(1)[0]}
    async with world.node("a", data=data) as node, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: node.train("digits", data="digits", rounds=100_000, settings=QUICK))
        await until(lambda: steps_of(node) >= 5)
        nursery.cancel_scope.cancel()
    before, newest = sorted((tmp_path / "a" / "tasks" / "digits" / "1").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    caplog.set_level(logging.INFO, "lepton")
    async with world.node("a", data=data) as node:
        await until(lambda: steps_of(node) >= 0)
        progress = node.progress("digits")
        assert progress is not None
        await until(lambda: progress.state == "training" and progress.round > 6)
        assert progress.notes == [f"{newest.name}: it is cut short or was changed: its SHA-256 does not match"]
        assert any(f"goes on after round {steps(before)}" in line for line in caplog.messages)
    for path in (tmp_path / "a" / "tasks" / "digits" / "1").iterdir():
        path.write_bytes(b"")
    async with world.node("a", data=data) as node:  # nothing can be used: to start anew is for its owner to say
        await until(lambda: [said.state for said in node.trainers("digits", 1).values()] == ["failed"])
        reason = node.trainers("digits", 1)[node.mesh.me].reason
        assert "no checkpoint can be used" in reason
        assert "move the folder away to start anew" in reason
        assert len(list((tmp_path / "a" / "tasks" / "digits" / "1").iterdir())) == 2
        result = await node.train("digits", data="digits", rounds=3, settings=QUICK)
        assert result.version == 2


def steps(checkpoint: Path) -> int:
    """The round after which this checkpoint was taken: every round was kept, the first as number 1."""
    return int(checkpoint.stem.removeprefix("checkpoint-")) - 1


async def one_of(item: Answer[RoundMessage]) -> AsyncIterator[Answer[RoundMessage]]:
    yield item


async def test_a_member_that_lies_about_rounds_stops_nobody(tmp_path: Path) -> None:
    one, two = parts(2)
    lies: list[str] = []

    async def give_nan(call: Incoming[StateWanted]) -> Answer[State]:
        lies.append("state")
        return Answer(State(round=900_000), bulk=np.full(parameter_count(MLP), np.nan, dtype=np.float32))

    data = {"a": {"digits": one}, "b": {"digits": two}}
    async with running(tmp_path, "a", "b", "liar", data=data) as world, trio.open_nursery() as nursery:
        a, _, liar = world.nodes.values()
        liar.mesh.calls.serve(Method(name="train.state", needs="train", takes=StateWanted, handler=give_nan))

        async def lie() -> None:
            """Pretend to be hundreds of thousands of rounds ahead, over and over."""
            number = 0
            while True:
                number += 1
                far = wire.Contribution(
                    task="digits/1", round=900_000 + number, context=bytes(32), instance=1, part=0, chunk=0,
                    reference=b"", payload=b"\0" * 8,
                )  # fmt: skip
                header, payload = wire.pack(far)
                await trio.sleep(0.01)
                try:
                    item = Answer(RoundMessage(header=header), [np.frombuffer(payload, dtype=np.uint8)])
                    await liar.mesh.calls.feed(a.mesh.me, METHOD, Empty(), one_of(item), Empty, scope="digits")
                except LeptonError:
                    lies.append("not taken")

        nursery.start_soon(lie)
        result = await a.train("digits", data="digits", rounds=60, settings=QUICK)
        assert result.rounds == 60
        assert "state" not in lies  # its record says nothing of the kind, so it is not asked for its model
        assert np.isfinite(await a.predict("digits", samples(3))).all()
        nursery.cancel_scope.cancel()


async def test_a_joiner_takes_no_model_of_a_donor_that_lies_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = parts(3)
    gate, train, size = threading.Event(), Trainer.run_steps, parameter_count(MLP)
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    lies = {
        "far": (State(round=900), noise),
        "loud": (State(round=50), 30 * noise),
        "broken": (State(round=50), np.full(size, np.nan, dtype=np.float32)),
        "short": (State(round=50), noise[:-1]),
        "long": (State(round=50), np.append(noise, noise)),
    }

    def run_steps(trainer: Trainer, steps: int) -> float:
        if trainer.step >= 20 * steps:  # in the middle, whatever the speed of this machine
            gate.wait(PATIENCE_S)
        return train(trainer, steps)

    def serve(liar: Node, state: State, vector: np.ndarray[Any, Any]) -> None:
        async def give(_: Incoming[StateWanted]) -> Answer[State]:
            return Answer(state, bulk=vector)

        liar.mesh.calls.serve(Method(name="train.state", needs="train", takes=StateWanted, handler=give))
        said = TrainerRecord(state="training", version=1, round=50, first_round=100_000)  # no round waits for it
        liar.mesh.publish(TRAINER, "digits", said)

    monkeypatch.setattr(Trainer, "run_steps", run_steps)
    data = {"a": {"digits": one}, "b": {"digits": two}}
    async with running(tmp_path, "a", "b", *lies, data=data) as world, trio.open_nursery() as nursery:
        a = world.nodes["a"]
        nursery.start_soon(lambda: a.train("digits", data="digits", model=MLP, rounds=60, members_min=2))
        await until(lambda: (progress := a.progress("digits")) is not None and progress.round >= 20)
        for name, lie in lies.items():
            serve(world.nodes[name], *lie)
        async with world.node("late", data={"digits": three}) as late:
            progress = None
            await until(lambda: late.progress("digits") is not None)
            progress = late.progress("digits")
            assert progress is not None
            await until(lambda: progress.state == "training")
            gate.set()
            assert 20 <= progress.round < 50
            for name, why in {
                "far": "It claims round 900 of 60",
                "loud": "Its loss on this node's held-out samples is",
                "broken": f"Its model holds {size} values that are not finite",
                "short": f"Its model has {4 * size - 4:,} bytes; {4 * size:,} are expected",
                "long": f"{short(world.nodes['long'].mesh.me)} wants to send {8 * size} B; at most",
            }.items():
                start = f"the model of {short(world.nodes[name].mesh.me)} was refused: {why}"
                assert any(note.startswith(start) for note in progress.notes), (name, progress.notes)
            assert len(progress.notes) == len(lies)
            await until(lambda: progress.state == "done")
            assert progress.accuracy is not None
            assert progress.accuracy >= 0.9
        nursery.cancel_scope.cancel()


async def test_one_node_ends_early_and_takes_the_others_with_it(tmp_path: Path) -> None:
    data = {name: {"digits": part} for name, part in zip("abc", parts(3), strict=True)}
    said = {"name": "digits", "data": "digits", "budget": {"rounds": 100_000}, "stop": {"accuracy": 0.5}}
    async with running(tmp_path, *"abc", data=data) as world:
        result = await world.nodes["a"].train(task_from(said, "test"))
        ends = {node.round for node in result.nodes.values()}
        assert max(ends) < 100_000
        assert len(result.nodes) == 3
        named = {node.last for node in result.nodes.values()} - {None}
        assert ends == {min(named)}  # type: ignore[type-var]
        assert result.accuracy_worst >= 0.5
        assert all(node.deadline_misses == 0 for node in result.nodes.values())


async def test_personal_layers_stay_where_they_are(tmp_path: Path) -> None:
    one, two = parts(2)
    said = {
        "name": "digits", "data": "digits", "budget": {"rounds": 5}, "train": {"local_steps": 2},
        "parts": {"local": ["layers.1.*"]}, "averaging": {"codec": "float32"},
    }  # fmt: skip
    async with running(tmp_path, "a", "b", data={"a": {"digits": one}, "b": {"digits": two}}) as world:
        a, b = world.nodes.values()
        with pytest.raises(UsageError, match=r"'layer.9' fits no parameter of this model; it has layers.0.weight"):
            await a.train(task_from({**said, "parts": {"train": ["layer.9"]}}, "test"))
        result = await a.train(task_from(said, "test"))
        assert {node.state for node in result.nodes.values()} == {"done"}
        assert "digits" not in a.view.models()  # without its heads it is of no use to others
        first, second = (CheckpointStore(node.home.folder("tasks", "digits", "1")).load_latest() for node in (a, b))
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.checkpoint.vector, second.checkpoint.vector)
        assert first.checkpoint.vector.shape == (64 * 65,)
        assert (first.checkpoint.trainer_state.local != second.checkpoint.trainer_state.local).any()


async def test_unsharded_and_untrained_models_can_be_told_apart(tmp_path: Path) -> None:
    """A task that trains from a description starts at the values that every node can work out for itself."""
    async with running(tmp_path, "a", data={"a": {"digits": parts(1)[0]}}, memory="100kB") as world:
        (a,) = world.nodes.values()
        await a.train("digits", data="digits", model=random_model().spec, rounds=1, settings=QUICK)
        await a.wait_served("digits")
        spec, _ = await a.weights.whole("digits")
        assert spec == random_model().spec
