"""Sweeps: the same bits in every engine, whoever dies; what is finished is kept; what fails is said."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from lepton.mesh.errors import LinkError, UsageError
from lepton.simulations.fleet import cells, cluster
from lepton.simulations.fleet.fleet import Fleet
from lepton.simulations.fleet.learn import learn
from lepton.simulations.fleet.outcome import Outcome
from lepton.simulations.fleet.reading import population_for
from lepton.simulations.fleet.report import archive
from lepton.simulations.fleet.scenario import Data, Faults, Model, Scenario, Train
from lepton.simulations.fleet.spreading import Spread, train
from lepton.simulations.fleet.sweep import Swept, mean_of, place_of, sweep
from lepton.simulations.fleet.training import Trainer
from torch import Tensor, nn

from .made_up import outcome

TINY = Scenario(
    about="Four devices.", nodes=4, rounds=2, data=Data(samples=64, test=32), train=Train(local_steps=1, batch_size=8)
)  # fmt: skip
LARGE = Scenario(
    about="Three blocks of devices, some of them slow, away or liars.", nodes=100, rounds=3,
    data=Data(samples=400, test=50), train=Train(local_steps=2, momentum=0.5, weight_decay=0.01),
    faults=Faults(away=0.1, stragglers=0.2, attackers=0.1, attack="label_flip"),
)  # fmt: skip
OVER = {"averaging.codec": ["float32", "int8"], "seed": range(3)}
# What a worker imports: models whose making is the death of the process that makes them.
MODELS = """
import os, threading
from pathlib import Path
from torch import nn
HERE = Path(__file__).parent

def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def doomed_once():
    try:
        (HERE / "begun").touch(exist_ok=False)
    except FileExistsError:
        return model()
    with open(HERE / "victim", "w") as pipe:
        pipe.write(str(os.getpid()))
    threading.Event().wait(60)  # until it is killed

def poison():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of that module; who announces itself in its pipe is killed, in the middle of a cell."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "deadly_models.py").write_text(MODELS, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "models"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "models"))
    pipe = tmp_path / "models" / "victim"
    os.mkfifo(pipe)
    killer = threading.Thread(target=lambda: os.kill(int(pipe.read_text("utf-8") or "0"), signal.SIGKILL), daemon=True)
    killer.start()
    yield "deadly_models"
    assert not killer.is_alive(), "nobody was killed"


def embedded(swept: Swept) -> dict[str, Outcome]:
    """What the engine gives in this very process."""
    return {cell.name: msgspec.structs.replace(learn(cell.scenario), name=cell.name) for cell in swept.cells}


def by_name(swept: Swept) -> dict[str, Outcome]:
    return {cell.name: swept.outcomes[cell] for cell in swept.cells}


def test_every_value_meets_every_other() -> None:
    made = cells.grid(TINY, OVER)
    assert [cell.name for cell in made[:4]] == [
        *(f"averaging.codec=float32, seed={seed}" for seed in range(3)),
        "averaging.codec=int8, seed=0",
    ]
    assert made[4].scenario == msgspec.structs.replace(
        TINY, seed=1, averaging=msgspec.structs.replace(TINY.averaging, codec="int8")
    )
    assert len({cell.key for cell in made}) == 6
    assert {cell.setting for cell in made} == {"averaging.codec=float32", "averaging.codec=int8"}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"averaging.codek": ["int8"]}, "There is no setting 'averaging.codek'"),
        ({"averaging.codec": ["int7"]}, "averaging.codec cannot be 'int7'. Did you mean 'int8'?"),
        ({"averaging": [{}]}, "There is no setting 'averaging'"),
        ({"seed": []}, "name one value at least"),
        ({"seed": range(200), "train.batch_size": range(1, 200)}, "more than the 10,000 of one sweep"),
    ],
)
def test_what_cannot_be_swept_is_said(over: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sweep(TINY, over)
    with pytest.raises(UsageError, match="give it with the engine `dask`"):
        sweep(TINY, {"seed": [1]}, address="tcp://127.0.0.1:1")


def test_a_pool_gives_the_bits_of_this_process_though_a_worker_dies(models: str) -> None:
    scenario = msgspec.structs.replace(TINY, model=Model(architecture=f"{models}:doomed_once"))
    swept = sweep(scenario, OVER, jobs=2)
    assert swept.failed == {}
    assert by_name(swept) == embedded(swept)


def test_a_cluster_gives_the_bits_of_this_process_though_workers_die(models: str) -> None:
    with cluster.Cluster(jobs=2).started() as running:
        address = running.scheduler_address
        scenario = msgspec.structs.replace(TINY, model=Model(architecture=f"{models}:doomed_once"))
        swept = sweep(scenario, OVER, engine="dask", address=address)
        assert swept.failed == {}
        assert by_name(swept) == embedded(swept)

        with cluster.Cluster(address).client() as client:
            assert spread_over(client) == learn(LARGE)


def spread_over(client: Any) -> Outcome:
    """A fleet whose nodes train on the workers, of which one dies after the first round."""
    counts = []

    def killing(round_: int, _row: object) -> None:
        if round_ == 1:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    def over(fleet: Fleet) -> Spread:
        nodes, todo = np.arange(LARGE.nodes), np.full(LARGE.nodes, 2)
        counts.append(len(fleet.training.shares(nodes, todo, 4)))
        return Spread(fleet, client, None)

    outcome = learn(LARGE, progress=killing, trainer=over)
    assert counts == [3], "a fleet of one share would show nothing"
    return outcome


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_shares_trained_each_by_itself_are_what_they_are_together(count: int) -> None:
    def shared(fleet: Fleet) -> Trainer:
        training = fleet.training

        class Shares:
            def run(
                self, before: Tensor, after: Tensor, momentum: Tensor | None, nodes: Any, done: Any, todo: Any
            ) -> None:
                after.copy_(before)
                shares = training.shares(nodes, todo, count)
                assert len(shares) <= count
                assert sorted(np.concatenate(shares)) == list(range(len(nodes)))
                for share in shares:
                    models, kept = before[nodes[share]], None if momentum is None else momentum[nodes[share]]
                    training.run_share(models, kept, nodes[share], done[share], todo[share])
                    after[nodes[share]] = models
                    if momentum is not None and kept is not None:
                        momentum[nodes[share]] = kept

        return Shares()

    assert learn(LARGE, trainer=shared) == learn(LARGE)


def test_a_fleet_that_no_worker_could_build_is_refused() -> None:
    def over(fleet: Fleet) -> Spread:
        return Spread(fleet, None, None)  # type: ignore[arg-type]  # nobody is asked

    with pytest.raises(UsageError, match=r"name it there as package\.module:factory"):
        learn(TINY, module=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), trainer=over)


def test_a_worker_with_other_data_or_versions_refuses() -> None:
    spread = Spread(Fleet(TINY, population_for(TINY)), None, None)  # type: ignore[arg-type]  # nobody is asked
    none = np.zeros(0, np.int64)
    scenario, folder, digest, versions = spread.job
    for job, said in (
        ((scenario, folder, "0" * 64, versions), "A worker has other data"),
        ((scenario, folder, digest, ("torch 1.0",)), "and not torch 1.0"),
    ):
        with pytest.raises(UsageError, match=said):
            train(job, np.zeros((0, 1), np.float32), None, none, none, none)


def test_a_cell_that_kills_every_process_is_given_up_and_the_others_go_on(models: str) -> None:
    sweep(TINY, {"model.architecture": [f"{models}:doomed_once"]}, jobs=1)  # feeds the fixture's killer
    swept = sweep(TINY, {"model.architecture": ["linear", f"{models}:poison", f"{models}:model"]}, jobs=2)
    assert [(cell.name, why) for cell, why in swept.failed.items()] == [
        (f"model.architecture={models}:poison", "its process died 2 times with nothing beside it: it may lack memory")
    ]
    assert by_name_left(swept) == ["model.architecture=linear", f"model.architecture={models}:model"]
    assert "failed: its process died" in swept.table()


def by_name_left(swept: Swept) -> list[str]:
    return [cell.name for cell in swept.cells if cell in swept.outcomes]


def test_a_cell_that_cannot_be_played_says_why_and_the_others_go_on() -> None:
    swept = sweep(TINY, {"model.architecture": ["linear", "nonsense"]}, jobs=1)
    assert [cell.name for cell in swept.outcomes] == ["model.architecture=linear"]
    assert ["there is no architecture 'nonsense'" in why for why in swept.failed.values()] == [True]


def test_a_sweep_that_was_broken_off_plays_only_what_is_missing(tmp_path: Path) -> None:
    finished: list[str] = []

    def interrupted(cell: cells.Cell, _why: str) -> None:
        finished.append(cell.name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(TINY, {"seed": range(3)}, jobs=1, out=tmp_path, done=interrupted)
    first = cells.grid(TINY, {"seed": range(3)})[0]
    kept = place_of(first, tmp_path)
    assert list(archive.gather([tmp_path / "cells"])) == finished == [first.name]
    kept.write_bytes(archive.dump(msgspec.structs.replace(archive.load(kept), parameters=7)))  # to know it again

    swept = sweep(TINY, {"seed": range(3)}, jobs=1, out=tmp_path)
    assert [swept.outcomes[cell].parameters == 7 for cell in swept.cells] == [True, False, False]
    changed = sweep(msgspec.structs.replace(TINY, rounds=1), {"seed": [0]}, jobs=1, out=tmp_path)
    assert [one.parameters == 7 for one in changed.outcomes.values()] == [False], "another scenario's outcome"


def test_a_worker_of_another_version_is_refused() -> None:
    (cell,) = cells.grid(TINY, {"seed": [1]})
    text, name, folder, ours = cells.arguments(cell, None)
    assert cells.play(text, name, folder, (ours[0], "torch 1.0")) == (
        b"", f"this worker has {ours[0]} and {ours[1]}, the sweep {ours[0]} and torch 1.0: bits would differ",
    )  # fmt: skip


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install 'lepton-node\[cluster\]'"):
        sweep(TINY, {"seed": [1]}, engine="dask")


def test_a_scheduler_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.2)
    with pytest.raises(LinkError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        sweep(TINY, {"seed": [1]}, engine="dask", address="tcp://127.0.0.1:9")


def test_a_table_of_means_and_deviations_over_seeds() -> None:
    made = tuple(cells.grid(TINY, {"averaging.codec": ["int8"], "seed": [1, 2]}))
    runs = [outcome("a", rounds=2), outcome("b", rounds=2)]
    runs[1] = msgspec.structs.replace(
        runs[1], rows=(*runs[1].rows[:1], msgspec.structs.replace(runs[1].rows[1], mean=0.6))
    )
    swept = Swept(made, dict(zip(made, runs, strict=True)))
    assert (
        swept.table()
        .splitlines()[1]
        .startswith("averaging.codec=int8      2  0.7000 ± 0.1414  0.7000 ± 0.0000  0.9000 ± 0.0000")
    )
    mean = mean_of(runs, "both")
    assert [(row.worst, row.mean, row.best) for row in mean.rows] == [(0.4, 0.4, 0.4), (0.6, 0.7, 0.8)]
    assert len(mean.final) == 8
    assert len(swept.csv().splitlines()) == 3
