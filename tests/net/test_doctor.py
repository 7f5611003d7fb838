"""The doctor on networks where discovery fails: it says so, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from .lan import Lan
from .nodes import Member, mesh_of, together, until

pytestmark = pytest.mark.net


def diagnosed(member: Member) -> dict[str, Any]:
    """What the doctor finds on a device, by the finding's id."""
    process = member.begin("doctor", "--json")
    try:
        assert process.ended() in {0, 1}, process.err
        return {finding["id"]: finding for finding in json.loads(process.out)["findings"]}
    finally:
        process.end()


def test_a_network_that_drops_multicast_is_found_out(lan: Lan, tmp_path: Path) -> None:
    with mesh_of(lan, tmp_path, ["alice", "bob"], words=("--web", "off")) as members:
        until(lambda: together(members), *members)
        found = diagnosed(members[0])
        assert "bob" in found["heard"]["what"]
        assert {found[name]["severity"] for name in ("announced", "reachable", "peer-here")} == {"ok"}
        assert "multicast-blocked" not in found

        lan.drop_mdns()
        found = diagnosed(members[0])
        assert "bob: here over TCP on eth0" in found["multicast-blocked"]["what"]
        assert found["announced"]["severity"] == "ok"
        assert "multicast-dropped-here" not in found

        members[1].down()
        until(lambda: not members[0].sees(), *members)
        found = diagnosed(members[0])
        assert "bob" in found["peer-away"]["what"]
