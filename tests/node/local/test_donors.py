"""Of two models the better is taken; one that does absurdly on this node's own samples is not, whoever gives it."""

import numpy as np
import pytest
from lepton.mesh.identity import PeerId
from lepton.node import digits
from lepton.node.learning.donors import Donation, judge
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer
from lepton.node.shapes import ModelSpec, Vector

DIGITS = digits()
MLP = ModelSpec(architecture="mlp", inputs=(64,), classes=10)


def trainer(steps: int = 0) -> Trainer:
    made = Trainer(MLP, DIGITS, TrainSettings())
    if steps:
        made.run_steps(steps)
    return made


def given(peer: str, vector: Vector, *, round_: int = 5) -> Donation:
    return Donation(PeerId(peer), round_, b"", vector)


@pytest.fixture(scope="module")
def trained() -> Vector:
    return trainer(100).vector()


def test_the_better_of_two_is_taken_wherever_it_stands(trained: Vector) -> None:
    worse = trainer(20).vector()
    for donations in ([given("a", trained), given("b", worse, round_=9)], [given("b", worse), given("a", trained)]):
        best, refused = judge(trainer(), donations)
        assert best is not None
        assert best.peer == "a"
        assert refused == {}


def test_of_equals_the_one_that_is_further_is_taken(trained: Vector) -> None:
    best, _ = judge(trainer(), [given("a", trained, round_=5), given("b", trained, round_=6)])
    assert best is not None
    assert best.peer == "b"


@pytest.mark.parametrize("steps", [0, 100])
def test_absurd_and_broken_models_are_refused_by_name(trained: Vector, steps: int) -> None:
    bad = {
        "loud": 30 * np.random.default_rng(0).standard_normal(len(trained)).astype(np.float32),
        "huge": np.full_like(trained, 3e38),
        "infinite": np.full_like(trained, np.inf),
        "short": trained[:-1],
    }
    node = trainer(steps)
    before = node.vector()
    best, refused = judge(node, [*(given(name, vector) for name, vector in bad.items()), given("good", trained)])
    assert best is not None
    assert best.peer == "good"
    assert list(refused) == list(bad)
    assert "Its loss on this node's held-out samples is" in refused[PeerId("loud")]
    assert "NaN or infinity" in refused[PeerId("infinite")]
    assert np.array_equal(node.vector(), before)  # to try a model changes nothing
    assert judge(node, [given("loud", bad["loud"])])[0] is None
