"""The fleet's commands as their user meets them."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from lepton.simulations.__main__ import main
from lepton.simulations.fleet.outcome import Outcome
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
