"""A fleet learns as real trainers do, comes out the same each time, and goes on from where it was broken off."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from lepton.mesh.errors import LeptonError, UsageError
from lepton.node.learning.data import Dataset
from lepton.node.learning.settings import TrainSettings
from lepton.node.learning.trainer import Trainer
from lepton.simulations.fleet.batches import Deployed
from lepton.simulations.fleet.checkpoint import resume, save
from lepton.simulations.fleet.exchange import Mixed, Moment
from lepton.simulations.fleet.exchanges.rounding import rounding
from lepton.simulations.fleet.exchanges.whole import Complete
from lepton.simulations.fleet.fleet import Fleet
from lepton.simulations.fleet.learn import learn
from lepton.simulations.fleet.networks import spec_of
from lepton.simulations.fleet.population import Population
from lepton.simulations.fleet.scenario import Faults, Link, Model, Scenario, Train

from .crowds import population

COUNTS = [3, 17, 40, 1, 8]


def scenario(**changes: object) -> Scenario:
    usual = Scenario(
        about="five", nodes=len(COUNTS), rounds=4, seed=3, model=Model(hidden=6),
        train=Train(local_steps=3, batch_size=4, momentum=0.5, weight_decay=0.01),
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


@dataclass(frozen=True)
class Alone:
    """Nobody exchanges, whatever it costs."""

    sent: int = 0
    received: int = 0
    hops: int = 0

    def mix(self, moment: Moment) -> Mixed:
        one = moment.here.astype(np.int64)
        return Mixed(
            models=moment.after, bytes_sent=self.sent * one, bytes_received=self.received * one, hops=self.hops,
            averaged=np.ones_like(one),
        )  # fmt: skip


def trainer_of(said: Scenario, data: Population, node: int) -> Trainer:
    own = data.order[data.starts[node] : data.starts[node + 1]]
    dataset = Dataset(
        x=data.inputs.numpy()[own], y=data.labels.numpy()[own], classes=data.classes,
        x_test=data.test_inputs.numpy(), y_test=data.test_labels.numpy(),
    )  # fmt: skip
    train = said.train
    settings = TrainSettings(
        batch_size=train.batch_size, learning_rate=train.learning_rate, momentum=train.momentum,
        weight_decay=train.weight_decay, seed=9,
    )  # fmt: skip
    return Trainer(spec_of(said, data), dataset, settings)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.01)])
def test_rows_train_as_real_trainers_do(momentum: float, decay: float) -> None:
    train = Train(local_steps=5, batch_size=4, learning_rate=0.2, momentum=momentum, weight_decay=decay)
    said, data = scenario(train=train), population(COUNTS)
    fleet = Fleet(said, data, exchange=Alone(), passes=Deployed(9))
    rows = list(fleet.rounds())
    trainers = [trainer_of(said, data, node) for node in range(said.nodes)]
    for node, trainer in enumerate(trainers):
        trainer.run_steps(4 * 5)
        np.testing.assert_allclose(fleet.state.models[node].numpy(), trainer.vector(), rtol=1e-4, atol=1e-5)
    found = [trainer.evaluate() for trainer in trainers]
    assert rows[-1].loss == pytest.approx(np.mean([one.loss for one in found]), rel=1e-4)
    assert rows[-1].worst == pytest.approx(min(one.accuracy for one in found))
    assert fleet.outcome().final == pytest.approx([one.accuracy for one in found])


@pytest.mark.parametrize("faults", [Faults(), Faults(away=0.4, stragglers=0.4, slowness=9), Faults(away=0.4, stay_s=1)])
def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(tmp_path: Path, faults: Faults) -> None:
    said, data, path = scenario(faults=faults), population(COUNTS), tmp_path / "fleet.safetensors"
    whole, broken, again = (Fleet(said, data) for _ in range(3))
    rows = list(whole.rounds())
    broken.step()
    broken.step()
    save(broken, path)
    resume(again, path)
    list(again.rounds())
    assert torch.equal(again.state.models, whole.state.models)
    assert again.state.rows == rows
    assert again.outcome() == whole.outcome()


def test_learning_goes_on_from_its_file_and_not_from_that_of_another_scenario(tmp_path: Path) -> None:
    data, path, heard = population(COUNTS), tmp_path / "fleet.safetensors", []
    first = learn(scenario(), population=data, checkpoint=path)
    again = learn(scenario(), population=data, checkpoint=path, progress=lambda *said: heard.append(said))
    assert again == first
    assert heard == []
    with pytest.raises(UsageError, match="another scenario"):
        learn(scenario(seed=4), population=data, checkpoint=path)
    path.write_bytes(b"no such thing")
    with pytest.raises(UsageError, match="no fleet"):
        learn(scenario(), population=data, checkpoint=path)


def test_who_is_away_keeps_its_model_and_its_place_in_its_data() -> None:
    fleet = Fleet(scenario(rounds=1, faults=Faults(away=0.4)), population(COUNTS))
    first = fleet.state.models.clone()
    row = fleet.step()
    assert row is not None
    assert row.here == 3
    kept = fleet.presence.away
    assert torch.equal(fleet.state.models[kept], first[kept])
    assert (fleet.state.done == np.where(kept, 0, 3)).all()


def test_a_fleet_learns_and_says_what_it_cost() -> None:
    link = Link(latency_s=1.0, up_bytes_per_s=1e3, down_bytes_per_s=1e4, step_s=0.5)
    said = scenario(rounds=30, evaluate_every=15, link=link, train=Train(epochs=1, batch_size=8, learning_rate=0.3))
    outcome = learn(said, population=population(COUNTS), exchange=Alone(sent=500, received=2000, hops=8))
    assert [row.round for row in outcome.rows] == [15, 30]
    assert outcome.rows[-1].megabytes_sent == pytest.approx(30 * 500 / 1e6)
    assert outcome.rows[0].seconds == pytest.approx(15 * (5 * 0.5 + 500 / 1e3 + 8 * 1.0))


def test_a_fleet_learns_together_what_none_of_it_knows() -> None:
    said = scenario(rounds=40, evaluate_every=20, train=Train(epochs=1, batch_size=8, learning_rate=0.1))
    together, alone = (learn(said, population=population(COUNTS), exchange=how) for how in (None, Alone()))
    assert together.rows[-1].mean > alone.rows[-1].mean + 0.1
    assert together.rows[-1].consensus < 1e-6 < alone.rows[-1].consensus


def test_labels_turned_around_teach_the_wrong_class() -> None:
    said = scenario(rounds=5, faults=Faults(attackers=0.4, attack="label_flip"), train=Train(local_steps=20))
    fleet = Fleet(said, population([40] * 5), exchange=Alone())
    list(fleet.rounds())
    quality = fleet._examiner.examine(fleet.state.models, np.arange(5)).quality
    assert max(quality[fleet.attackers]) < min(quality[~fleet.attackers]) - 0.2
    assert len(fleet.outcome().final) == 3


def test_attackers_lie_to_the_others_and_go_on_by_themselves() -> None:
    seen: list[Moment] = []

    class Watched(Alone):
        def mix(self, moment: Moment) -> Mixed:
            seen.append(dataclasses.replace(moment, after=moment.after.clone()))
            return Complete(rounding("float32")).mix(moment)

    said = scenario(rounds=1, faults=Faults(attackers=0.4, attack="scaled"))
    honest, fooled = (
        Fleet(scenario(rounds=1), population(COUNTS), exchange=Alone()),
        Fleet(said, population(COUNTS), exchange=Watched()),
    )
    honest.step()
    fooled.step()
    bad, begun = fooled.attackers, seen[0].before
    own = honest.state.models
    torch.testing.assert_close(seen[0].after[bad] - begun[bad], 10 * (own[bad] - begun[bad]), rtol=1e-3, atol=1e-5)
    assert torch.equal(seen[0].after[~bad], own[~bad])
    assert torch.equal(fooled.state.models[bad], own[bad])
    assert not torch.equal(fooled.state.models[~bad], own[~bad])


def test_training_that_diverges_is_named() -> None:
    with pytest.raises(LeptonError, match="learning rate"):
        learn(scenario(train=Train(learning_rate=1e12, local_steps=30)), population=population(COUNTS))


def test_data_of_another_number_of_nodes_are_refused() -> None:
    with pytest.raises(UsageError, match="5 nodes"):
        learn(scenario(), population=population([4, 4]))
