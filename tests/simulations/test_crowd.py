"""A mesh of many members comes right after all that happens, and a seed gives the same figures everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from lepton.mesh.errors import UsageError
from lepton.simulations.__main__ import main
from lepton.simulations.crowd import run, scenario
from lepton.simulations.crowd.crowd import Crowd
from lepton.simulations.crowd.scenario import Churn, CrowdScenario
from lepton.simulations.world import Violation

CALM = CrowdScenario(about="nothing happens", nodes=60, duration_s=20.0, settle_s=15.0)


def test_a_shipped_crowd_keeps_its_invariants_and_is_the_same_to_the_letter_in_any_process() -> None:
    here = CliRunner().invoke(main, ["crowd", "sixty", "--seed", "3"])
    assert here.exit_code == 0, here.output
    there = subprocess.run(
        [sys.executable, "-m", "lepton.simulations", "crowd", "sixty", "--seed", "3"],
        env={**os.environ, "PYTHONHASHSEED": "7"},  # sets are in another order there
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert there.stdout == here.output
    assert "Every invariant held." in here.output


def test_in_a_crowd_that_is_let_alone_nobody_is_doubted() -> None:
    figures = run.play(CALM)
    assert figures.mistaken == 0
    assert figures.connections_max <= 10  # two on each of five rings
    # Each of 60 probes once a second and is answered; at the start each connection is probed both ways, and some twice.
    assert figures.probe_messages < 60 * 20 * 2 + 60 * figures.connections_max * 2 * 4


def test_connections_that_are_given_up_make_nobody_doubt_a_member() -> None:
    """A newcomer connects to fifty and gives most of them up: no relay knows those, and each of them lives."""
    figures = run.play(msgspec.structs.replace(CALM, duration_s=110.0, churn=Churn(newcomers=2), settle_s=100.0))
    assert figures.mistaken == 0
    assert figures.dials > 90  # they did connect to most
    assert figures.unseen_max == 0
    assert figures.connections_max <= 20


def test_one_that_dies_without_a_word_is_here_no_more_to_those_beside_it_either() -> None:
    churn = Churn(leavers=2, silent=1.0)
    figures = run.play(msgspec.structs.replace(CALM, duration_s=70.0, settle_s=60.0, churn=churn))
    assert figures.ended == 2
    assert 0 < figures.noticed_s_median < 20.0


def test_a_forged_word_and_a_view_that_is_wrong_break_invariants() -> None:
    crowd = Crowd(CALM, 1)
    crowd.found()
    crowd.clock.run(5.0)
    run.check_words(crowd)
    run.check_end(crowd)
    one = next(iter(crowd.members.values()))
    one.picture.store.publish("status", "self", "unknown to the ledger")
    with pytest.raises(Violation, match="which its owner never said"):
        run.check_words(crowd)
    with pytest.raises(Violation, match="not all members hold the same"):
        run.check_end(crowd)
    one.members.present.pop()
    with pytest.raises(Violation, match="1 members do not see who is here"):
        run.check_end(crowd)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about = 'x'\nnodes = 60\nduration_s = 100\nnods = 1", "nods"),
        ("about = 'x'\nnodes = 60\nduration_s = 10", "settle_s is the last part"),
        ("about = 'x'\nnodes = 60\nduration_s = 100\n[churn]\ncrashes = 40", "At most half|at most half"),
        ("about = ", "not a readable TOML"),
    ],
)
def test_a_crowd_that_cannot_be_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "crowd.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        scenario.load(str(file))
    assert CliRunner().invoke(main, ["crowd", str(file)]).exit_code == 2


def test_every_crowd_that_ships_can_be_read() -> None:
    assert {"thousand", "sixty"} <= set(scenario.shipped())
    for name in scenario.shipped():
        assert scenario.load(name).about
    with pytest.raises(UsageError, match="There is no crowd"):
        scenario.load("sixti")
