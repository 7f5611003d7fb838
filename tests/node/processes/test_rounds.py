"""Rounds of real processes, of which one is killed and one frozen in the middle: the others come to one model.

Every moment of a round is tried on virtual time in ``tests/gossip/test_round.py``; this is the same over sockets.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_kill_and_a_freeze_in_the_middle_of_a_round_leave_the_others_with_one_model() -> None:
    command = [sys.executable, "-m", "tests.bench.average", "faults", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stderr
    kill, freeze = ran.stdout.splitlines()
    assert kill.startswith("kill of ")
    assert freeze.startswith("freeze of ")
    assert all("3 agreed" in line for line in (kill, freeze))
