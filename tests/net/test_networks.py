"""Networks with routers between them: one address of one member that can be reached is enough for all."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..node.processes.fakes import write_example
from .lan import Lan
from .nat import Nat
from .nodes import Member, mesh_of, together, until

pytestmark = [pytest.mark.net, pytest.mark.slow]

PORT = 4001
HUB = f"10.0.0.1:{PORT}"  # the first device of a Lan
Travelled = tuple[Member, Member, Member]


@pytest.fixture
def travelled(lan: Lan, tmp_path: Path) -> Iterator[Travelled]:
    """A hub, and two that joined at home and went behind routers of their own. None is up."""
    with mesh_of(lan, tmp_path, ["hub", "cafe", "hotel"], ipv6=False) as (hub, cafe, hotel):
        for member in (hub, cafe, hotel):
            member.down()
        routers = [
            Nat("first", "192.168.1.251", "10.0.0.201"),
            Nat("second", "192.168.2.252", "10.0.0.202"),
        ]
        for router in routers:
            lan.add_nat(router)
        lan.segments(
            {"hub", *(router.outside_port for router in routers)},
            {"cafe", routers[0].inside_port},
            {"hotel", routers[1].inside_port},
        )
        cafe.device.move_behind("192.168.1.251")
        hotel.device.move_behind("192.168.2.252")
        yield hub, cafe, hotel


def tasks(member: Member) -> set[str]:
    return {task["name"] for task in member.status()["tasks"]}


def test_members_behind_routers_take_part_through_one_that_can_be_reached(travelled: Travelled, tmp_path: Path) -> None:
    hub, cafe, hotel = travelled
    _, _, example, _ = write_example(tmp_path)
    hub.up("--listen", f"0.0.0.0:{PORT}", "--data", f"example={example}")
    cafe.up("--bootstrap", HUB, "--data", f"example={example}")
    until(lambda: together((hub, cafe)), hub, cafe)
    # Calls go both ways over the one connection that cafe made: the hub begins what cafe takes part in.
    *_, result = hub.said("train", "there", "--data", "example", "--rounds", "5", "--json").splitlines()
    assert {node["state"] for node in json.loads(result)["nodes"].values()} == {"done"}
    assert [node.get("deadline_misses", 0) for node in json.loads(result)["nodes"].values()] == [0, 0]
    hotel.up("--bootstrap", HUB)
    until(lambda: hub.sees() == {"cafe", "hotel"} and hotel.sees() == {"hub"}, *travelled)
    until(lambda: "there" in tasks(hotel), *travelled)
    assert cafe.sees() == {"hub"}  # no way leads from one router to what is behind the other
    until(lambda: hotel.status()["models"] and hotel.status()["models"][0]["served"], *travelled)
    assert "of 100 right" in hotel.said("predict", "there", "--data", str(example))
