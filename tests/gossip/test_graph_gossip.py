"""Gossip on given graphs: weights keep the mean, rounds end, and what is missing counts for oneself."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.gossip.config import Config
from lepton.gossip.errors import BadSetup
from lepton.gossip.events import Expired, Finished, PeerDown, Ready, Received, Send
from lepton.gossip.graph_gossip import GraphGossip, Values
from lepton.gossip.graphs import Circulant, Graph, OnePeerExponential, metropolis

GRAPHS: dict[str, Graph] = {
    "ring": Circulant(),
    "4-regular": Circulant((1, 3)),
    "exponential": OnePeerExponential(),
}


def names(n: int) -> tuple[str, ...]:
    return tuple(f"p{index:02}" for index in range(n))


def matrix(graph: Graph, n: int, round_: int) -> np.ndarray:
    mixing = np.zeros((n, n))
    for row, name in enumerate(names(n)):
        for peer, weight in graph.heard_by(name, names(n), round_).items():
            mixing[row, names(n).index(peer)] = weight
        mixing[row, row] += 1 - mixing[row].sum()
    return mixing


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 13])
def test_every_matrix_is_doubly_stochastic_and_senders_know_who_hears_them(name: str, n: int) -> None:
    graph = GRAPHS[name]
    for round_ in range(5):
        mixing = matrix(graph, n, round_)
        assert (mixing >= 0).all()
        np.testing.assert_allclose(mixing.sum(axis=0), 1)
        np.testing.assert_allclose(mixing.sum(axis=1), 1)
        for sender in names(n):
            hearing = {other for other in names(n) if sender in graph.heard_by(other, names(n), round_)}
            assert set(graph.hearing(sender, names(n), round_)) == hearing


def test_metropolis_weights_are_those_of_the_paper() -> None:
    assert metropolis(2, 2) == pytest.approx(1 / 3)
    assert metropolis(2, 4) == metropolis(4, 2) == pytest.approx(1 / 5)
    with pytest.raises(BadSetup, match="positive and differ"):
        Circulant((1, 1))


class Members:
    """Members on virtual time."""

    def __init__(self, graph: Graph, n: int, *, codec: str = "float32", loss: float = 0.0, seed: int = 0) -> None:
        self.machines = {
            name: GraphGossip(
                name, "t", dimension=6, graph=graph, codec_name=codec, rng_seed=index, config=Config.test()
            )
            for index, name in enumerate(names(n))
        }
        rng = np.random.default_rng(seed)
        self.vectors = {name: rng.normal(size=6).astype(np.float32) for name in names(n)}
        self._dice, self._loss, self._now = random.Random(seed), loss, 0.0

    def one_round(self, round_: int) -> dict[str, Finished]:
        queue: list[tuple[str, Send]] = []
        ends: dict[str, Finished] = {}

        def do(name: str, effects: list[Send | Finished]) -> None:
            for effect in effects:
                if isinstance(effect, Finished):
                    ends[name] = effect
                elif self._dice.random() >= self._loss:
                    queue.append((name, effect))

        for name, machine in self.machines.items():
            do(name, machine.handle(Ready(round_, self.vectors[name], 1.0, tuple(self.machines)), self._now))
        while queue:
            sender, send = queue.pop(self._dice.randrange(len(queue)))
            do(send.peer, self.machines[send.peer].handle(Received(sender, send.message), self._now))
        self._now += 100.0
        for name, machine in self.machines.items():
            do(name, machine.handle(Expired(), self._now))
        assert set(ends) == set(self.machines)
        self.vectors = {name: end.vector for name, end in ends.items()}
        return ends

    def mean(self) -> np.ndarray:
        mean: np.ndarray = np.mean(list(self.vectors.values()), axis=0)
        return mean


def test_three_rounds_of_the_exponential_graph_give_eight_members_the_exact_mean() -> None:
    members = Members(OnePeerExponential(), 8)
    mean = members.mean()
    for round_ in range(3):
        assert all(end.report.complete for end in members.one_round(round_).values())
    for vector in members.vectors.values():
        np.testing.assert_allclose(vector, mean, atol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_mean_is_kept_and_members_come_together(name: str) -> None:
    members = Members(GRAPHS[name], 9)
    mean = members.mean()
    before = np.std(list(members.vectors.values()), axis=0)
    for round_ in range(30):
        members.one_round(round_)
    np.testing.assert_allclose(members.mean(), mean, atol=1e-5)
    assert (np.std(list(members.vectors.values()), axis=0) < before / 5).all()


def test_whose_values_do_not_come_counts_for_oneself() -> None:
    machine = GraphGossip("p00", "t", dimension=2, graph=Circulant(), codec_name="float32", config=Config.test())
    own, other = np.array([3.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)
    sends = machine.handle(Ready(0, own, 1.0, names(3)), 0.0)
    assert sorted(send.peer for send in sends if isinstance(send, Send)) == ["p01", "p02"]
    values = Values(task="t", round=0, payload=other.tobytes())
    assert machine.handle(Received("p01", values), 0.1) == []  # type: ignore[arg-type]
    (end,) = machine.handle(PeerDown("p02"), 0.2)
    assert isinstance(end, Finished)
    np.testing.assert_allclose(end.vector, [2.0, 1.0])
    assert [(absence.peer, absence.why) for absence in end.report.missing] == [("p02", "the peer went down")]
    assert dict(end.report.parts[0][0].contributors) == pytest.approx({"p00": 2 / 3, "p01": 1 / 3})


def test_bad_values_are_refused_and_named_and_early_ones_kept() -> None:
    machine = GraphGossip("p00", "t", dimension=2, graph=Circulant(), codec_name="float32", config=Config.test())
    early = Values(task="t", round=1, payload=np.ones(2, np.float32).tobytes())
    machine.handle(Received("p01", early), 0.0)  # type: ignore[arg-type]
    machine.handle(Ready(0, np.zeros(2, np.float32), 1.0, names(3)), 0.0)
    for peer, payload in (("p01", np.full(2, np.nan, np.float32).tobytes()), ("p02", b"123")):
        effects = machine.handle(Received(peer, Values(task="t", round=0, payload=payload)), 0.1)  # type: ignore[arg-type]
    (end,) = effects
    assert isinstance(end, Finished)
    assert {refusal.peer for refusal in end.report.refused} == {"p01", "p02"}
    np.testing.assert_array_equal(end.vector, [0, 0])
    machine.handle(Ready(1, np.zeros(2, np.float32), 1.0, names(3)), 0.2)
    (end,) = machine.handle(PeerDown("p02"), 0.3)
    assert isinstance(end, Finished)
    np.testing.assert_allclose(end.vector, [1 / 3, 1 / 3])
    with pytest.raises(BadSetup, match="round 2 is due"):
        machine.handle(Ready(1, np.zeros(2, np.float32), 1.0, names(3)), 0.4)


@given(st.integers(0, 1000), st.floats(0, 0.5), st.sampled_from(sorted(GRAPHS)), st.integers(1, 9))
def test_rounds_end_under_loss_and_nobody_leaves_the_range_of_what_there_was(
    seed: int, loss: float, name: str, n: int
) -> None:
    members = Members(GRAPHS[name], n, codec="int8", loss=loss, seed=seed)
    low, high = np.min(list(members.vectors.values()), axis=0), np.max(list(members.vectors.values()), axis=0)
    for round_ in range(4):
        members.one_round(round_)
    for vector in members.vectors.values():
        assert (vector >= low - 0.2).all()
        assert (vector <= high + 0.2).all()
