"""Averagers: round after round, with early and late messages, nodes that fall behind and nodes that die."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.gossip.averager import Averager, name_of
from lepton.gossip.codecs import Floats
from lepton.gossip.config import Config
from lepton.gossip.errors import BadContribution, BadSetup, UnknownCodec
from lepton.gossip.events import Behind, Expired, Finished, Ready, Received, Send
from lepton.gossip.messages import Contribution, Message, Status
from lepton.gossip.part import Reference
from lepton.gossip.terms import Terms

if TYPE_CHECKING:
    from .conftest import World

CONFIG = Config.test()
DIMENSION = 12
WorldType = Callable[..., "World"]


def averager(me: str, **changes: Any) -> Averager:
    settings: dict[str, Any] = {"mesh": b"m", "dimension": DIMENSION, "codec_name": "float32", "config": CONFIG}
    return Averager(me, "task", **(settings | changes))


def ones(value: float = 1.0) -> Floats:
    return np.full(DIMENSION, value, dtype=np.float32)


def ready(round_: int, members: str = "ab", value: float = 1.0) -> Ready:
    return Ready(round_, ones(value), 1.0, tuple(members))


def finish(effects: Sequence[Any]) -> Finished:
    """Give the end that these effects close with."""
    last = effects[-1]
    assert isinstance(last, Finished)
    return last


def messages(effects: Sequence[Any]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def status(round_: int, members: str = "ab", **changes: Any) -> Status:
    """Give what b says first in a round of two."""
    terms = Terms(mesh=b"m", task="task", round=round_, members=tuple(members), dimension=DIMENSION, codec="float32")
    held = terms.plan.to_bytes((0,) * len(members))
    fields: dict[str, Any] = {
        "task": "task",
        "round": round_,
        "context": terms.context,
        "instance": 1,
        "weight": 1.0,
        "reference": b"",
        "received": b"\0",
        "held": held,
        "instances": (0,) * len(held),
    }
    return Status(**(fields | changes))


class Training:
    """Nodes that pull their vectors towards numbers of their own and average them, in a world."""

    def __init__(
        self,
        world: WorldType,
        names: str,
        seed: int,
        rounds: int,
        config: Config = CONFIG,
        slow_s: dict[str, float] | None = None,
        **links: Any,
    ) -> None:
        self.names, self.rounds = names, rounds
        self.nodes = {n: averager(n, rng_seed=seed, codec_name="int8", group_size=4, config=config) for n in names}
        self.world = world(self.nodes, seed, **links)
        self.world.on_outcome = self.on_outcome
        self.rng = np.random.default_rng(seed)
        self.vectors = {name: (5 + self.rng.normal(size=DIMENSION)).astype(np.float32) for name in names}
        self.slow_s = dict.fromkeys(names, 0.0) | (slow_s or {})
        for name in names:
            self.train(name, 0)

    def train(self, name: str, round_: int) -> None:
        alive = tuple(n for n in self.names if n not in self.world.crashed)
        event = Ready(round_, self.vectors[name], 1.0, alive)
        self.world.event(self.world.now + self.rng.uniform(0.01, 0.05) + self.slow_s[name], name, event)

    def on_outcome(self, name: str, outcome: Any) -> None:
        if isinstance(outcome, Finished):
            self.vectors[name] = outcome.vector
            if outcome.round + 1 < self.rounds:
                self.train(name, outcome.round + 1)

    def finished(self, name: str) -> list[Finished]:
        return [outcome for outcome in self.world.outcomes[name] if isinstance(outcome, Finished)]


def test_all_reach_the_same_mean_round_after_round(world: WorldType) -> None:
    training = Training(world, "abcdefghij", seed=1, rounds=12)
    start = np.mean(list(training.vectors.values()), axis=0)
    training.world.run()
    for name in training.names:
        assert [outcome.round for outcome in training.finished(name)] == list(range(12))
        assert np.abs(training.vectors[name] - start).max() < 0.1  # of int8 steps of 0.05
        counts = training.nodes[name].counts
        assert (counts.dropped, counts.misdirected) == (0, 0)
    spread = np.std(list(training.vectors.values()), axis=0)
    assert spread.max() < 0.1


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.4]))
@settings(max_examples=15)
def test_nobody_ever_stalls(world: WorldType, seed: int, loss: float) -> None:
    training = Training(world, "abcdef", seed, 6, loss=loss, duplication=0.2, delay_s=(0.0, 0.2))
    training.world.crash_at = {"c": seed % 60}
    training.world.run()
    for name in set(training.names) - training.world.crashed:
        assert [outcome.round for outcome in training.finished(name)] == list(range(6)), f"seed {seed}"
        assert training.nodes[name].deadline == math.inf
        assert not training.nodes[name].running


def test_the_same_seed_is_the_same_history(world: WorldType) -> None:
    first, second = (Training(world, "abcdef", 5, 5, loss=0.1, duplication=0.1) for _ in range(2))
    for training in (first, second):
        training.world.crash_at = {"b": 40}
        training.world.run()
    assert first.world.history == second.world.history
    assert len(first.world.history) > 100


def test_after_some_rounds_a_silent_death_costs_no_more_than_the_wait_that_was_learned(world: WorldType) -> None:
    training = Training(world, "abcd", 3, 30, down_after_s=None)
    training.world.run(until_s=1.0)
    training.world.crashed.add("d")
    training.world.run()
    for name in "abc":
        done = training.finished(name)
        assert len(done) == 30
        assert all(outcome.report.exchange_s + outcome.report.agreement_s <= 1.0 for outcome in done)


def test_patience_grows_until_a_slow_peer_is_in_the_mean_again(world: WorldType) -> None:
    config = Config(wait_s_initial=0.1, wait_s_min=0.1, wait_s_max=5.0)
    training = Training(world, "abc", 2, 12, config=config, slow_s={"c": 0.3})
    training.world.run()
    missing = [not outcome.report.complete for outcome in training.finished("a")]
    assert missing[0]
    assert not any(missing[-4:])


def deliver(machines: dict[str, Averager], effects: dict[str, list[Any]], now: float) -> dict[str, Finished]:
    """Carry messages to and fro until there are no more; return what finished."""
    done: dict[str, Finished] = {}
    queue = [(name, effect) for name, listed in effects.items() for effect in listed]
    while queue:
        sender, effect = queue.pop(0)
        if isinstance(effect, Finished):
            done[sender] = effect
        elif isinstance(effect, Send) and effect.peer in machines:
            new = machines[effect.peer].handle(Received(sender, effect.message), now)
            queue += [(effect.peer, each) for each in new]
    return done


def test_early_messages_are_kept_until_their_round_comes() -> None:
    a, b = averager("a"), averager("b")
    (hello,) = messages(b.handle(ready(0, value=3.0), 0.0))
    assert a.handle(Received("b", hello), 0.1) == []
    first = a.handle(ready(0), 0.2)
    assert [type(message).__name__ for message in messages(first)] == ["Status", "Contribution"]
    ends = deliver({"a": a, "b": b}, {"a": first}, 0.3)
    assert [end.vector.tolist() for end in ends.values()] == [[2.0] * DIMENSION] * 2
    assert (a.round, b.round) == (1, 1)
    assert a.reference is not None
    assert b.reference is not None
    assert a.reference.name == b.reference.name


def test_who_missed_a_round_exchanges_whole_values_and_knows_the_same_model_again_afterwards() -> None:
    machines = {name: averager(name, codec_name="bfloat16", dimension=DIMENSION) for name in "ab"}
    for name, machine in machines.items():
        machine.refer_to(Reference(name_of(ones()), ones()) if name == "a" else None)
    for round_, known in ((0, False), (1, True)):
        effects = {name: machine.handle(ready(round_, value=1.5), 0.0) for name, machine in machines.items()}
        sent: list[Message] = []
        take = machines["b"].handle

        def watch(event: Any, now: float, take: Any = take, sent: list[Message] = sent) -> Any:
            sent.append(event.message)
            return take(event, now)

        machines["b"].handle = watch  # type: ignore[method-assign]
        ends = deliver(machines, effects, 0.0)
        machines["b"].handle = take  # type: ignore[method-assign]
        assert len(ends) == 2
        assert all(end.report.agreed for end in ends.values())
        assert {bool(m.reference) for m in sent if isinstance(m, Contribution)} == {known}


def test_what_begins_rounds_ahead_is_kept_and_beyond_one_is_behind() -> None:
    a = averager("a")
    for round_ in (0, 1, 2):
        assert a.handle(Received("b", status(round_)), 0.0) == []
    assert a.handle(Received("b", status(2)), 0.0) == []
    assert a.counts.duplicates == 1
    assert a.handle(Received("b", status(3)), 0.0) == [Behind(3, "b")]
    assert a.handle(Received("b", status(9)), 0.0) == []  # said once a peer and round
    assert a.handle(Received("c", status(9)), 0.0) == [Behind(9, "c")]
    assert a.counts.behind == 3
    assert len(messages(a.handle(ready(2), 0.0))) == 2  # adopted a model, and goes on from there
    assert a.counts.dropped == 2
    assert a.handle(Received("b", status(9)), 0.0) == [Behind(7, "b")]


def test_late_messages_are_counted_and_teach_patience() -> None:
    a = averager("a")
    a.handle(ready(0), 0.0)
    while a.running:
        a.handle(Expired(), a.deadline)
    assert a.handle(Received("z", status(0)), 2.5) == []
    a.handle(Received("b", status(0)), 2.5)
    assert a.counts.late == 2
    assert a._opening_patience._durations_s == {0: 2.5}
    for round_ in range(1, 6):
        a.handle(ready(round_, members="a"), 3.0)
    assert a.handle(Received("b", status(0)), 4.0) == []
    assert a.counts.late == 3


def test_a_late_opening_of_the_round_that_runs_teaches_patience_too() -> None:
    a = averager("a")
    a.handle(ready(0, members="abc"), 0.0)
    a.handle(Received("c", status(0, members="abc")), 0.1)
    while a.deadline < 1.5:
        a.handle(Expired(), a.deadline)
    assert a.running
    a.handle(Received("b", status(0, members="abc")), 1.5)
    assert a._opening_patience._durations_s == {0: 1.5}


def test_a_round_alone_ends_at_once_and_keeps_what_is_for_the_next() -> None:
    a = averager("a")
    a.handle(Received("b", status(1)), 0.0)
    finished = finish(a.handle(ready(0, members="a"), 0.0))
    assert finished.report.complete
    assert finished.vector.tolist() == [1] * DIMENSION
    assert len(messages(a.handle(ready(1), 0.0))) == 2  # b's word was there: our values go out at once
    assert a.counts.dropped == 0


def test_a_message_of_another_task_is_counted() -> None:
    a = averager("a")
    assert a.handle(Received("b", status(0, task="other")), 0.0) == []
    assert a.counts.misdirected == 1


def test_what_is_kept_is_bounded_and_small() -> None:
    a, b = averager("a"), averager("b")
    for i in range(CONFIG.buffered_count_max + 5):
        a.handle(Received(f"peer-{i}", status(0)), 0.0)
    assert a.counts.dropped == 5
    assert len(a._early) == CONFIG.buffered_count_max
    b.handle(ready(0), 0.0)
    (values,) = [m for m in messages(b.handle(Received("a", status(0)), 0.0)) if isinstance(m, Contribution)]
    a.handle(Received("b", values), 0.0)  # nobody sends values to one that has not begun
    assert a.counts.dropped == 6


def test_rounds_only_go_up_and_one_at_a_time() -> None:
    a = averager("a", first_round=5)
    with pytest.raises(BadSetup, match="round 4 of task 'task' cannot begin: round 5 comes next"):
        a.handle(ready(4), 0.0)
    a.handle(ready(5), 0.0)
    with pytest.raises(BadSetup, match="round 6 of task 'task' cannot begin: round 5 is running"):
        a.handle(ready(6), 0.0)
    assert a.running


def test_a_bad_start_is_the_callers_and_leaves_the_averager_as_it_was() -> None:
    a = averager("a")
    with pytest.raises(BadContribution, match="a: 12 of its 12 values are not finite"):
        a.handle(ready(0, value=math.nan), 0.0)
    with pytest.raises(BadSetup, match="a is not among the members"):
        a.handle(ready(0, members="bc"), 0.0)
    assert not a.running
    assert len(a.handle(ready(0), 0.0)) == 1
    with pytest.raises(UnknownCodec):
        averager("a", codec_name="int7")


def test_the_default_is_int8_over_a_lan() -> None:
    a = Averager("a", "task", mesh=b"m", dimension=DIMENSION)
    finished = finish(a.handle(ready(0, members="a"), 0.0))
    assert finished.vector.tolist() == [1] * DIMENSION
