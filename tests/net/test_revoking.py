"""A member that is thrown out while it is away does not come back."""

from pathlib import Path

import pytest

from .lan import Lan
from .nodes import mesh_of, together, until

pytestmark = [pytest.mark.net, pytest.mark.slow]


def test_a_member_revoked_across_a_partition_is_out_when_it_heals(lan: Lan, tmp_path: Path) -> None:
    with mesh_of(lan, tmp_path, ["attic", "kitchen", "study"]) as members:
        attic, kitchen, study = members
        until(lambda: together(members), *members)
        lan.split({"attic", "kitchen"}, {"study"})
        until(lambda: attic.sees() == {"kitchen"} and not study.sees(), *members)
        attic.said("revoke", "study", "--reason", "sold", "--yes")
        lan.heal()
        until(lambda: any("sold" in why for why in study.status()["refusals"].values()), *members)
        assert attic.sees() == {"kitchen"}
        assert kitchen.sees() == {"attic"}
        assert study.sees() == set()
