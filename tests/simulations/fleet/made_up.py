"""Outcomes that nobody ran: curves as simple as a test needs them."""

from typing import Any

from lepton.simulations.fleet.outcome import Outcome, Row
from lepton.simulations.fleet.scenario import Scenario


def row(round_: int, mean: float = 0.5, **also: Any) -> Row:
    values: dict[str, Any] = {
        "worst": mean - 0.1,
        "best": mean + 0.1,
        "loss": 1 / round_,
        "consensus": 0.5 / round_,
        "megabytes_sent": 0.25 * round_,
        "megabytes_sent_max": 0.5 * round_,
        "seconds": 2.0 * round_,
        "here": 4,
    }
    return Row(round=round_, mean=mean, **(values | also))


def outcome(name: str = "made", *, rounds: int = 3, nodes: int = 4, **settings: Any) -> Outcome:
    """A run in which the mean rises to 0.8, and node i ends at i / nodes."""
    about = settings.pop("about", "Made up.")
    scenario = Scenario(about=about, nodes=nodes, rounds=rounds, **settings)
    rows = tuple(row(number, 0.8 * number / rounds) for number in range(1, rounds + 1))
    final = tuple(place / nodes for place in range(nodes))
    return Outcome(name=name, scenario=scenario, rows=rows, parameters=4810, final=final)
