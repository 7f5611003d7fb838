"""The hunt finds a machine that is broken on purpose, and makes little of it; sound ones hold under drawn faults."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from lepton.mesh.errors import UsageError
from lepton.mesh.identity import PeerId
from lepton.mesh.records import Merged, RecordStore, SignedRecord
from lepton.simulations import scenario
from lepton.simulations.device import Machines
from lepton.simulations.drawing import draw
from lepton.simulations.faults import KINDS, Crash, Faults, named
from lepton.simulations.hunting import Hunt, play
from lepton.simulations.scenario import Link, Model, Requests, Scenario, Statements, Task
from lepton.simulations.shrinking import Shrinker, kind_of
from lepton.simulations.writing import as_toml

HUNT = scenario.load("hunt")
LONG_S = 3600.0
SMALL = Scenario(
    about="small",
    nodes=5,
    duration_s=70,
    settle_s=35,
    link=Link(loss=0.01),
    model=Model(layers=2, copies=1),
    task=Task(rounds=0),
    requests=Requests(count=5, failed_max=5),
    statements=Statements(interval_s=4),
    faults=Faults(crash=2, freeze=1, partition=1, weather=1, slow=1, skew=1, join=1),
)


class Forgetful(RecordStore):
    """Keeps nothing of its own across a restart, and does not hear it from others either."""

    def __init__(self, *arguments: object, **named_: object) -> None:
        super().__init__(*arguments, **named_)  # type: ignore[arg-type]
        for record in list(self._shelf.of(self._me)):
            self._shelf.remove(record)

    def merge(self, signed: Iterable[SignedRecord], *, known: Callable[[PeerId], bool]) -> Merged:
        return super().merge([item for item in signed if self._me.encode() not in item.content], known=known)


@pytest.mark.parametrize("seed", range(1, 4))
def test_every_invariant_holds_whatever_a_seed_brings(seed: int) -> None:
    assert play(HUNT, seed) == ""


def test_a_planted_fault_is_found_and_shrunk_to_the_one_that_it_takes() -> None:
    told: list[str] = []
    hunted = Hunt(SMALL, told.append, Machines(store=Forgetful)).run(range(1, 40), until=time.monotonic() + LONG_S)
    found = hunted.found
    assert found is not None
    assert "has lost a durable record" in found.what
    assert kind_of(found.said) == kind_of(found.what)
    (crash,) = found.scenario.all_faults
    assert isinstance(crash, Crash)
    assert found.scenario.nodes <= 2 + int(crash.node[1:])
    assert found.scenario.requests.count == 0
    assert found.scenario.duration_s < SMALL.duration_s
    again = scenario.read(tomllib.loads(as_toml(found.scenario, comment=found.said)), "again")
    assert play(again, found.seed, Machines(store=Forgetful)) == found.said
    assert any(what.startswith(f"seed {found.seed} breaks: ") for what in told)


def test_a_hunt_ends_with_its_seeds_or_its_time() -> None:
    tiny = msgspec.structs.replace(SMALL, duration_s=12, settle_s=1, nodes=2, faults=None)
    assert Hunt(tiny).run(range(3), until=time.monotonic() + LONG_S).seeds == 3
    assert Hunt(tiny).run(range(3), until=time.monotonic()).seeds == 0


# -- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_what_is_drawn_is_a_valid_scenario_and_written_and_read_the_same(seed: int) -> None:
    drawn = draw(HUNT, seed)
    assert drawn == draw(HUNT, seed)
    assert drawn.faults is None
    assert scenario.read(tomllib.loads(as_toml(drawn)), "drawn") == drawn


def test_all_kinds_are_drawn_and_all_is_over_when_the_calm_begins() -> None:
    kinds = set[str]()
    for seed in range(60):
        for fault in draw(HUNT, seed).all_faults:
            kinds.add(next(key for key, kind in KINDS.items() if isinstance(fault, kind)))
            ends = [getattr(fault, key, 0.0) for key in ("heal_s", "end_s")]
            ends += [fault.at_s + getattr(fault, key, 0.0) for key in ("restart_after_s", "thaw_after_s")]
            assert HUNT.faults is not None
            assert fault.at_s >= HUNT.faults.first_s
            assert max(ends) <= HUNT.duration_s - HUNT.settle_s + 0.01
            assert all(name in HUNT.names or name.startswith("late") for name in named(fault))
    assert kinds == set(KINDS)


def test_drawn_faults_come_beside_those_that_are_written() -> None:
    mine = Crash(at_s=12, node="n1")
    assert mine in draw(msgspec.structs.replace(SMALL, crash=(mine,)), 3).crash


# -- shrinking --------------------------------------------------------------------------------------------------------


def test_delta_debugging_finds_the_two_faults_that_it_takes_together() -> None:
    faults = tuple(Crash(at_s=at_s, node=f"n{at_s % 5}", restart_after_s=1) for at_s in range(10, 26))
    needed = {faults[3], faults[12]}
    runs: list[int] = []

    def breaks(tried: Scenario) -> bool:
        runs.append(1)
        return needed <= set(tried.all_faults)

    least = Shrinker(breaks).shrink(SMALL.with_faults(faults))
    assert set(least.all_faults) == needed
    assert (least.nodes, least.link, least.duration_s < 40) == (4, Link(), True)
    assert len(runs) < 100


def test_a_shrinker_gives_up_in_time() -> None:
    least = Shrinker(lambda _tried: True, tries_max=0).shrink(SMALL.with_faults(()))
    assert least == SMALL.with_faults(())


def test_promises_are_told_apart_without_names_and_numbers() -> None:
    assert kind_of("n1 has lost a durable record now: note 'a'") == kind_of("n12 has lost a durable record now: b")
    assert kind_of("request 7 ended 2 times") == kind_of("request 11 ended 3 times")
    assert kind_of("request 7 ended 2 times") != kind_of("request 7 of n1, asked at 3 s, never ended")


# -- the command ------------------------------------------------------------------------------------------------------

BROKEN = """about = "short"
nodes = 2
duration_s = 12
settle_s = 1
[task]
rounds = 300
[requests]
count = 0
[faults]
first_s = 1
slow = 1
skew = 1
"""


TINY = """about = "tiny"
nodes = 2
duration_s = 12
settle_s = 1
[task]
rounds = 0
[requests]
count = 0
"""


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "lepton.simulations", *arguments]
    return subprocess.run(
        program, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )  # fmt: skip


def test_what_breaks_is_written_down_and_the_command_that_is_printed_replays_it(tmp_path: Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text(BROKEN, "utf-8")
    ran = command("hunt", str(file), "--seeds", "3..9", "--jobs", "2", "--out", str(tmp_path / "found"))
    assert ran.returncode == 1, ran.stderr
    seed = re.match(r"Seed (\d) of short: n0 is ", ran.stdout)  # of two at once either may be the first to break
    assert seed is not None, ran.stdout
    replay = ran.stdout.splitlines()[-1].removeprefix("Replay it with: lepton-sim ").split()
    assert replay[1] == str(tmp_path / "found" / f"short-{seed[1]}.toml")
    again = command(*replay[:4])
    assert again.returncode == 1
    assert "at the end, in round" in again.stderr
    assert "0 faults" in ran.stdout


def test_a_hunt_without_prey_says_how_far_it_got(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY, "utf-8")
    ran = command("hunt", str(file), "--seeds", "1..3", "--jobs", "1", "--out", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (0, "3 seeds of tiny, 0.0 h of virtual time: every invariant held.\n")


def test_an_interrupted_hunt_says_how_far_it_got(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY, "utf-8")
    program = [sys.executable, "-m", "lepton.simulations", "hunt", str(file), "--jobs", "2", "--out", str(tmp_path)]
    hunting = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert hunting.stderr is not None
    first = hunting.stderr.readline()
    hunting.send_signal(signal.SIGINT)
    _, rest = hunting.communicate(timeout=120)
    assert first.endswith("all held\n")
    assert hunting.returncode == 130
    assert "Interrupted after " in rest
    assert "Traceback" not in rest


def test_the_same_seed_draws_and_tells_the_same_in_every_process(tmp_path: Path) -> None:
    told = []
    for hashing in ("1", "2"):
        file = tmp_path / hashing
        ran = command("run", "hunt", "--seed", "4", "--transcript", str(file), PYTHONHASHSEED=hashing)
        drawn = command("draw", "hunt", "--seed", "4", PYTHONHASHSEED=hashing)
        told.append((ran.stdout, file.read_bytes(), drawn.stdout))
    assert told[0] == told[1]
    assert "[[" in told[0][2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hunt", "hant"], "Did you mean 'hunt'?"),
        (["hunt", "--seeds", "9..1"], "no range of seeds"),
        (["hunt", "--seeds", "few"], "no range of seeds"),
        (["draw", "nothing"], "There is no scenario"),
    ],
)
def test_what_its_user_gets_wrong_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    ran = command(*arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_faults_are_drawn_before_the_calm() -> None:
    with pytest.raises(UsageError, match=r"faults.first_s is before settle_s begins"):
        scenario.read({"about": "", "nodes": 2, "duration_s": 30, "settle_s": 25, "faults": {}}, "file")
