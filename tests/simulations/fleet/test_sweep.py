"""Sweeps: the same bits in every engine, whoever dies; what is finished is kept; what fails is said."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lepton.mesh.errors import LinkError, UsageError
from lepton.simulations.fleet import cells, cluster
from lepton.simulations.fleet.learn import learn
from lepton.simulations.fleet.outcome import Outcome
from lepton.simulations.fleet.report import archive
from lepton.simulations.fleet.scenario import Data, Model, Scenario, Train
from lepton.simulations.fleet.sweep import Swept, mean_of, place_of, sweep

from .made_up import outcome

TINY = Scenario(
    about="Four devices.", nodes=4, rounds=2, data=Data(samples=64, test=32), train=Train(local_steps=1, batch_size=8)
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
        ({"averaging.codec": ["int7"]}, "Invalid enum value 'int7'"),
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


def test_a_cluster_gives_the_bits_of_this_process_though_a_worker_dies(models: str) -> None:
    scenario = msgspec.structs.replace(TINY, model=Model(architecture=f"{models}:doomed_once"))
    swept = sweep(scenario, OVER, engine="dask", jobs=2)
    assert swept.failed == {}
    assert by_name(swept) == embedded(swept)


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
