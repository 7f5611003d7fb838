"""Nodes on one network find each other with nothing configured, whatever kind of address the network has."""

from pathlib import Path

import pytest

from .lan import Lan
from .nodes import mesh_of, together, until

pytestmark = pytest.mark.net


@pytest.mark.parametrize("kind", [pytest.param("ipv4", marks=pytest.mark.slow), "ipv6"])
def test_devices_with_one_kind_of_address_find_each_other(lan: Lan, tmp_path: Path, kind: str) -> None:
    with mesh_of(lan, tmp_path, ["attic", "kitchen", "study"], ipv4=kind == "ipv4", ipv6=kind == "ipv6") as members:
        until(lambda: together(members), *members)
