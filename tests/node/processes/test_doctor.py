"""`lepton-node doctor` as its user has it: before any mesh, in words and as data."""

import json
from pathlib import Path

from .fakes import assert_refused, run, said


def test_the_doctor_works_before_there_is_a_mesh(tmp_path: Path) -> None:
    home = tmp_path / "a"
    told = json.loads(said("doctor", "--json", "--listen", "0", home=home))
    assert "no-mesh" in {finding["id"] for finding in told["findings"]}
    assert told["facts"]["home"] == str(home)
    said("mesh", "create", "home", home=home)
    (home / "node.toml").write_text('listen = ["203.0.113.77:4001"]\n')
    done = run("doctor", "--listen", "0", home=home)
    assert done.returncode == 1
    assert "Leave" not in done.stdout
    assert "203.0.113.77:4001" in done.stdout
    assert "No node runs here" in done.stdout
    assert "Traceback" not in done.stderr
    assert_refused(run("top", "--once", home=home), 1, r"No node runs with the folder")
    assert_refused(run("doctor", "--peer", "attic", "--listen", "0", home=home), 2, r"measured by a running node")
