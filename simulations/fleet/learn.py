"""Learning in one call: `learn(Scenario(about="a try", nodes=64, rounds=20)).rows[-1].mean`."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from .checkpoint import resume, save
from .exchange import Exchange
from .fleet import Fleet
from .networks import Module
from .outcome import Outcome, Row
from .population import Population
from .reading import population_for
from .scenario import Scenario
from .training import Trainer

Progress = Callable[[int, Row | None], None]  # the round that is over, and its row where the fleet was evaluated

_SAVED_EVERY: Final = 10  # rounds: at most so many are played twice


def learn(
    scenario: Scenario,
    *,
    population: Population | None = None,
    module: Module | None = None,
    exchange: Exchange | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    trainer: Callable[[Fleet], Trainer] | None = None,
) -> Outcome:
    """Play a scenario to its end.

    ``population`` is what its nodes hold, ``module`` what they train (a module, or a function that makes one) and
    ``exchange`` how they average, each in place of what the scenario says. ``checkpoint`` is a file that is written
    every ten rounds and at the end, and gone on from where it is there already. ``progress`` hears of every round;
    what it raises ends the run, with its checkpoint written. ``trainer`` says where nodes train, if not here: see
    `spreading.Spread`.
    Raises UsageError for what cannot be played, LeptonError when the training diverges or the disk is full.
    """
    given = population if population is not None else population_for(scenario)
    fleet = Fleet(scenario, given, module=module, exchange=exchange, device=device)
    if trainer is not None:
        fleet.trainer = trainer(fleet)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        resume(fleet, path)
    while fleet.state.round < scenario.rounds:
        row = fleet.step()
        due = fleet.state.round % _SAVED_EVERY == 0 or fleet.state.round == scenario.rounds
        try:
            if progress is not None:
                progress(fleet.state.round, row)
        except BaseException:
            due = True  # whoever stops it here may want to go on: between two rounds a fleet is whole
            raise
        finally:
            if path is not None and due:
                save(fleet, path)
    return fleet.outcome()
