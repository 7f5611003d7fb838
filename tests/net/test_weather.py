"""Three nodes on a network that loses, delays, reorders and falls apart: what they do goes on, and heals."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..node.processes.fakes import write_example
from .lan import Lan
from .nodes import Member, mesh_of, together, until

pytestmark = pytest.mark.net

Three = tuple[Member, Member, Member]


@pytest.fixture(scope="module")
def air(possible: None, seed: int) -> Iterator[Lan]:
    with Lan(seed) as lan:
        yield lan


@pytest.fixture(scope="module")
def three(air: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """Nodes that are up and together, each with data of its own."""
    folder = tmp_path_factory.mktemp("three")
    _, _, example, _ = write_example(folder)
    with mesh_of(air, folder, ["attic", "kitchen", "study"], words=("--data", f"example={example}")) as members:
        attic, kitchen, study = members
        until(lambda: together(members), *members)
        yield attic, kitchen, study


@pytest.fixture(autouse=True)
def calm(air: Lan, three: Three) -> Iterator[None]:
    """Every test begins and ends in good weather and with all of them together."""
    yield
    air.heal()
    air.change_all(delay_s=0.0, jitter_s=0.0, loss=0.0, copies=0.0, held=0.0)
    until(lambda: together(three), *three)


def tasks(member: Member) -> set[str]:
    return {task["name"] for task in member.status()["tasks"]}


@contextmanager
def losing(air: Lan) -> Iterator[None]:
    """See that the network did what the test is about."""
    before = air.counted["lost"]
    yield
    assert air.counted["lost"] > before + 10


def test_training_goes_on_over_a_bad_radio_link(air: Lan, three: Three) -> None:
    air.change_all(delay_s=0.02, jitter_s=0.01, loss=0.05, copies=0.01, held=0.05)
    with losing(air):
        said = three[0].said("train", "rain", "--data", "example", "--rounds", "20", "--plain")
    assert "'rain' is trained: version 1, 20 rounds." in said
    until(lambda: all("rain" in tasks(member) for member in three), *three)


def test_both_sides_of_a_partition_go_on_and_agree_when_it_heals(air: Lan, three: Three) -> None:
    attic, kitchen, study = three
    air.split({"attic", "kitchen"}, {"study"})
    until(lambda: attic.sees() == {"kitchen"} and kitchen.sees() == {"attic"} and not study.sees(), *three)
    left = attic.begin("train", "left", "--data", "example", "--rounds", "5", "--plain")
    assert "'right' is trained" in study.said("train", "right", "--data", "example", "--rounds", "5", "--plain")
    assert left.ended() == 0, left.err
    assert "right" not in tasks(attic) | tasks(kitchen)
    assert "left" not in tasks(study)
    air.heal()
    until(lambda: together(three), *three)
    until(lambda: all(tasks(member) >= {"left", "right"} for member in three), *three)


@pytest.mark.slow
def test_two_that_cannot_hear_each_other_one_way_are_seen_by_the_third(air: Lan, three: Three) -> None:
    attic, kitchen, study = three
    air.change("study", "attic", cut=True)
    until(lambda: "study" not in attic.sees() and "attic" not in study.sees(), *three)
    assert kitchen.sees() == {"attic", "study"}
    air.heal()
    until(lambda: together(three), *three)
