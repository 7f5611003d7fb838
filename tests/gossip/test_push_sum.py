"""Push-sum: no mass appears or vanishes, and everyone learns the mean, whatever the links do."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lepton.gossip.errors import BadContribution, BadSetup
from lepton.gossip.events import Expired
from lepton.gossip.push_sum import WEIGHT_MIN, Given, PushSum, ReceivedMass

if TYPE_CHECKING:
    from .conftest import World

NAMES = [f"peer-{i:02}" for i in range(16)]
WorldType = Callable[..., "World"]


def peers(seed: int) -> dict[str, PushSum]:
    rng = np.random.default_rng(seed)
    return {
        name: PushSum(
            (float(i), float(rng.normal())),
            weight=1.0 + i % 3,
            neighbours=tuple(other for other in NAMES if other != name),
            interval_s=0.1,
            rng=np.random.default_rng([seed, i]),
            now=0.0,
        )
        for i, name in enumerate(NAMES)
    }


def total_mass(machines: dict[str, PushSum]) -> np.ndarray:
    """Sum the mass held and the mass under way: given, and not yet taken."""
    total = sum(machine.mass for machine in machines.values())
    for name, machine in machines.items():
        for other, given_mass in machine._given.items():
            taken = machines[other]._taken.get(name)
            total = total + given_mass - (taken[2] if taken else 0)
    return np.asarray(total)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3]))
@settings(max_examples=5)
def test_mass_is_kept_and_the_mean_is_found_under_loss(world: WorldType, seed: int, loss: float) -> None:
    machines = peers(seed)
    before = total_mass(machines)
    played = world(machines, seed, loss=loss, duplication=0.2, delay_s=(0.0, 0.3))
    for name in NAMES:
        played.event(0.1, name, Expired())
    for until_s in (1.0, 5.0, 40.0):
        played.run(until_s)
        assert np.allclose(total_mass(machines), before, rtol=1e-9), f"seed {seed}"
    for machine in machines.values():
        assert np.allclose(machine.mean, before[:-1] / before[-1], atol=0.02), f"seed {seed}"


def given_of(values: tuple[float, ...] = (1.0,), weight: float = 1.0, sequence: int = 1, epoch: int = 0) -> Given:
    return Given(epoch=epoch, sequence=sequence, values=values, weight=weight)


def alone(**changes: object) -> PushSum:
    fields = {"neighbours": (), "interval_s": 1.0, "rng": np.random.default_rng(0), "now": 0.0}
    return PushSum((4.0,), **(fields | changes))  # type: ignore[arg-type]


def test_running_sums_are_taken_once_in_whatever_order() -> None:
    machine = alone()
    for given_mass in (given_of((2.0,), 2.0, sequence=2), given_of((1.0,), 1.0, sequence=1), given_of((2.0,), 2.0, 2)):
        assert machine.handle(ReceivedMass("b", given_mass), 0.0) == []
    assert machine.mass.tolist() == [6.0, 3.0]
    machine.handle(ReceivedMass("b", given_of((3.0,), 1.0, epoch=1)), 0.0)  # b was started anew
    machine.handle(ReceivedMass("b", given_of((9.0,), 9.0, sequence=9, epoch=0)), 0.0)
    assert machine.mass.tolist() == [9.0, 4.0]


@pytest.mark.parametrize(
    ("given_mass", "words"),
    [
        (given_of((math.nan,)), "b: 2 finite numbers are due"),
        (given_of((1.0,), math.inf), "b: 2 finite numbers are due"),
        (given_of((1.0, 2.0)), "b: 2 finite numbers are due"),
        (given_of((1.0,), -1.0), "b: it takes back weight: 0.0 became -1.0"),
    ],
)
def test_bad_mass_is_refused_and_changes_nothing(given_mass: Given, words: str) -> None:
    machine = alone()
    with pytest.raises(BadContribution, match=words):
        machine.handle(ReceivedMass("b", given_mass), 0.0)
    assert machine.mass.tolist() == [4.0, 1.0]


def test_mass_is_given_when_it_is_time_and_as_long_as_there_is_some() -> None:
    assert alone().handle(Expired(), 5.0) == []
    machine = alone(neighbours=("b",))
    assert machine.handle(Expired(), 0.5) == []
    sent = 0
    while machine.deadline < 100:
        sent += len(machine.handle(Expired(), machine.deadline))
    assert sent == 30
    assert machine.mass[-1] < WEIGHT_MIN
    assert machine.mean.tolist() == [4.0]


@pytest.mark.parametrize("changes", [{"weight": 0.0}, {"weight": math.nan}])
def test_push_sum_starts_from_finite_numbers(changes: dict[str, float]) -> None:
    with pytest.raises(BadSetup, match="positive weight"):
        alone(**changes)
    with pytest.raises(BadSetup, match="finite values"):
        PushSum((math.inf,), neighbours=(), interval_s=1.0, rng=np.random.default_rng(0), now=0.0)
