"""Every scenario that ships holds its invariants, whatever the seed; the same seed tells the same story."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from lepton.simulations import faults, report, scenario
from lepton.simulations.device import Machines
from lepton.simulations.run import Outcome, Run, simulate

SEEDS = {
    "frozen": (2, 5),
    "quiet": (2, 3, 4),
    "partition": (2, 7),
    "lossy_crash": (2, 3),
    "line": (2, 3),
}


@cache
def played(name: str, seed: int) -> Outcome:
    """What a scenario that ships comes to: several tests look at the same run."""
    return simulate(scenario.load(name), seed=seed, name=name)


def test_every_shipped_scenario_is_run() -> None:
    others = {"hunt", "answers"}  # test_hunting.py plays the one that draws its faults, test_generating.py sessions
    assert {*SEEDS, *others} == set(scenario.shipped())


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds])
def test_every_invariant_holds(name: str, seed: int) -> None:
    read = scenario.load(name)
    figures = played(name, seed).figures
    assert figures.requests_answered + figures.requests_abandoned == figures.requests > 0.9 * read.requests.count
    assert figures.rounds >= read.task.rounds * (read.nodes - len(read.crash)) / 2
    assert figures.crashes == len(read.crash)
    assert (figures.lies > 100) == (read.liars > 0)


def test_nothing_is_lost_refused_or_repeated_where_nothing_goes_wrong() -> None:
    read = scenario.load("quiet")
    figures = played("quiet", 2).figures
    assert figures.rounds == figures.rounds_complete == read.nodes * read.task.rounds
    assert figures.requests_rerouted == figures.refusals == figures.dials_failed == 0


def test_another_seed_tells_another_story() -> None:
    assert played("quiet", 2).transcript != played("quiet", 3).transcript


def test_who_is_cut_off_goes_on_and_comes_back() -> None:
    told = report.transcript(played("partition", 2).transcript)
    before, _, rest = told.partition("is cut: n0 n1 n2 | n3 n4 n5")
    during, _, after = rest.partition("is whole again")
    assert "drops" not in before
    assert "members 3" in during, "each half trains on"
    assert "members 6" in after, "and both together again"


def test_in_a_line_the_middle_one_averages_with_both_ends_and_nobody_is_always_alone() -> None:
    told = report.transcript(played("line", 2).transcript).partition("is whole again")[0]
    ends = [line.split() for line in told.splitlines() if "finished round" in line]
    pairs = {name: sum(words[1] == name and words[-1] == "2" for words in ends) for name in ("n0", "n1", "n2")}
    assert len(ends) == 3 * 60
    assert pairs["n1"] >= 55
    assert min(pairs["n0"], pairs["n2"]) >= 15


def play(tmp_path: Path, hash_seed: str) -> tuple[str, bytes]:
    file = tmp_path / hash_seed
    command = [
        sys.executable,
        "-m",
        "lepton.simulations",
        "run",
        "lossy_crash",
        "--seed",
        "5",
        "--transcript",
        str(file),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout, file.read_bytes()


def test_the_same_seed_tells_the_same_story_in_every_process(tmp_path: Path) -> None:
    assert play(tmp_path, "1") == play(tmp_path, "2")


def test_who_comes_back_after_a_crash_is_in_step_with_the_others_soon() -> None:
    """Once it was overtaken again and again, and all others waited for it: 60 rounds took 105 s in place of 36 s."""
    back = scenario.Scenario(
        about="back",
        nodes=4,
        duration_s=65,
        crash=(faults.Crash(at_s=12, node="n2", restart_after_s=5),),
        task=scenario.Task(rounds=60),
    )
    figures = simulate(back).figures
    assert figures.rounds_complete > 0.8 * figures.rounds


def test_devices_tell_each_other_where_they_are() -> None:
    """By records, which reach whom mDNS does not."""
    run = Run(scenario.load("quiet"), 1, Machines())
    run.to_the_end()
    for member in run.members.values():
        device = member.device
        others = {other.device.me for other in run.members.values()} - {device.me}
        assert set(device._read) >= others
        assert all(device.members.book.addresses(peer) == (f"simulated/{run.world.called(peer)}",) for peer in others)
