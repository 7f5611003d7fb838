"""The simulator's command line, as its user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

TINY = 'about = "tiny"\nnodes = 2\nduration_s = 30\n[task]\nrounds = 3\nerror_max = 1.0\n[requests]\ncount = 3\n'


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "lepton.simulations", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, "utf-8")
    return path


def test_a_file_is_played_and_its_story_written(tiny: Path, tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    ran = command("run", str(tiny), "--seed", "7", "--transcript", str(story))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("tiny: tiny\n")
    assert ran.stdout.endswith("Every invariant held.\n")
    assert "finished round 2: 2 of 2 in all parts, members 2" in story.read_text("utf-8")


def test_the_shipped_scenarios_are_listed() -> None:
    worlds, fleets = command("list").stdout.split("\n\nFor `lepton-sim learn`:\n\n")
    assert [line.split()[0] for line in worlds.splitlines()] == [
        "answers",
        "frozen",
        "hunt",
        "line",
        "lossy_crash",
        "partition",
        "quiet",
    ]
    assert {"hospitals", "traffic", "cameras", "homes", "phones"} <= {line.split()[0] for line in fleets.splitlines()}


def test_a_run_that_breaks_ends_with_status_1_and_the_command_that_replays_it(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(TINY.replace("rounds = 3", "rounds = 300"), "utf-8")
    story = tmp_path / "story.txt"
    ran = command("run", str(tiny), "--seed", "7", "--transcript", str(story))
    assert ran.returncode == 1
    assert f"lepton-sim run {tiny} --seed 7" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert story.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quite"], "Did you mean 'quiet'?"),
        (["run", "{tiny}", "--transcript", "{tiny}/no/file"], "The transcript cannot be written"),
        (["run", "{tiny}", "--seed", "-1"], "Invalid value for '--seed'"),
        (["run"], "Missing argument"),
    ],
)
def test_what_its_user_gets_wrong_is_said_in_a_sentence(tiny: Path, arguments: list[str], said: str) -> None:
    ran = command(*(argument.format(tiny=tiny) for argument in arguments))
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
