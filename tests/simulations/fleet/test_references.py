"""The lines that a fleet has to beat are those that the data's readme states."""

from pathlib import Path

import pytest
from lepton.simulations.fleet.reading import load, population_for
from lepton.simulations.fleet.references import references_for

REAL = Path(__file__).parents[4] / "shared" / "data"
WANTED = {  # by the last figure of each line
    "traffic": {"what is now stays": 5.21, "one linear rule for all": 5.17},
    "cameras": {"difference to own background": 0.91, "the same, light evened out": 0.99},
    "hospitals": {"always the most frequent": 0.53, "logistic regression, all data": 0.80},
    "rooms": {"always the most frequent": 0.64, "logistic regression, all data": 0.95},
    "phones": {"always the most frequent": 0.09, "logistic regression, all data": 0.96},
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_what_has_to_be_beaten_is_worked_out_beside_it(name: str) -> None:
    scenario = next(iter(load(name).values()))
    if name != "phones" and not REAL.is_dir():
        pytest.skip(f"no data in {REAL}")
    lines = references_for(scenario, population_for(scenario, folder=REAL))
    last = {line: list(figures.values())[-1] for line, figures in lines.items()}
    assert last == pytest.approx(WANTED[name], abs=0.02)
