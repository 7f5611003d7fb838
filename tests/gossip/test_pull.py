"""Pulling: rounds end, each model counts once, and whoever asks is answered."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.config import Config
from lepton.gossip.errors import BadContribution, BadSetup
from lepton.gossip.events import Expired, Finished, PeerDown, Ready, Received, Send
from lepton.gossip.pull import Offered, Puller, Wanted, choose, pack, unpack
from lepton.gossip.robust import nearest_clipped

DIMENSION = 20
NAMES = tuple(f"p{index:02}" for index in range(12))


def puller(name: str, *, peers: int = 8) -> Puller:
    return Puller(
        name, "t", dimension=DIMENSION, mix=nearest_clipped, codec_name="float32", peers=peers,
        rng_seed=int(name[1:]), config=Config.test(),
    )  # fmt: skip


def vector(name: str) -> np.ndarray:
    return np.full(DIMENSION, int(name[1:]) / 10, dtype=np.float32)


def ready(name: str, round_: int = 0) -> Ready:
    return Ready(round_, vector(name), 1.0, NAMES)


def offer(name: str, *, wanted: int = 0, round_: int = 0, values: np.ndarray | None = None) -> Received:
    payload = (vector(name) if values is None else values).tobytes()
    return Received(name, Offered(task="t", round=round_, wanted=wanted, payload=payload))  # type: ignore[arg-type]


def asked(effects: list[Send | Finished]) -> list[str]:
    return [effect.peer for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Wanted)]


def test_a_round_asks_eight_others_and_ends_when_all_have_answered() -> None:
    machine = puller("p00")
    peers = asked(machine.handle(ready("p00"), 0.0))
    assert len(set(peers)) == 8
    assert "p00" not in peers
    for peer in peers[:-1]:
        assert machine.handle(offer(peer), 0.1) == []
    (end,) = machine.handle(offer(peers[-1]), 0.2)
    assert isinstance(end, Finished)
    assert end.report.complete
    assert {peer for peer, _ in end.report.parts[0][0].contributors} == {"p00", *peers}
    counted = [count > 0 for _, count in end.report.parts[0][0].contributors]
    assert sum(counted) == 7  # two of eight are dropped, oneself counts
    assert machine.round == 1
    assert not machine.running


def test_who_does_not_answer_is_named_and_the_round_ends_at_its_deadline() -> None:
    machine = puller("p00")
    peers = asked(machine.handle(ready("p00"), 0.0))
    for peer in peers[2:]:
        machine.handle(offer(peer), 0.1)
    machine.handle(PeerDown(peers[0]), 0.2)
    assert machine.handle(Expired(), machine.deadline - 0.01) == []
    (end,) = machine.handle(Expired(), machine.deadline)
    assert isinstance(end, Finished)
    assert {absence.peer: absence.why for absence in end.report.missing} == {
        peers[0]: "the peer went down", peers[1]: "it did not come by the deadline",
    }  # fmt: skip


def test_what_was_not_asked_for_comes_twice_or_is_of_another_round_is_not_mixed() -> None:
    machine = puller("p00")
    peers = asked(machine.handle(ready("p00"), 0.0))
    stranger = next(name for name in NAMES if name not in peers and name != "p00")
    machine.handle(offer(stranger), 0.1)
    machine.handle(offer(peers[0]), 0.1)
    machine.handle(offer(peers[0], values=np.full(DIMENSION, 9e9, np.float32)), 0.1)
    machine.handle(offer(peers[1], wanted=7), 0.1)
    (end,) = machine.handle(Expired(), machine.deadline)
    assert isinstance(end, Finished)
    assert end.report.ignored == 3
    assert dict(end.report.parts[0][0].contributors).keys() == {"p00", peers[0]}
    np.testing.assert_array_equal(end.vector, vector("p00"))  # of one nothing is mixed


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (np.full(DIMENSION, np.nan, np.float32), "not finite"),
        (np.zeros(DIMENSION - 1, np.float32), "bytes"),
        (np.zeros(DIMENSION + 1, np.float32), "bytes"),
    ],
)
def test_a_bad_model_is_refused_and_named(bad: np.ndarray, why: str) -> None:
    machine = puller("p00")
    peers = asked(machine.handle(ready("p00"), 0.0))
    machine.handle(offer(peers[0], values=bad), 0.1)
    (end,) = machine.handle(Expired(), machine.deadline)
    assert isinstance(end, Finished)
    (refusal,) = end.report.refused
    assert refusal.peer == peers[0]
    assert why in refusal.why


def test_a_model_of_a_distant_round_is_refused() -> None:
    machine = puller("p00")
    peers = asked(machine.handle(ready("p00", 5), 0.0))
    machine.handle(offer(peers[0], wanted=5, round_=2), 0.1)
    machine.handle(offer(peers[1], wanted=5, round_=7), 0.1)
    (end,) = machine.handle(Expired(), machine.deadline)
    assert isinstance(end, Finished)
    assert [refusal.peer for refusal in end.report.refused] == [peers[0]]


def test_whoever_asks_early_is_answered_with_the_first_model_and_once_a_round() -> None:
    machine = puller("p00")
    want = Received("p05", Wanted(task="t", round=3))  # type: ignore[arg-type]
    assert machine.handle(want, 0.0) == []
    effects = machine.handle(ready("p00"), 1.0)
    answers = [e for e in effects if isinstance(e, Send) and isinstance(e.message, Offered)]
    assert [(answer.peer, answer.message.wanted) for answer in answers] == [("p05", 3)]  # type: ignore[union-attr]
    assert machine.handle(want, 1.1) == []
    machine.skip_to(1)
    again = machine.handle(ready("p00", 1), 2.0)  # with what is new then: whoever is faster waits for it
    assert [e.peer for e in again if isinstance(e, Send) and isinstance(e.message, Offered)] == ["p05"]
    other = Received("p06", Wanted(task="another", round=3))  # type: ignore[arg-type]
    assert machine.handle(other, 1.1) == []


def test_rounds_do_not_overlap_or_go_back() -> None:
    machine = puller("p00")
    machine.handle(ready("p00", 2), 0.0)
    with pytest.raises(BadSetup, match="is running"):
        machine.handle(ready("p00", 3), 0.0)
    machine.skip_to(5)
    with pytest.raises(BadSetup, match="comes next"):
        machine.handle(ready("p00", 4), 0.0)
    with pytest.raises(BadSetup, match="at least one"):
        puller("p00", peers=0)


def rounds(count: int, dice: random.Random, loss: float) -> Iterator[np.ndarray]:
    """Yield the twelve models before the first of ``count`` rounds and after each, as their first coordinates."""
    machines = {name: puller(name) for name in NAMES}
    models = {name: vector(name) for name in NAMES}
    yield coordinates(models)
    for round_ in range(count):
        models = one_round(machines, models, round_, dice, loss)
        yield coordinates(models)


def coordinates(models: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([models[name][0] for name in NAMES])


def one_round(
    machines: dict[str, Puller], models: dict[str, np.ndarray], round_: int, dice: random.Random, loss: float
) -> dict[str, np.ndarray]:
    queue: list[tuple[str, Send]] = []
    ends: dict[str, Finished] = {}

    def note(name: str, effects: list[Send | Finished]) -> None:
        for effect in effects:
            if isinstance(effect, Finished):
                ends[name] = effect
            elif dice.random() >= loss:
                queue.append((name, effect))

    for name, machine in machines.items():
        note(name, machine.handle(Ready(round_, models[name], 1.0, NAMES), 100.0 * round_))
    while queue:
        sender, send = queue.pop(dice.randrange(len(queue)))
        heard = Received(sender, unpack(*pack(send.message)))  # type: ignore[arg-type]
        note(send.peer, machines[send.peer].handle(heard, 100.0 * round_))
    for name, machine in machines.items():
        note(name, machine.handle(Expired(), 100.0 * (round_ + 1)))
    assert set(ends) == set(NAMES)
    return {name: end.vector for name, end in ends.items()}


@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_all_rounds_end_under_loss_and_no_model_leaves_the_range_of_those_before(seed: int, loss: float) -> None:
    low, high = -np.inf, np.inf
    for models in rounds(3, random.Random(seed), loss):
        assert models.min() >= low
        assert models.max() <= high
        low, high = models.min() - 1e-6, models.max() + 1e-6


def test_the_models_come_closer_under_loss() -> None:
    """On the whole: a single round may draw them apart a little, where the outermost hear nobody and others follow."""
    narrowed = []
    for seed in range(20):
        before, *_, after = rounds(3, random.Random(seed), 0.3)
        narrowed.append(np.std(after) / np.std(before))
    assert np.mean(narrowed) < 0.6
    assert max(narrowed) < 1


def test_whom_to_ask_is_drawn_anew_in_every_round() -> None:
    drawn = {choose("p00", NAMES, 3, np.random.default_rng([1, round_])) for round_ in range(20)}
    assert len(drawn) > 10
    assert choose("p00", ("p00",), 3, np.random.default_rng(1)) == ()


@given(st.binary(max_size=100))
def test_what_is_no_message_is_refused_as_such(junk: bytes) -> None:
    try:
        message = unpack(junk, b"")
    except BadContribution:
        return
    assert pack(message)[0]
