"""The fleet's commands as their user meets them."""

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from lepton.simulations.__main__ import main
from lepton.simulations.fleet import progress
from lepton.simulations.fleet.outcome import Outcome, Row
from lepton.simulations.fleet.report import archive, pictures

from .made_up import outcome


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    archive.save(outcome("phones"), tmp_path / "a" / "outcome.json")
    archive.save(outcome("phones", rounds=2), tmp_path / "b" / "outcome.json")
    return tmp_path


def test_saved_runs_are_laid_side_by_side(saved: Path) -> None:
    ran = command("compare", saved / "a", saved / "b" / "outcome.json", "--out", saved / "both")
    assert ran.exit_code == 0, ran.output
    assert [line.split("  ")[0] for line in ran.output.splitlines()[:3]] == ["run", "phones", "phones (b)"]
    assert "They differ in rounds." in ran.output
    written = {path.name for path in (saved / "both").iterdir()}
    assert written == {"report.html", "rounds.csv", "quality.png", "spread.png"}


def test_other_programs_get_a_line_of_json_a_run(saved: Path) -> None:
    lines = command("compare", saved, "--json").stdout.splitlines()
    labels = [json.loads(line).pop("label") for line in lines]
    assert labels == ["phones", "phones (b)"]
    found = json.loads(lines[0])
    assert msgspec.convert({key: found[key] for key in found if key != "label"}, Outcome) == outcome("phones")


def test_without_matplotlib_the_rest_is_written_and_the_extra_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "possible", lambda: False)
    ran = command("compare", saved, "--out", saved / "both")
    assert "pip install 'lepton-node[plot]'" in ran.output
    assert {path.name for path in (saved / "both").iterdir()} == {"report.html", "rounds.csv"}


def test_what_cannot_be_compared_is_said_in_a_sentence(saved: Path) -> None:
    (saved / "a" / "outcome.json").write_text("{}", "utf-8")
    for arguments, said in (
        ([saved / "a"], "is no outcome of a learning run"),
        ([saved / "none"], "holds no outcome.json"),
        ([saved / "b", "--out", saved / "b" / "outcome.json" / "x"], "cannot be written"),
    ):
        ran = command("compare", *arguments)
        assert (ran.exit_code, len(ran.stderr.splitlines())) == (2, 1)
        assert said in ran.stderr


TINY = """
about = "Four devices learn."
nodes = 4
rounds = 3
[data]
samples = 64
test = 32
[train]
local_steps = 1
"""
VARIANTS = f"""{TINY}
[[variant]]
name = "in groups"
[[variant]]
name = "../alone"
averaging.topology = "alone"
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY, "utf-8")
    return tmp_path / "tiny.toml"


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    (tmp_path / "variants.toml").write_text(VARIANTS, "utf-8")
    return tmp_path / "variants.toml"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


SHOWN = {"report.html", "rounds.csv", "quality.png", "spread.png"}


def test_a_scenario_is_played_and_shown(tiny: Path, tmp_path: Path) -> None:
    ran = command("learn", tiny, "--out", tmp_path / "out", "--rounds", 2, "--nodes", 3, "--seed", 7)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("tiny: Four devices learn.\n\nrun   ")
    assert ran.stderr.splitlines()[-1].startswith("tiny: 2 of 2: mean 0.")
    assert "\nlogistic regression, all data " in ran.stdout
    assert files_in(tmp_path / "out") == {"outcome.json", *SHOWN}
    outcome = archive.load(tmp_path / "out" / "outcome.json")
    assert (outcome.name, outcome.scenario.nodes, outcome.scenario.seed) == ("tiny", 3, 7)
    assert [one.round for one in outcome.rows] == [1, 2]


def test_variants_are_played_each_in_a_folder_inside(variants: Path, tmp_path: Path) -> None:
    ran = command("learn", variants, "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert [line.split("  ")[0] for line in ran.stdout.splitlines()[3:5]] == ["in groups", "../alone"]
    assert files_in(tmp_path / "out") == {"in-groups/outcome.json", "-alone/outcome.json", *SHOWN}
    again = command("compare", tmp_path / "out")
    assert "They differ in averaging.topology." in again.stdout


def test_an_interrupted_run_goes_on_to_the_same_bits(
    variants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("learn", variants, "--out", tmp_path / "whole").exit_code == 0
    note, rounds = progress.Lines.note, []

    def interrupted(self: progress.Lines, done: int, row: Row | None = None) -> None:
        note(self, done, row)
        rounds.append(done)
        if len(rounds) == 5:  # the second round of the second variant
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress.Lines, "note", interrupted)
    monkeypatch.setattr(sys, "argv", ["lepton-sim", "learn", "my variants.toml", "--out", "there"])
    ran = command("learn", variants, "--out", tmp_path / "out")
    assert (ran.exit_code, ran.stdout) == (130, "")
    assert ran.stderr.endswith("To go on: lepton-sim learn 'my variants.toml' --out there --resume\n")
    assert files_in(tmp_path / "out") == {"in-groups/outcome.json", "-alone/checkpoint.safetensors"}

    refused = command("learn", variants, "--out", tmp_path / "out")
    assert (refused.exit_code, "holds a run: go on with it by --resume" in refused.stderr) == (2, True)
    went_on = command("learn", variants, "--out", tmp_path / "out", "--resume")
    assert went_on.exit_code == 0, went_on.output
    assert rounds[5:] == [3, 3], "the first is there, the second goes on with its third round"
    assert archive.gather([tmp_path / "out"]) == archive.gather([tmp_path / "whole"])


def test_seeds_and_settings_are_swept(tiny: Path, tmp_path: Path) -> None:
    settings = ("--seeds", 2, "--set", "averaging.codec=float32,int8", "--set", "train.momentum=0.5", "--jobs", 1)
    ran = command("sweep", tiny, *settings, "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert [line.split("  ")[0] for line in ran.stdout.splitlines()[:3]] == [
        "setting", "averaging.codec=float32, train.momentum=0.5", "averaging.codec=int8, train.momentum=0.5",
    ]  # fmt: skip
    assert " ± " in ran.stdout
    written = files_in(tmp_path / "out")
    assert SHOWN | {"cells.csv"} <= written
    assert len(written - SHOWN - {"cells.csv"}) == 4, "runs"
    again = command("sweep", tiny, *settings, "--json", "--out", tmp_path / "out")
    assert [json.loads(line)["scenario"]["averaging"]["codec"] for line in again.stdout.splitlines()] == [
        "float32", "int8",
    ]  # fmt: skip


def test_a_run_that_fails_in_a_sweep_is_exit_status_1(tiny: Path) -> None:
    ran = command("sweep", tiny, "--seeds", 1, "--jobs", 1, "--set", "model.architecture=linear,nonsense")
    assert (ran.exit_code, "nonsense, seed=1 failed: there is no architecture" in ran.stdout) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["learn", "nowhere"], "There is no scenario and no file 'nowhere'"),
        (["learn", "{tiny}", "--resume"], "Name the folder of the run with --out"),
        (["learn", "{tiny}", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["learn", "{tiny}", "--out", "{tiny}/out"], "cannot be made"),
        (["learn", "{tiny}", "--jobs", "2"], "say --engine dask"),
        (["sweep", "{tiny}", "--set", "train.momentum"], "say which values to try"),
        (["sweep", "{tiny}", "--set", "train.speed=1"], "There is no setting 'train.speed'"),
        (["sweep", "{tiny}", "--variant", "other"], "There is no variant 'other'; there are tiny."),
        (["sweep", "{tiny}", "--address", "tcp://127.0.0.1:1"], "give it with the engine `dask`"),
    ],
)
def test_what_its_user_gets_wrong_is_said_in_a_sentence(tiny: Path, arguments: list[str], said: str) -> None:
    ran = command(*(argument.format(tiny=tiny) for argument in arguments))
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
