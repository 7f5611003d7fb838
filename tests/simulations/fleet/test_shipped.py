"""Every learning scenario that ships is played: a round of each variant, of two where that is no work."""

from pathlib import Path

import pytest
from lepton.mesh.errors import UsageError
from lepton.simulations.fleet.learn import learn
from lepton.simulations.fleet.reading import load, population_for, shipped

REAL = Path(__file__).parents[4] / "shared" / "data"
SHORT = {"rounds": 1, "evaluate_nodes": 2, "train": {"local_steps": 2, "epochs": 0}}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_variant_that_ships_is_played(name: str) -> None:
    variants = load(name, SHORT)
    assert len({scenario.about for scenario in variants.values()}) == 1
    for scenario in variants.values():
        try:
            population = population_for(scenario, folder=REAL)
        except UsageError as error:
            if REAL.is_dir():
                raise
            pytest.skip(str(error))
        outcome = learn(scenario, population=population)
        assert len(outcome.rows) == 1
        assert outcome.rows[-1].worst <= outcome.rows[-1].best
        assert bool(outcome.rows[-1].extra) == (population.measure is not None)
        assert (outcome.rows[-1].megabytes_sent > 0) == (scenario.averaging.topology != "alone")


def test_a_comparison_of_who_exchanges_with_whom_comes_out_as_measured() -> None:
    """A tenth of the shipped comparison."""
    names = ("alone", "ring (D-PSGD)", "epidemic, 4 neighbours", "groups of 8", "everybody (FedAvg)")
    found = load("topologies", {"rounds": 20, "evaluate_every": 20})
    alone, ring, epidemic, groups, everybody = (learn(found[name]).rows[-1].mean for name in names)
    assert alone < ring < min(epidemic, groups)
    assert max(epidemic, groups) < everybody
    assert everybody > 0.9
    assert alone < 0.35
