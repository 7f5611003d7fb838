"""Eight real machines with eight real trainers, and eight rows of a fleet, come to the same models."""

import numpy as np
import pytest
from lepton.simulations.fleet.batches import Deployed
from lepton.simulations.fleet.exchange import Exchange
from lepton.simulations.fleet.exchanges.grouped import Grouped
from lepton.simulations.fleet.exchanges.hidden import Hidden
from lepton.simulations.fleet.exchanges.linked import Linked
from lepton.simulations.fleet.exchanges.links import ring
from lepton.simulations.fleet.exchanges.pulled import Pulled
from lepton.simulations.fleet.exchanges.ranks import Ranks, names_of
from lepton.simulations.fleet.exchanges.rounding import rounding
from lepton.simulations.fleet.fleet import Fleet
from lepton.simulations.fleet.scenario import Model, Scenario, Train

from . import machines
from .crowds import population
from .machines import MESH, TASK, Machines, Make
from .test_fleet import trainer_of

COUNTS = [12, 40, 9, 33, 21, 60, 15, 28]
SAID = Scenario(
    about="eight", nodes=8, rounds=5, seed=3, evaluate_every=5, model=Model(hidden=40, hidden_activation="sigmoid"),
    train=Train(local_steps=5, batch_size=8, learning_rate=1.0),
)  # fmt: skip
DATA = population(COUNTS, shape=(16,))


def of_machines(make: Make) -> np.ndarray:
    trainers = [trainer_of(SAID, DATA, node) for node in range(8)]
    return Machines(trainers, make, rounds=SAID.rounds, local_steps=SAID.train.local_steps).models


def of_rows(exchange: Exchange) -> np.ndarray:
    fleet = Fleet(SAID, DATA, exchange=exchange, passes=Deployed(9))
    list(fleet.rounds())
    return fleet.state.models.numpy()


def grouped(codec: str, size: int = 8) -> Exchange:
    return Grouped(8, rounding(codec), size=size, mesh=MESH, task=TASK)


@pytest.mark.parametrize(
    ("make", "exchange", "apart"),
    [
        pytest.param(machines.averager("float32"), grouped("float32"), 3e-5, id="groups"),
        pytest.param(machines.averager("float32", 3), grouped("float32", 3), 3e-5, id="groups of 3"),
        pytest.param(machines.averager("bfloat16"), grouped("bfloat16"), 2e-3, id="groups, bfloat16"),
        pytest.param(machines.robust(8), Pulled(rounding("float32"), 8, robust=True), 3e-5, id="robust"),
        pytest.param(machines.private(), Hidden(Ranks(MESH, TASK, names_of(8)), 8), 3e-5, id="private"),
        pytest.param(machines.on_a_ring(), Linked(ring(8), rounding("float32")), 3e-5, id="ring"),
    ],
)  # fmt: skip
def test_machines_and_rows_come_to_the_same_models(make: Make, exchange: Exchange, apart: float) -> None:
    theirs, ours = of_machines(make), of_rows(exchange)
    begun = trainer_of(SAID, DATA, 0).vector()
    assert np.abs(theirs - begun).max() > 0.1  # they have gone a long way
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=apart)  # a step of bfloat16, or what sums in float32 leave


def test_rounded_machines_and_rows_are_as_near_to_the_exact_ones() -> None:
    """What is rounded by lot differs; by how much, in models that train on, is what both share."""
    exact = of_machines(machines.averager("float32"))
    theirs, ours = of_machines(machines.averager("int8")), of_rows(grouped("int8"))
    error, other = (float(np.sqrt(np.mean((models - exact) ** 2))) for models in (ours, theirs))
    assert 0.8 * other < error < 1.25 * other
    assert float(np.sqrt(np.mean((ours - theirs) ** 2))) < 2 * other
