"""All nodes of a learning scenario, round after round: who is here trains, exchanges, and is looked at.

The models of N nodes are one tensor (N, D). All chance of a round is drawn from (seed, what for, round), so a fleet's
whole state is its models, their momentum and some counts, and a run that was broken off goes on to the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ...gossip.errors import BadSetup
from ...mesh.errors import LeptonError, UsageError
from . import faults
from .attacks import attack, give_back
from .batches import Batches, Hashed, Ints, Passes
from .clock import seconds_of_round
from .evaluation import Examiner, consensus_of, distinct_of
from .exchange import Exchange, Mixed, Moment
from .exchanges.choice import exchange_for
from .networks import Module, Network, first_values, made, network_for
from .outcome import Outcome, Row
from .population import Population
from .scenario import Scenario
from .training import Trainer, Training, samples_of


@dataclass(slots=True, eq=False)
class State:
    """All that changes from round to round."""

    models: Tensor  # (N, D)
    momentum: Tensor | None  # (N, D)
    done: Ints  # (N,): steps
    sent: Ints  # (N,): bytes
    round: int = 0  # that comes next
    seconds: float = 0.0
    passed_s: float = 0.0  # in the last round
    rows: list[Row] = field(default_factory=list)


class Fleet:
    """One run of a scenario, a round at a time. Raises UsageError where scenario, data and model do not fit."""

    def __init__(
        self,
        scenario: Scenario,
        population: Population,
        *,
        module: Module | None = None,
        exchange: Exchange | None = None,
        passes: Passes | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """``passes`` shuffles samples; given `Deployed(seed)` the batches are those of nodes with that seed.

        Nodes train and are looked at on ``device``. They exchange on the CPU, so elsewhere models travel every round.
        """
        if population.nodes != scenario.nodes:
            raise UsageError(f"the scenario has {scenario.nodes} nodes, its data are those of {population.nodes}")
        self.scenario, self.population, self._device = scenario, population, torch.device(device)
        model = made(scenario, population, module)
        self.network = network_for(model, scenario.objective)
        self.attackers = faults.attackers_of(scenario)
        self.exchange = exchange if exchange is not None else _exchange(scenario)
        self.presence = faults.Presence(scenario)
        self._slowness = faults.slowness_of(scenario)
        self._batches = _batches(scenario, population, passes)
        self.training = _training(scenario, population, self.network, self._batches, self._device)
        self.trainer: Trainer = self.training
        self.described = module is None and passes is None
        self._examiner = Examiner(self.network, scenario, population, self._device)
        self._examined = self._chosen()
        self._todo = self._steps()
        self.state = self._begun(first_values(model).to(self._device))
        self._after = torch.empty_like(self.state.models)

    @property
    def parameters(self) -> int:
        """D, of one model."""
        return self.state.models.shape[1]

    def rounds(self) -> Iterator[Row]:
        """Play what is left of the scenario; a row for each round in which the fleet is evaluated."""
        while self.state.round < self.scenario.rounds:
            if (row := self.step()) is not None:
                yield row

    def step(self) -> Row | None:
        """Play one round. Raises LeptonError when the training has diverged."""
        state, scenario = self.state, self.scenario
        here = self.presence.here(state.round, state.passed_s)
        mixed = self._mixed(here)
        if mixed.models is not self._after:
            state.models = mixed.models
        else:
            state.models, self._after = mixed.models, state.models
        state.passed_s = seconds_of_round(scenario.link, here, self._todo, self._slowness, mixed)
        state.seconds += state.passed_s
        state.sent += mixed.bytes_sent
        state.done += np.where(here, self._todo, 0)
        state.round += 1
        if state.round % scenario.evaluate_every and state.round != scenario.rounds:
            return None
        state.rows.append(row := self._row(int(here.sum())))
        return row

    def outcome(self) -> Outcome:
        """Return what came of it so far."""
        honest = np.flatnonzero(~self.attackers)
        quality = self._examiner.examine(self.state.models, honest).quality
        names = self.population.names
        return Outcome(
            name=self.scenario.about,
            scenario=self.scenario,
            rows=tuple(self.state.rows),
            parameters=self.parameters,
            final=tuple(quality.tolist()),
            names=tuple(names[node] for node in honest.tolist()) if names else (),
        )

    # -- a round ------------------------------------------------------------------------------------------------------

    def _mixed(self, here: faults.Flags) -> Mixed:
        """Train who is here, and let them exchange; attackers send what they will, and go on from what they learned."""
        state, nodes = self.state, np.flatnonzero(here)
        self.trainer.run(state.models, self._after, state.momentum, nodes, state.done[nodes], self._todo[nodes])
        if len(nodes) == 0:
            none = np.zeros(self.scenario.nodes, dtype=np.int64)
            return Mixed(models=self._after, bytes_sent=none, bytes_received=none, hops=0, averaged=none + 1)
        kind, bad = self.scenario.faults.attack, self.attackers
        if not bad.any():
            return self._exchanged(here)
        own = attack(kind, state.models, self._after, here=here, bad=bad, dice=self._dice(faults.ATTACK))
        mixed = self._exchanged(here)
        give_back(kind, mixed.models, own, here=here, bad=bad)
        return mixed

    def _exchanged(self, here: faults.Flags) -> Mixed:
        """Let nodes exchange, on the CPU wherever they train."""
        mixed = self.exchange.mix(
            Moment(
                round=self.state.round, before=self.state.models.cpu(), after=self._after.cpu(), here=here,
                weights=self.population.counts.astype(np.float64), loss=self.scenario.faults.loss,
                dice=self._dice(faults.EXCHANGE),
            )
        )  # fmt: skip
        models = mixed.models.to(self._device)
        return mixed if models is mixed.models else replace(mixed, models=models)

    def _dice(self, stream: faults.Stream) -> np.random.Generator:
        return faults.dice(self.scenario.seed, stream, self.state.round)

    def _row(self, here: int) -> Row:
        state = self.state
        distinct = distinct_of(state.models, self._examined)
        found = self._examiner.examine(state.models, self._examined, distinct)
        if not np.isfinite(found.loss).all():
            rate = self.scenario.train.learning_rate
            raise LeptonError(f"training diverged by round {state.round}: lower the learning rate, now {rate}")
        return Row(
            round=state.round,
            mean=float(found.quality.mean()),
            worst=float(found.quality.min()),
            best=float(found.quality.max()),
            loss=float(found.loss.mean()),
            consensus=consensus_of(state.models, distinct),
            megabytes_sent=float(state.sent.mean()) / 1e6,
            megabytes_sent_max=float(state.sent.max()) / 1e6,
            seconds=state.seconds,
            here=here,
            extra=found.extra,
        )

    # -- the beginning ------------------------------------------------------------------------------------------------

    def _begun(self, first: Tensor) -> State:
        models = first.repeat(self.scenario.nodes, 1)
        momentum = torch.zeros_like(models) if self.scenario.train.momentum else None
        none = np.zeros(self.scenario.nodes, dtype=np.int64)
        return State(models=models, momentum=momentum, done=none, sent=none.copy())

    def _chosen(self) -> Ints:
        """Return which nodes are looked at: honest ones, and the same in all rounds."""
        honest = np.flatnonzero(~self.attackers)
        if not (count := self.scenario.evaluate_nodes) or count >= len(honest):
            return honest
        drawn = faults.dice(self.scenario.seed, faults.EXAMINED).permutation(honest)[:count]
        return np.sort(drawn)

    def _steps(self) -> Ints:
        """Return how many steps each node takes in a round, (N,)."""
        said = self.scenario.train
        steps = self._batches.steps_of_epochs(said.epochs)
        if not said.epochs:
            steps = np.full(self.scenario.nodes, said.local_steps, dtype=np.int64)
        return faults.steps_in_time(steps, self._slowness)


def training_for(scenario: Scenario, population: Population) -> Training:
    """Return the training of a fleet that is described by its scenario and data alone. Raises UsageError."""
    network = network_for(made(scenario, population, None), scenario.objective)
    return _training(scenario, population, network, _batches(scenario, population, None), torch.device("cpu"))


def _training(
    scenario: Scenario, population: Population, network: Network, batches: Batches, device: torch.device
) -> Training:
    liars = faults.attackers_of(scenario) & (scenario.faults.attack == "label_flip")
    samples = samples_of(population, scenario.objective, liars, device)
    return Training(network, scenario.train, samples, batches)


def _batches(scenario: Scenario, population: Population, passes: Passes | None) -> Batches:
    return Batches(
        passes=passes if passes is not None else Hashed(scenario.seed), order=population.order,
        starts=population.starts, batch_size=scenario.train.batch_size, epochs=scenario.train.epochs > 0,
    )  # fmt: skip


def _exchange(scenario: Scenario) -> Exchange:
    try:
        return exchange_for(scenario)
    except BadSetup as error:
        raise UsageError(f"averaging: {error}") from error
