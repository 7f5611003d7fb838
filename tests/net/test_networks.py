"""Networks with routers between them: one address of one member that can be reached is enough for all."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..node.processes.fakes import write_example
from .lan import Lan
from .nat import Nat
from .nodes import Member, together, until

pytestmark = [pytest.mark.net, pytest.mark.slow]

PORT = 4001
HUB = f"10.0.0.1:{PORT}"  # the first device of a Lan
Three = tuple[Member, Member, Member]


@pytest.fixture
def scattered(lan: Lan, tmp_path: Path) -> Iterator[Three]:
    """A hub, and two behind routers of their own. The hub's mesh is made, and no node is up."""
    hub, cafe, hotel = (Member(lan.add(name, ipv6=False), tmp_path / name) for name in ("hub", "cafe", "hotel"))
    routers = Nat("first", "192.168.1.251", "10.0.0.201"), Nat("second", "192.168.2.252", "10.0.0.202")
    for router in routers:
        lan.add_nat(router)
    first, second = routers
    lan.segments(
        {"hub", first.outside_port, second.outside_port}, {"cafe", first.inside_port}, {"hotel", second.inside_port}
    )
    cafe.device.move_behind("192.168.1.251")
    hotel.device.move_behind("192.168.2.252")
    hub.said("mesh", "create", "home")
    with ExitStack() as stack:
        for member in (hub, cafe, hotel):
            stack.callback(member.down)
        yield hub, cafe, hotel


def tasks(member: Member) -> set[str]:
    return {task["name"] for task in member.status()["tasks"]}


def test_members_behind_routers_take_part_through_one_that_can_be_reached(scattered: Three, tmp_path: Path) -> None:
    hub, cafe, hotel = scattered
    _, _, example, _ = write_example(tmp_path)
    hub.up("--listen", f"0.0.0.0:{PORT}", "--data", f"example={example}")
    code = hub.said("invite", "--uses", "2")
    cafe.said("join", code, "--at", HUB)
    hotel.said("join", code, "--at", HUB)
    cafe.up("--bootstrap", HUB, "--data", f"example={example}")
    until(lambda: together((hub, cafe)), hub, cafe)
    # Calls go both ways over the one connection that cafe made: the hub begins what cafe takes part in.
    *_, result = hub.said("train", "there", "--data", "example", "--rounds", "5", "--json").splitlines()
    assert {node["state"] for node in json.loads(result)["nodes"].values()} == {"done"}
    assert [node.get("deadline_misses", 0) for node in json.loads(result)["nodes"].values()] == [0, 0]
    hotel.up("--bootstrap", HUB)
    until(lambda: hub.sees() == {"cafe", "hotel"} and hotel.sees() == {"hub"}, *scattered)
    until(lambda: "there" in tasks(hotel), *scattered)
    assert cafe.sees() == {"hub"}  # no way leads from one router to what is behind the other
    until(lambda: hotel.status()["models"] and hotel.status()["models"][0]["served"], *scattered)
    assert "of 100 right" in hotel.said("predict", "there", "--data", str(example))
