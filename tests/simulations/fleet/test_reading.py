"""Scenarios and data are read whole, or an error names the key, the value or the folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lepton.mesh.errors import UsageError
from lepton.simulations.fleet.reading import load, population_for, read
from lepton.simulations.fleet.scenario import Data, Scenario

REAL = Path(__file__).parents[4] / "shared" / "data"
LEAST: dict[str, Any] = {"about": "least", "nodes": 4, "rounds": 2}
NODES = {
    "speech": 4,
    "hospitals": 4,
    "shakespeare": 50,
    "traffic": 207,
    "nab": 3,
    "video": 8,
    "occupancy": 7,
    "adl": 10,
}
SILOS = tuple(NODES)
OWN = tuple(name for name in SILOS if name not in {"occupancy", "adl"})
VALUES = ("diabetes", "traffic", "nab", "video")
CARRIED = ("digits", "breast_cancer", "diabetes")
BROUGHT = ("mnist", "fashion_mnist", "retinopathy", *SILOS)


def of(name: str, **changes: Any) -> Scenario:
    objective: Any = "mse" if name in VALUES else "cross_entropy"
    data = Data(**{"name": name, "split": "even", **changes})
    return Scenario(about="", nodes=NODES.get(name, 3), rounds=1, objective=objective, data=data)


@pytest.mark.parametrize("name", CARRIED + BROUGHT)
def test_every_data_set_becomes_a_population(name: str) -> None:
    if name in BROUGHT and not REAL.is_dir():
        pytest.skip(f"no data in {REAL}")
    found = population_for(of(name, split="silo" if name in SILOS else "even"), folder=REAL)
    assert len(found.inputs) == len(found.labels) == len(np.unique(found.order))
    assert len(found.test_inputs) == len(found.test_labels) > 50
    assert found.inputs.shape[1:] == found.test_inputs.shape[1:]
    assert found.nodes == len(found.counts) == NODES.get(name, 3)
    for part in (found.inputs, found.test_inputs):
        assert part.isfinite().all()
        assert part.dtype == torch.int64 or part.abs().mean() < 3
    assert len(found.names) == (found.nodes if name in SILOS else 0)
    if name in VALUES:
        assert found.labels.shape[1] == found.classes
    else:
        assert set(found.labels.unique().tolist()) <= set(range(found.classes))


@pytest.mark.parametrize("name", OWN)
def test_a_silo_can_be_tested_on_its_own_part(name: str) -> None:
    if not REAL.is_dir():
        pytest.skip(f"no data in {REAL}")
    found = population_for(of(name, split="silo", tested_on="own"), folder=REAL)
    assert sorted(np.concatenate(found.own_tests)) == list(range(len(found.test_labels)))


def test_fewer_samples_are_taken_from_each_silo_in_proportion() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no data in {REAL}")
    whole, some = (population_for(of("hospitals", split="silo", samples=count), folder=REAL) for count in (0, 200))
    assert some.counts.sum() == 200
    assert np.abs(some.counts / 200 - whole.counts / whole.counts.sum()).max() < 0.01


def test_data_that_are_not_there_say_how_to_name_their_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give their folder with --data FOLDER"):
        population_for(of("mnist"))
    with pytest.raises(UsageError, match=r"mnist_30k\.npz: the folder that --data or data\.folder names"):
        population_for(of("mnist"), folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "digit"}, "no data called 'digit'. Did you mean 'digits'?"),
        ({"split": "silo"}, "no silos of their own"),
        ({"samples": 5_000}, "5,000 samples are asked for, and these data have 1,438"),
    ],
)
def test_data_that_do_not_go_with_the_scenario_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        population_for(of(**{"name": "digits", **changes}))
    assert said in str(caught.value)


def test_values_are_not_learned_as_classes() -> None:
    with pytest.raises(UsageError, match="'diabetes' has values, so it is 'mse', 'mae' or 'huber'"):
        population_for(Scenario(about="", nodes=2, rounds=1, data=Data(name="diabetes", split="even")))


# -- files -------------------------------------------------------------------------------------------------------------


def test_variants_are_the_file_with_some_keys_changed() -> None:
    variants = [{"name": "ring", "averaging": {"topology": "ring"}}, {"name": "short", "rounds": 1}]
    found = read({**LEAST, "averaging": {"codec": "int8"}, "variant": variants}, "file", "file", {"seed": 7})
    assert list(found) == ["ring", "short"]
    assert found["ring"].averaging.topology == "ring"
    assert {one.averaging.codec for one in found.values()} == {"int8"}
    assert (found["ring"].rounds, found["short"].rounds) == (2, 1)
    assert {one.seed for one in found.values()} == {7}


def test_a_file_is_read_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('about = "mine"\nnodes = 2\nrounds = 3\n', "utf-8")
    assert load(str(tmp_path / "mine.toml")) == {"mine": Scenario(about="mine", nodes=2, rounds=3)}


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"node": 4}, "there is no key 'node'. Did you mean 'nodes'?"),
        ({"train": {"local_step": 4}}, "there is no key 'train.local_step'. Did you mean 'train.local_steps'?"),
        ({"variant": [{"name": "a", "faults": {"awya": 0.1}}]}, "Did you mean 'faults.away'?"),
        ({"averaging": {"topology": "rign"}}, "averaging.topology cannot be"),
        ({"variant": [{"nodes": 3}]}, "every variant has a name of its own"),
        ({"variant": [{"name": "a"}, {"name": "a"}]}, "every variant has a name of its own"),
        ({"variant": {"name": "a"}}, "[[variant]]"),
    ],
)
def test_what_cannot_be_is_named(added: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(LEAST | added, "my.toml", "my", {})
    assert str(caught.value).startswith("my.toml: ")
    assert said in str(caught.value)
